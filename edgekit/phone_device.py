"""A phone that measures with `benchmark_model`: files are pushed, each block is a start of the tool.

A start tells a summary and no single times, so a result from here has one summary a block. The blocks of all
entries take turns, as everywhere. The predictions take a start an image: the tool keeps the outputs of its last
inference only.
"""

import shlex
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from edgekit import benchmark_model, phone, phone_tool, preflight
from edgekit.benchmark_model import Told
from edgekit.device import BenchJob, Entry, Interrupted, Outcome, Progress
from edgekit.errors import DeviceBusy, DeviceError, UsageError
from edgekit.inventory import Options
from edgekit.measure import Cooling, Measurement, Summary, Telemetry
from edgekit.operators import Delegation
from edgekit.phone_shell import POLL_S, PREDICT, STALE_MIN, TIMED, Shell, command, cool
from edgekit.preflight import Facts
from edgekit.result import DeviceInfo
from edgekit.transport import LOST, LinkLost, Transport, output, reconnect
from edgekit.transport.push import parcel, push

PATIENCE_S = 60.0  # for a link to come back
TRIES = 3  # of one start whose link is lost each time
MAX_IMAGES = 2000  # a start an image
CHUNK = 25  # images in one command
IMAGE_S = 60.0  # that one may take at most, with its start
MACHINES = {"arm64-v8a": 183, "armeabi-v7a": 40, "x86_64": 62, "x86": 3}  # e_machine of an ELF file


@dataclass(slots=True)
class _Heard:
    """What one entry has given so far."""

    model: str
    images: str
    first: Told | None = None
    delegate: str = ""
    delegation: Delegation | None = None
    notes: list[str] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    telemetry: list[Telemetry] = field(default_factory=list)
    cooling: list[Cooling] = field(default_factory=list)
    top: list[int] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class PhoneDevice:
    """*program*: where the tool stands there; *digest*: its SHA-256, since it tells no version."""

    transport: Transport
    facts: Facts
    info: DeviceInfo
    program: str
    digest: str
    delegate: str
    patience_s: float = PATIENCE_S

    @property
    def runtimes(self) -> Mapping[str, str]:
        return {"tflite": f"benchmark_model {self.digest[:8]}"}

    @property
    def machine(self) -> str:
        return self.facts.boot

    def wait(self, limit_s: float, progress: Progress) -> None:
        end, shell = time.monotonic() + limit_s, self._shell()
        while holder := shell.holder():
            if time.monotonic() >= end:
                raise DeviceBusy(self.info.address, holder, lost=f"{STALE_MIN} minutes")
            progress(DeviceBusy.words(holder), 0.0)
            time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        if job.sustained:
            raise UsageError(
                f"{self.info.address}: benchmark_model tells no single times, so nothing over time: --sustained "
                "needs the agent"
            )
        counts = {
            entry.inputs: len(np.load(entry.inputs, mmap_mode="r")) for entry in job.entries if entry.predict
        }
        if (most := max(counts.values(), default=0)) > MAX_IMAGES:
            raise UsageError(
                f"{self.info.address}: {most} images are a start of benchmark_model each, and at most "
                f"{MAX_IMAGES} are taken: edgekit bench --accuracy-samples 500"
            )
        shell = self._shell()
        heard: list[_Heard] = []
        with shell.locked():
            try:
                heard += self._bring(job, progress)
                self._visit(shell, job, heard, progress)
            except (KeyboardInterrupt, SystemExit) as stop:
                for one in heard:
                    one.error = one.error or "interrupted"
                told = tuple(self._outcome(one) for one in heard)
                raise Interrupted(
                    told or (Outcome(measurement=None, error="interrupted"),) * len(job.entries)
                ) from stop
        return tuple(self._outcome(one) for one in heard)

    def close(self) -> None:
        self.transport.close()

    def _shell(self) -> Shell:
        folder = self.facts.folder
        return Shell(transport=self.transport, folder=folder, visit=f"{folder}/visits/{uuid.uuid4().hex[:12]}")

    def _visit(self, shell: Shell, job: BenchJob, heard: list[_Heard], progress: Progress) -> None:
        pairs = list(zip(job.entries, heard, strict=True))
        steps = [*((*pair, None) for pair in pairs), *((*pair, b) for b in range(job.blocks) for pair in pairs)]
        for done, (entry, one, block) in enumerate(steps):
            text = "load" if block is None else f"block {block + 1} of {job.blocks}"
            tell = partial(progress, f"{entry.artifact.name}: {text}", done / (len(steps) + 1))
            tell()
            if not one.error:
                self._try(one, partial(self._start, shell, job, entry, one, block, tell), progress)
        for entry, one in pairs:
            if entry.predict and not one.error:
                self._try(one, partial(self._predict, shell, job, entry, one, progress), progress)

    # ---- steps -------------------------------------------------------------------------------------------------

    def _bring(self, job: BenchJob, progress: Progress) -> list[_Heard]:
        """Models and images there; the images as bare bytes, which is what the tool reads."""

        def sending(text: str, share: float) -> None:
            progress(f"{text} {100 * share:.0f} %", 0.0)

        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            raw: dict[tuple[Path, bool], Path] = {}
            for entry in job.entries:
                if (key := (entry.inputs, entry.predict)) not in raw:
                    values = np.load(entry.inputs, mmap_mode="r")
                    raw[key] = Path(folder, f"{len(raw)}.raw")
                    np.asarray(values if entry.predict else values[:1]).tofile(raw[key])
            models = [parcel(entry.artifact.path) for entry in job.entries]
            images = {key: parcel(path) for key, path in raw.items()}
            cache = f"{self.facts.folder}/cache"
            there = push(self.transport, cache, [*models, *images.values()], sending, patience_s=self.patience_s)
        return [
            _Heard(model=there[one], images=there[images[entry.inputs, entry.predict]])
            for one, entry in zip(models, job.entries, strict=True)
        ]

    def _try(self, one: _Heard, step: Callable[[], None], progress: Progress) -> None:
        """Take the step, anew when the link was lost meanwhile. What fails stands in the entry then."""
        for last in (*[False] * (TRIES - 1), True):
            try:
                step()
                return
            except LinkLost as error:
                try:
                    reconnect(self.transport, self.patience_s, lambda: progress(LOST, 0.0))
                except DeviceError as gone:
                    one.error = f"{error}, and then: {gone}"
                    return
                if last:
                    one.error = str(error)
            except DeviceError as error:
                one.error = str(error)
                return

    def _start(
        self, shell: Shell, job: BenchJob, entry: Entry, one: _Heard, block: int | None, tell: Callable[[], None]
    ) -> None:
        """A start of the tool: one block, or with None a short one for load time, memory and delegate."""
        seconds = job.seconds / job.blocks if block is not None else 0.0
        warmup_s = job.warmup_seconds if block is not None else 0.0
        most_s = 600.0 + 20 * (seconds + warmup_s)
        flags = [
            f"--num_runs={-(-job.samples // job.blocks) if block is not None else 1}",
            f"--min_secs={seconds:g}",
            f"--max_secs={most_s:g}",
            f"--warmup_runs={max(1, job.warmup) if block is not None else 1}",
            f"--warmup_min_secs={warmup_s:g}",
            "--result_file_path=result.pb",
        ]
        if block is None:  # the thread that watches memory would disturb the times
            flags.append("--report_peak_memory_footprint=true")
        line = command(self.program, one.model, entry, self.delegate, "first.raw", flags)
        shell.end()
        if block is not None:
            one.cooling += cool(shell, job.cool_down_seconds, block, tell)
        filled = {"COMMAND": line, "IMAGES": shlex.quote(one.images), "BYTES": str(_image_bytes(entry))}
        text, ended = shell.say(TIMED, 2 * most_s + 60.0, tell, **filled)
        before, _, rest = text.partition(f"{phone.MARK} begin\n")
        during, _, after = rest.partition(f"{phone.MARK} status ")
        status, _, after = after.partition("\n")
        if not status:
            raise DeviceError(f"benchmark_model was cut off on {entry.artifact.file} (status {ended})")
        log = "\n".join(line for line in after.splitlines() if not line.startswith(phone.MARK))
        if status != "0" or benchmark_model.FAILED in log:
            raise DeviceError(benchmark_model.failure(log, entry.artifact.file))
        told = self._told(shell.visit, log)
        if block is None:
            one.first = told
            one.delegate, doubt, one.delegation = benchmark_model.delegation(log, self.delegate)
            one.notes += [doubt] if doubt else []
            return
        readings = phone.readings(before, at_work=False)
        one.summaries.append(told.summary(block, readings[0].time_ns if readings else 0))
        one.telemetry += [
            *readings,
            *phone.readings(during, at_work=True),
            *phone.readings(after, at_work=False),
        ]

    def _told(self, visit: str, log: str) -> Told:
        """From the file that it wrote; from what it printed where it wrote none."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            if "yes" not in output(self.transport, f"[ ! -s {visit}/result.pb ] || echo yes"):
                return benchmark_model.parse_text(log)
            self.transport.pull(f"{visit}/result.pb", Path(folder, "result.pb"))
            return benchmark_model.parse_result(Path(folder, "result.pb").read_bytes())

    def _predict(self, shell: Shell, job: BenchJob, entry: Entry, one: _Heard, progress: Progress) -> None:
        spec, count = entry.artifact.output, len(np.load(entry.inputs, mmap_mode="r"))
        scores = int(np.prod(spec.shape))
        size = scores * np.dtype(spec.dtype).itemsize
        flags = ["--num_runs=1", "--min_secs=0", "--warmup_runs=0", "--warmup_min_secs=0"]
        line = command(self.program, one.model, entry, self.delegate, "one.raw", flags)
        filled = {"COMMAND": line, "IMAGES": shlex.quote(one.images), "BYTES": str(_image_bytes(entry))}
        k = min(job.top_k, scores)
        for first in range(len(one.top) // k, count, CHUNK):
            last = min(first + CHUNK, count)
            progress(f"{entry.artifact.name}: image {first} of {count}", 1.0)
            shell.end()
            text, status = shell.say(PREDICT, CHUNK * IMAGE_S, **filled, FIRST=str(first), LAST=str(last))
            if status:
                raise DeviceError(benchmark_model.failure(text, entry.artifact.file))
            data = self._outputs(shell.visit)
            if len(data) != size * (last - first):
                raise DeviceError(
                    f"{entry.artifact.file}: benchmark_model gives {len(data) // (last - first)} bytes of "
                    f"outputs an image, and {spec.name} takes {size}"
                )
            rows = np.frombuffer(data, spec.dtype).reshape(last - first, scores).astype(np.float64)
            one.top += np.argsort(-rows, axis=1, kind="stable")[:, :k].reshape(-1).tolist()

    def _outputs(self, visit: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            self.transport.pull(f"{visit}/outputs", Path(folder, "outputs"))
            return Path(folder, "outputs").read_bytes()

    def _outcome(self, one: _Heard) -> Outcome:
        measurement = None
        if one.summaries and one.first:
            measurement = Measurement(
                samples_ns=(),
                starts_ns=(),
                blocks=(),
                summaries=tuple(one.summaries),
                load_ms=one.first.times_ms.get("load", 0.0),
                first_ms=one.first.times_ms.get("first", 0.0),
                peak_memory_bytes=one.first.peak_memory_bytes,
            )
        return Outcome(
            measurement=measurement,
            runtime="benchmark_model",
            runtime_version=self.digest[:12],
            delegate=one.delegate,
            top=tuple(one.top) if not one.error else (),
            notes=tuple(one.notes),
            telemetry=tuple(one.telemetry),
            delegation=one.delegation,
            cooling=tuple(one.cooling),
            error=one.error,
        )


def open_phone(transport: Transport, options: Options, facts: Facts) -> PhoneDevice:
    """The phone behind a connected transport, the tool brought there. Raises UsageError or DeviceError."""
    source = phone_tool.here(options.benchmark_model, transport.address)
    if found := [fault for fault in preflight.faults(facts) if "Python" not in fault]:
        raise DeviceError(f"{transport.address}: {'; '.join(found)}")
    seen = phone.look(transport)
    _check_machine(source, seen.abi)
    tool = parcel(source, ".benchmark_model")
    where = push(transport, f"{facts.folder}/cache", [tool], lambda text, share: None)[tool]
    output(transport, f"chmod 755 {shlex.quote(where)}")
    return PhoneDevice(
        transport=transport,
        facts=facts,
        info=seen.info,
        program=where,
        digest=tool.sha256,
        delegate=options.delegate or "xnnpack",
    )


def _check_machine(source: Path, abi: str) -> None:
    """Raise UsageError for a program of another processor: there it would just not start."""
    with source.open("rb") as stream:
        head = stream.read(20)
    if head[:4] != b"\x7fELF" or abi not in MACHINES:
        return
    (machine,) = struct.unpack("<H", head[18:20])
    if machine != MACHINES[abi]:
        named = next((name for name, number in MACHINES.items() if number == machine), f"machine {machine}")
        raise UsageError(f"{source} is for {named}, and the phone is {abi}: take the build for it")


def _image_bytes(entry: Entry) -> int:
    values = np.load(entry.inputs, mmap_mode="r")
    return int(np.prod(values.shape[1:]) * values.dtype.itemsize)
