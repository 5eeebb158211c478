"""``fake://pi5``: a device without hardware, for the documentation and for tests. All its numbers are made up.

They follow from the artifact's hash, the profile and the thread count, so the same job gives the same outcome,
and every outcome says that they are made up, so that nothing is ever ranked by them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgekit import plugins
from edgekit.device import BenchJob, Device, Entry, Outcome, Progress
from edgekit.errors import unknown
from edgekit.files import sha256_of
from edgekit.measure import Measurement, Telemetry
from edgekit.result import DeviceInfo

ADDRESS, ABOUT = "fake://NAME", "made-up numbers without hardware, for documentation and tests; never ranked"
NOTE = "fake device: made-up numbers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """*ns_per_weight*: how slow the device is with float weights at one thread."""

    model: str
    cpu: str
    cores: int
    memory_gb: int
    os: str
    clock_mhz: float
    ns_per_weight: float


PROFILES = {
    "pi4": Profile(
        model="Raspberry Pi 4 (fake)",
        cpu="Cortex-A72",
        cores=4,
        memory_gb=4,
        os="Raspberry Pi OS (fake)",
        clock_mhz=1800,
        ns_per_weight=25,
    ),
    "pi5": Profile(
        model="Raspberry Pi 5 (fake)",
        cpu="Cortex-A76",
        cores=4,
        memory_gb=8,
        os="Raspberry Pi OS (fake)",
        clock_mhz=2400,
        ns_per_weight=10,
    ),
    "pixel": Profile(
        model="Pixel 8 (fake)",
        cpu="Cortex-X3 + Cortex-A715 + Cortex-A510",
        cores=9,
        memory_gb=8,
        os="Android 16 (fake)",
        clock_mhz=2910,
        ns_per_weight=5,
    ),
}
# Bytes a weight takes, and latency against fp32; for other precisions as for fp32.
BYTES = {"fp32": 4.0, "fp16": 2.0, "w8": 1.0, "dyn8": 1.0, "int8": 1.0, "int16x8": 1.0, "w4": 0.5}
FACTOR = {"dyn8": 0.7, "int8": 0.45, "int16x8": 20.0, "w4": 2.5}
MAX_SAMPLES = 20_000  # a made-up minute need not hold a minute's samples


def connect(address: str, rest: str) -> Device:
    """The made-up device *rest*. Raises UsageError for a profile that does not exist."""
    if rest not in PROFILES:
        raise unknown("fake device", rest, PROFILES)
    return FakeDevice(address=address, profile=rest)


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeDevice:
    address: str
    profile: str

    @property
    def info(self) -> DeviceInfo:
        made_up = PROFILES[self.profile]
        return DeviceInfo(
            address=self.address,
            model=made_up.model,
            cpu=made_up.cpu,
            architecture="aarch64",
            cores=made_up.cores,
            memory_bytes=made_up.memory_gb * 2**30,
            os=made_up.os,
            fake=True,
        )

    @property
    def runtimes(self) -> Mapping[str, str]:
        # A fake board runs what a real one does; Core ML needs an Apple system.
        return dict.fromkeys((name for name in plugins.names("converters") if name != "coreml"), "fake 1.0")

    @property
    def machine(self) -> str:
        return self.address

    def wait(self, limit_s: float, progress: Progress) -> None:
        """Nobody can hold what is not there."""

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        outcomes = []
        for done, entry in enumerate(job.entries):
            progress(f"{entry.artifact.name}: made up", done / len(job.entries))
            outcome = _outcome(PROFILES[self.profile], job, entry, done)
            outcomes.append(_sustained(PROFILES[self.profile], job, outcome) if job.sustained else outcome)
        return tuple(outcomes)

    def close(self) -> None:
        """Nothing is open."""


def _sustained(profile: Profile, job: BenchJob, measured: Outcome) -> Outcome:
    """Minutes without a pause: half of them cool, then slower and slower."""
    assert measured.measurement is not None
    samples = np.asarray(measured.measurement.samples_ns, np.float64)
    heat = np.clip(np.linspace(-1.0, 1.0, len(samples)), 0.0, 1.0)
    starts = np.linspace(0, job.seconds * 1e9, len(samples)).astype(np.int64)
    seconds = range(int(job.seconds) + 1)
    hot = [max(0.0, 2 * second / job.seconds - 1) for second in seconds]
    return replace(
        measured,
        measurement=replace(
            measured.measurement,
            samples_ns=tuple((samples * (1 + 0.5 * heat)).astype(np.int64).tolist()),
            starts_ns=tuple(starts.tolist()),
        ),
        telemetry=tuple(
            Telemetry(
                time_ns=int(second * 1e9),
                temperature_c=45.0 + 40.0 * second / job.seconds,
                clock_mhz=profile.clock_mhz * (1 - 0.3 * hot[second]),
                governor="performance",
                throttled=hot[second] > 0,
                other_load=0.01,
            )
            for second in seconds
        ),
    )


def _outcome(profile: Profile, job: BenchJob, entry: Entry, turn: int) -> Outcome:
    seed = sha256_of([entry.artifact.sha256, profile.model, entry.threads])
    rng = np.random.default_rng(int(seed[:16], 16))
    base_ns = _base_ns(profile, entry)
    block_ns = max(job.seconds / job.blocks * 1e9, 1.0)
    count = min(max(-(-job.samples // job.blocks), int(block_ns / base_ns)), -(-MAX_SAMPLES // job.blocks))
    samples_ns, starts_ns, blocks, telemetry = [], [], [], []
    for block in range(job.blocks):
        durations = (base_ns * rng.lognormal(0.0, 0.02, count)).astype(np.int64) + 1
        # The clock of a real visit: the blocks of all entries in turn.
        begin = int((block * len(job.entries) + turn) * 2 * max(block_ns, count * base_ns))
        samples_ns += durations.tolist()
        starts_ns += (begin + np.concatenate(([0], np.cumsum(durations)[:-1]))).tolist()
        blocks += [block] * count
        telemetry.append(
            Telemetry(
                time_ns=begin,
                temperature_c=45.0 + block,
                clock_mhz=profile.clock_mhz,
                governor="performance",
                throttled=False,
                other_load=0.01,
            )
        )
    return Outcome(
        measurement=Measurement(
            samples_ns=tuple(samples_ns),
            starts_ns=tuple(starts_ns),
            blocks=tuple(blocks),
            load_ms=entry.artifact.size_bytes / 1e6 + 1.0,
            first_ms=3 * base_ns / 1e6,
            peak_memory_bytes=60_000_000 + 3 * entry.artifact.size_bytes,
        ),
        runtime="fake",
        runtime_version="1.0",
        delegate="none",
        top=_top(entry, job.top_k, rng) if entry.predict else (),
        notes=(NOTE,),
        telemetry=tuple(telemetry),
    )


def _base_ns(profile: Profile, entry: Entry) -> float:
    precision = entry.artifact.precision.removesuffix("-qat")
    weights = entry.artifact.size_bytes / BYTES.get(precision, 4.0)
    speed_up: float = min(entry.threads, profile.cores) ** 0.8
    return 50_000 + weights * profile.ns_per_weight * FACTOR.get(precision, 1.0) / speed_up


def _top(entry: Entry, k: int, rng: np.random.Generator) -> tuple[int, ...]:
    images, classes = len(np.load(entry.inputs, mmap_mode="r")), len(entry.artifact.labels)
    order = rng.random((images, classes)).argsort(axis=1)[:, :k]
    return tuple(order.reshape(-1).tolist())
