"""The devices that need no hardware of their own: this machine, and the made-up ones."""

import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgekit import plugins
from edgekit.artifact import Artifact
from edgekit.device import BenchJob, Device, Entry, Interrupted, Outcome, open_device
from edgekit.errors import DeviceError, UsageError
from edgekit.measure import judge
from tests import tiny_models

if TYPE_CHECKING:
    import devices.fake
    import devices.local

    _fake: Device = devices.fake.FakeDevice(address="fake://pi5", profile="pi5")
    _local: Device = devices.local.LocalDevice(info=_fake.info, runtimes={})

IMAGES = 12
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def job_of(folder: Path, artifacts: list[Artifact], **changes: object) -> BenchJob:
    inputs = folder / "inputs.npy"
    np.save(inputs, tiny_models.pixels(IMAGES))
    entries = tuple(Entry(artifact=a, threads=1, inputs=inputs, predict=True) for a in artifacts)
    job = BenchJob(entries=entries, samples=20, seconds=0.2, blocks=2, warmup=2, warmup_seconds=0.0)
    return replace(job, **changes)  # type: ignore[arg-type]


def quiet(text: str, share: float) -> None:
    """Progress that nobody watches."""


def children() -> list[int]:
    """Processes that this one started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def agents(folder: str) -> list[int]:
    """Agents and workers, whoever their parent is now, that were started from a folder under *folder*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if folder.encode() in command and b"agent.py" in command:
            found.append(int(path.parent.name))
    return found


def agents_left(folder: str) -> list[int]:
    """Those that are still there after a while: a killed process takes a moment to go."""
    end = time.monotonic() + 10.0
    while (left := agents(folder)) and time.monotonic() < end:
        time.sleep(0.02)
    return left


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own for temporary files, so that what stays behind is seen."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_every_device_file_opens_by_its_name() -> None:
    assert {"fake", "local"} <= set(plugins.names("devices"))
    with pytest.raises(UsageError, match=r"unknown device 'loacl'.*did you mean 'local'"):
        open_device("loacl")
    with pytest.raises(UsageError, match="this machine is just 'local'; another one is ssh://pi"):
        open_device("local://pi")


def test_local_describes_this_machine() -> None:
    device = open_device("local")
    assert device.info.address == "local"
    assert device.info.cores == os.cpu_count()
    assert device.info.kernel == os.uname().release
    assert not device.info.fake
    assert device.runtimes["tflite"].startswith("ai-edge-litert 2.")
    assert "coreml" not in device.runtimes
    again = open_device("local")
    assert again.info.fingerprint == device.info.fingerprint
    device.close()


def test_local_gives_an_outcome_an_entry_and_leaves_nothing_behind(tmp_path: Path, own_tmp: Path) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.corrupt(tmp_path / "b.tflite")]
    told: list[tuple[str, float]] = []
    outcomes = open_device("local").run(
        job_of(tmp_path, artifacts), lambda text, share: told.append((text, share))
    )
    good, bad = outcomes
    assert good.error == ""
    assert good.measurement is not None
    assert len(good.measurement.samples_ns) >= 20
    assert set(good.measurement.blocks) == {0, 1}
    assert list(good.measurement.starts_ns) == sorted(good.measurement.starts_ns)
    assert len(good.top) == IMAGES * 4  # four classes: no five likeliest
    assert (good.runtime, good.runtime_version) == ("ai-edge-litert", "2.3.0")
    assert bad.measurement is None
    assert "not a valid Flatbuffer" in bad.error
    assert "a: block 1 of 2" in [text for text, _ in told]
    assert list(own_tmp.iterdir()) == []
    assert agents_left(str(own_tmp)) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "newer",
            "the runtime lacks operator FULLY_CONNECTED version 99: it is older than the file; try:",
        ),
        ("custom", "the file has the custom operator Magic, which LiteRT lacks: take a model without it"),
    ],
)
def test_an_operator_that_the_runtime_lacks_is_named(tmp_path: Path, kind: str, words: str) -> None:
    artifacts = [tiny_models.strange(tmp_path / "a.tflite", kind), tiny_models.tflite(tmp_path / "b.tflite")]
    strange, good = open_device("local").run(job_of(tmp_path, artifacts), quiet)
    assert strange.error.startswith(words)
    assert "\n" not in strange.error
    assert good.error == ""


@on_linux
def test_an_agent_killed_in_the_middle_leaves_what_it_measured(tmp_path: Path, own_tmp: Path) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.tflite(tmp_path / "b.tflite", seed=1)]

    def kill_in_the_second_block(text: str, share: float) -> None:
        if text == "a: block 2 of 2":
            (pid,) = children()
            os.kill(pid, signal.SIGKILL)

    job = job_of(tmp_path, artifacts, seconds=2.0)
    outcomes = open_device("local").run(job, kill_in_the_second_block)
    for outcome in outcomes:
        assert outcome.error == "the agent was cut off (SIGKILL)"
        assert outcome.measurement is not None
        assert set(outcome.measurement.blocks) == {0}
        assert len(outcome.measurement.samples_ns) >= 10
    assert agents_left(str(own_tmp)) == []
    assert list(own_tmp.iterdir()) == []


@on_linux
@pytest.mark.parametrize("error", [KeyboardInterrupt, DeviceError])
def test_an_interrupted_visit_takes_its_processes_along(
    tmp_path: Path, own_tmp: Path, error: type[BaseException]
) -> None:
    seen: list[int] = []

    def interrupt(text: str, share: float) -> None:
        if "block" in text:
            seen.extend(agents(str(own_tmp)))
            raise error

    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.tflite(tmp_path / "b.tflite", seed=1)]
    with pytest.raises(error):
        open_device("local").run(job_of(tmp_path, artifacts, seconds=60.0), interrupt)
    assert len(seen) == 3  # the agent and two workers were there
    assert agents_left(str(own_tmp)) == []
    assert list(own_tmp.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_what_was_measured_before_an_interrupt_is_kept(tmp_path: Path, stop: BaseException) -> None:
    def interrupt(text: str, share: float) -> None:
        if text == "a: block 2 of 2":
            raise stop

    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.tflite(tmp_path / "b.tflite", seed=1)]
    with pytest.raises(Interrupted) as caught:
        open_device("local").run(job_of(tmp_path, artifacts), interrupt)
    assert caught.value.__cause__ is stop
    for outcome in caught.value.outcomes:
        assert outcome.error == "interrupted"
        assert outcome.measurement is not None
        assert set(outcome.measurement.blocks) == {0}
        assert len(outcome.measurement.samples_ns) >= 10


def fake_outcomes(folder: Path, address: str = "fake://pi5", threads: int = 1, precision: str = "fp32") -> Outcome:
    model = folder / "any.tflite"
    model.write_bytes(b"no model at all")
    artifact = tiny_models.artifact_of(model, "tflite", dtype="uint8", shape=(1, 8, 8, 3))
    artifact = replace(artifact, size_bytes=4_000_000, precision=precision)
    job = job_of(folder, [artifact])
    job = replace(job, samples=200, entries=(replace(job.entries[0], threads=threads),))
    (outcome,) = open_device(address).run(job, quiet)
    return outcome


def median_ns(outcome: Outcome) -> float:
    assert outcome.measurement is not None
    return float(np.median(outcome.measurement.samples_ns))


def test_a_fake_device_repeats_itself_and_needs_no_model(tmp_path: Path) -> None:
    first = fake_outcomes(tmp_path)
    assert fake_outcomes(tmp_path) == first
    assert first.measurement is not None
    assert len(first.measurement.samples_ns) >= 200
    top = np.array(first.top).reshape(IMAGES, 4)
    assert (np.sort(top, axis=1) == np.arange(4)).all()
    # 1 million weights of 10 ns, and 50 us.
    assert median_ns(first) == pytest.approx(10.05e6, rel=0.02)


def test_a_fake_device_follows_profile_threads_and_precision(tmp_path: Path) -> None:
    base = median_ns(fake_outcomes(tmp_path))
    assert median_ns(fake_outcomes(tmp_path, "fake://pi4")) > 2 * base
    assert median_ns(fake_outcomes(tmp_path, threads=4)) < base / 2
    assert median_ns(fake_outcomes(tmp_path, precision="fp16-qat")) == pytest.approx(2 * base, rel=0.02)
    assert median_ns(fake_outcomes(tmp_path, precision="int8")) == pytest.approx(4 * 0.45 * base, rel=0.03)


def test_nothing_from_a_fake_device_counts(tmp_path: Path) -> None:
    outcome = fake_outcomes(tmp_path)
    assert outcome.measurement is not None
    assert judge(outcome.measurement, outcome.telemetry, outcome.notes).reasons == (
        "fake device: made-up numbers",
    )
    assert open_device("fake://pi5").info.fake
    json.dumps(outcome.top)  # plain numbers, as a result file needs


def test_an_unknown_fake_device_is_named_with_the_choices() -> None:
    with pytest.raises(
        UsageError, match="unknown fake device 'pi6'; choose from pi4, pi5, pixel; did you mean 'pi"
    ):
        open_device("fake://pi6")
    with pytest.raises(UsageError, match="unknown fake device ''"):
        open_device("fake")
