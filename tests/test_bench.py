"""From artifacts and images to result files: inputs as each file takes them, checks, failures, interruption."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit import files, inputs, result
from edgekit.artifact import Artifact, TensorSpec
from edgekit.bench import bench, sweep
from edgekit.device import BenchJob, Outcome, Progress, open_device
from edgekit.errors import ArtifactError, DataError, DeviceError, EdgekitError, UsageError
from edgekit.measure import Measurement
from edgekit.preprocess import Pixels, Preprocess
from edgekit.recipe import BenchSpec
from edgekit.result import DeviceInfo
from edgekit.visit import Images
from tests import tiny_models

SHORT = BenchSpec(samples=20, seconds=0.1, blocks=2, warmup=2, warmup_seconds=0.0)
COUNT = 30
TRUTH = tuple(i % 4 for i in range(COUNT))


def read(preprocess: Preprocess) -> Pixels:
    return tiny_models.pixels(COUNT, side=preprocess.height)


IMAGES = Images(name="noise/val", images_sha256="ab" * 32, truth=TRUTH, classes=tiny_models.LABELS, read=read)


def quiet(text: str, share: float) -> None:
    """Progress that nobody watches."""


@dataclass
class Stub:
    """A device that keeps its job and the inputs, and answers what it was told to."""

    errors: Mapping[str, str] = field(default_factory=dict)
    info: DeviceInfo = field(
        default=DeviceInfo(address="stub", model="stub", cpu="stub", architecture="none", cores=4)
    )
    runtimes: Mapping[str, str] = field(default_factory=lambda: {"tflite": "stub 1", "onnx": "stub 1"})
    jobs: list[BenchJob] = field(default_factory=list)
    seen: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        return ""

    def wait(self, limit_s: float, progress: Progress) -> None:
        """Nobody else is there."""

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        self.jobs.append(job)
        outcomes = []
        for entry in job.entries:
            values = np.load(entry.inputs)
            self.seen[entry.artifact.name] = values
            measurement = Measurement(
                samples_ns=(1000,) * 200, starts_ns=tuple(range(200)), blocks=(0,) * 200, load_ms=1.0, first_ms=1.0
            )
            error = self.errors.get(entry.artifact.name, "")
            outcomes.append(
                Outcome(
                    measurement=None if error == "does not load" else measurement,
                    runtime="stub",
                    runtime_version="1",
                    delegate="none",
                    top=(1, 0) * len(values) if entry.predict and not error else (),
                    notes=("a doubt",),
                    error=error,
                )
            )
        return tuple(outcomes)

    def close(self) -> None:
        """Nothing is open."""


def described(folder: Path, name: str, **changes: Any) -> Artifact:
    """An artifact for devices that load nothing."""
    path = folder / f"{name}.tflite"
    path.write_bytes(name.encode())
    artifact = tiny_models.artifact_of(path, "tflite", dtype="uint8", shape=(1, 8, 8, 3))
    return replace(artifact, **changes)


def run(
    artifacts: Sequence[Artifact], device: Any, out: Path, *, images: Images | None = IMAGES, **options: Any
) -> list[result.Result]:
    return bench(artifacts, device, SHORT, out, images=images, progress=quiet, **options)


def test_real_files_are_measured_and_written(tmp_path: Path) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.onnx(tmp_path / "b.onnx", seed=3)]
    shares: list[float] = []
    out = tmp_path / "results"
    found = bench(
        artifacts,
        open_device("local"),
        SHORT,
        out,
        images=IMAGES,
        progress=lambda text, share: shares.append(share),
    )
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "b.json"]
    assert [result.read(out / f"{r.name}.json") for r in found] == [
        replace(r, artifact=replace(r.artifact, path=Path())) for r in found
    ]
    assert shares[-1] == 1.0
    a, b = found
    assert a.visit == b.visit
    assert a.created.endswith("+00:00")
    assert a.settings.input == "noise/val"
    assert (b.settings.runtime, b.settings.delegate) == ("onnxruntime", "CPUExecutionProvider")
    for r, seed in ((a, 0), (b, 3)):
        logits = read(r.artifact.preprocess).reshape(COUNT, -1).astype(np.float32) @ tiny_models.weights(seed).T
        assert r.predictions is not None
        np.testing.assert_array_equal(r.predictions.top_NK, np.argsort(-logits, axis=1))
        assert r.predictions.truth == TRUTH
        assert r.predictions.correct(4) == COUNT
        assert len(r.measurement.samples_ns) >= 20


def test_without_images_the_input_is_noise_and_nothing_is_predicted(tmp_path: Path) -> None:
    device = Stub()
    (found,) = run([described(tmp_path, "a")], device, tmp_path / "out", images=None)
    assert found.settings.input == "noise"
    assert found.predictions is None
    assert not device.jobs[0].entries[0].predict
    values = device.seen["a"]
    assert values.shape == (32, 8, 8, 3)
    assert values.dtype == np.uint8
    assert len(np.unique(values)) > 200
    run([described(tmp_path, "a")], device, tmp_path / "out", images=None)
    np.testing.assert_array_equal(device.seen["a"], values)


def test_every_file_gets_the_inputs_that_it_takes(tmp_path: Path) -> None:
    preprocess = Preprocess(height=8, width=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

    def takes(name: str, shape: tuple[int, ...], dtype: str, is_: str, **quantized: Any) -> Artifact:
        spec = TensorSpec(name="x", shape=shape, dtype=dtype, **quantized)
        return described(tmp_path, name, input=spec, input_is=is_, preprocess=preprocess)

    nhwc, nchw = (1, 8, 8, 3), (1, 3, 8, 8)
    device = Stub()
    run(
        [
            takes("raw", nhwc, "uint8", "pixels"),
            takes("twin", nhwc, "uint8", "pixels"),
            takes("normal", nhwc, "float32", "normalized"),
            takes("first", nchw, "float32", "normalized"),
            takes("int8", nhwc, "int8", "normalized", scale=0.02, zero_point=-3),
            takes("shifted", nhwc, "int8", "pixels", scale=1.0, zero_point=-128),
        ],
        device,
        tmp_path / "out",
    )
    raw, seen = read(preprocess), device.seen
    normal = (raw.astype(np.float32) / 255 - np.array([0.5, 0.4, 0.3], np.float32)) / np.array(
        [0.2, 0.3, 0.4], np.float32
    )
    np.testing.assert_array_equal(seen["raw"], raw)
    assert seen["normal"].dtype == seen["first"].dtype == np.float32
    np.testing.assert_allclose(seen["normal"], normal, atol=1e-6)
    np.testing.assert_array_equal(seen["first"], seen["normal"].transpose(0, 3, 1, 2))
    assert seen["int8"].dtype == np.int8
    expected = np.clip(np.rint(seen["normal"] / 0.02) - 3, -128, 127)
    np.testing.assert_array_equal(seen["int8"], expected)
    np.testing.assert_array_equal(seen["shifted"], raw.astype(np.int16) - 128)
    entries = {entry.artifact.name: entry.inputs for entry in device.jobs[0].entries}
    assert entries["raw"] == entries["twin"]
    assert len(set(entries.values())) == 5
    assert not any(path.exists() for path in entries.values())


def test_pictures_are_converted_in_pieces_as_they_would_be_whole(tmp_path: Path) -> None:
    artifact = described(
        tmp_path, "a", input=TensorSpec(name="x", shape=(1, 8, 8, 3), dtype="float32"), input_is="normalized"
    )
    pixels = tiny_models.pixels(2 * inputs.CHUNK + 5)
    inputs.write(artifact, pixels, tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), inputs.convert(pixels, artifact))


def test_several_thread_counts_give_a_file_each(tmp_path: Path) -> None:
    device = Stub()
    artifacts = [described(tmp_path, "a"), described(tmp_path, "b", labels=("dog", "cat", "bee", "ant"))]
    found = run(artifacts, device, tmp_path / "out", threads=(1, 4, 1))
    assert [(r.name, r.settings.threads) for r in found] == [("a", 1), ("a", 4), ("b", 1), ("b", 4)]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a-t1.json", "a-t4.json", "b-t1.json", "b-t4.json"]
    truths = [r.predictions.truth[:4] for r in found if r.predictions]
    assert truths == [(0, 1, 2, 3)] * 2 + [(3, 2, 1, 0)] * 2  # the data's classes in each file's own order


def test_classes_that_a_file_does_not_know_are_named(tmp_path: Path) -> None:
    images = replace(IMAGES, classes=("ant", "bee", "cow", "dog"))
    with pytest.raises(
        DataError, match=r"noise/val has classes that a\.tflite does not know: 'cow'; it knows 'ant'"
    ):
        run([described(tmp_path, "a")], Stub(), tmp_path / "out", images=images)


def test_labels_must_fit_the_scores_and_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tflite gives 4 scores, but has 3 labels"):
        run([described(tmp_path, "a", labels=("ant", "bee", "cat"))], Stub(), tmp_path / "out")
    twice = described(tmp_path, "a", labels=("ant", "bee", "cat", "ant"))
    images = replace(IMAGES, classes=("ant", "bee"), truth=(0, 1) * 15)
    with pytest.raises(DataError, match="several labels called 'ant'"):
        run([twice], Stub(), tmp_path / "out", images=images)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"path": Path("/nowhere/a.tflite")}, ArtifactError, "no such file: /nowhere/a.tflite"),
        (
            {"target": "coreml"},
            DeviceError,
            r"cannot run a\.tflite: coreml files run on a Mac; --device reference .*; it runs onnx .*tflite",
        ),
        ({"input": TensorSpec(name="x", shape=(1, 8, 8), dtype="uint8")}, ArtifactError, r"shape \(1, 8, 8\)"),
        (
            {"input": TensorSpec(name="x", shape=(1, 9, 8, 3), dtype="uint8")},
            ArtifactError,
            "8x9, but .* makes 8x8",
        ),
        ({"input": TensorSpec(name="x", shape=(1, 8, 8, 3), dtype="complex")}, ArtifactError, "takes complex"),
        ({"input": TensorSpec(name="x", shape=(1, 8, 8, 3), dtype="int8")}, ArtifactError, "scale and zero point"),
    ],
)
def test_what_cannot_work_is_found_before_the_visit(
    tmp_path: Path, changes: dict[str, Any], error: type[EdgekitError], message: str
) -> None:
    device = Stub()
    with pytest.raises(error, match=message):
        run([described(tmp_path, "ok"), described(tmp_path, "a", **changes)], device, tmp_path / "out")
    assert device.jobs == []
    assert not (tmp_path / "out").exists()


def test_nothing_to_do_and_equal_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one artifact"):
        run([], Stub(), tmp_path / "out")
    (tmp_path / "b").mkdir()
    same = [described(tmp_path, "a"), described(tmp_path / "b", "a")]
    with pytest.raises(UsageError, match=r"a\.tflite, .*b/a\.tflite have one name"):
        run(same, Stub(), tmp_path / "out")
    with pytest.raises(DataError, match="noise/val holds no images"):
        run(same[:1], Stub(), tmp_path / "out", images=replace(IMAGES, truth=()))
    with pytest.raises(DataError, match="30 pictures, but 4 true classes"):
        run(same[:1], Stub(), tmp_path / "out", images=replace(IMAGES, truth=(0, 1, 2, 3)))


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000))
    with pytest.raises(DataError, match=r"take 5\.76 kB, but .* has 5 kB free: .*TMPDIR"):
        run([described(tmp_path, "a")], Stub(), tmp_path / "out")


def test_what_fails_is_named_after_the_others_were_written(tmp_path: Path) -> None:
    artifacts = [described(tmp_path, name) for name in ("a", "b", "c")]
    out = tmp_path / "out"
    with pytest.raises(DeviceError) as caught:
        run(artifacts, Stub(errors={"a": "does not load", "c": "the link was lost"}), out)
    assert str(caught.value) == "2 of 3 failed on stub:\n  a: does not load\n  c: the link was lost"
    assert sorted(path.name for path in out.iterdir()) == ["b.json", "partial"]
    # What it measured is kept, and cannot be taken for a whole result.
    partial = result.read(out / "partial" / "c.json")
    assert len(partial.measurement.samples_ns) == 200
    assert partial.predictions is None
    assert "cut off: the link was lost" in partial.validity.reasons
    run(artifacts, Stub(), out)
    assert sorted(path.name for path in files.members(out)) == ["a.json", "b.json", "c.json"]


def test_doubts_of_the_device_make_a_result_invalid(tmp_path: Path) -> None:
    device = Stub()
    device.info = replace(device.info, emulated=True)
    (found,) = run([described(tmp_path, "a")], device, tmp_path / "out")
    assert found.notes == ("a doubt", "an emulated device: its latency says nothing about a real one")
    assert not found.validity.valid
    (made_up,) = run([described(tmp_path, "a")], open_device("fake://pi5"), tmp_path / "out")
    assert made_up.device.fake
    assert made_up.validity.reasons == ("fake device: made-up numbers",)
    assert made_up.predictions is not None
    assert made_up.predictions.k == 4


def test_an_interrupted_bench_keeps_what_was_measured(tmp_path: Path) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.tflite(tmp_path / "b.tflite", seed=1)]
    out = tmp_path / "out"

    def interrupt(text: str, share: float) -> None:
        if text == "b: block 2 of 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(artifacts, open_device("local"), SHORT, out, images=IMAGES, progress=interrupt)
    assert sorted(path.relative_to(out).as_posix() for path in files.members(out)) == [
        "partial/a.json",
        "partial/b.json",
    ]
    found = [result.read(out / f"partial/{name}.json") for name in "ab"]
    assert [set(one.measurement.blocks) for one in found] == [{0, 1}, {0}]
    assert all("cut off: interrupted" in one.validity.reasons for one in found)


def test_more_threads_than_cores_are_refused(tmp_path: Path) -> None:
    device = Stub()
    with pytest.raises(UsageError, match=r"8 threads: stub has 4 cores, .*: --threads 4 at most"):
        run([described(tmp_path, "a")], device, tmp_path / "out", threads=(1, 8))
    assert device.jobs == []


def test_one_file_sweeps_as_far_as_there_are_cores(tmp_path: Path) -> None:
    one, two = [described(tmp_path, "a")], [described(tmp_path, "a"), described(tmp_path, "b")]
    assert [sweep(one, cores) for cores in (1, 2, 3, 4, 9)] == [(1,), (1, 2), (1, 2), (1, 2, 4), (1, 2, 4)]
    assert sweep(two, 8) == (1,)


SCRIPT = """
import sys
from pathlib import Path
from edgekit.bench import bench
from edgekit.device import open_device
from edgekit.recipe import BenchSpec
from tests import tiny_models

folder = Path(sys.argv[1])
artifacts = [tiny_models.tflite(folder / "a.tflite"), tiny_models.tflite(folder / "b.tflite", seed=1)]
spec = BenchSpec(samples=20, seconds=100.0, blocks=2, warmup=2, warmup_seconds=0.0)
progress = lambda text, share: print(text, flush=True)
bench(artifacts, open_device("local"), spec, folder / "out", images=None, progress=progress)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_bench_leaves_no_file_and_no_process(tmp_path: Path, way: signal.Signals) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        assert process.stdout is not None
        assert any("block 1" in line for line in process.stdout)
        assert len(_processes(temporary)) == 3  # the agent and two workers
        process.send_signal(way)
        process.wait(timeout=20)
        assert process.stderr is not None
        assert ("KeyboardInterrupt" in process.stderr.read()) == (way is signal.SIGINT)
    end = time.monotonic() + 10
    while (left := _processes(temporary)) and time.monotonic() < end:
        time.sleep(0.02)
    assert left == []
    assert not (tmp_path / "out").exists()
    if way is signal.SIGINT:
        assert list(temporary.iterdir()) == []


def _processes(folder: Path) -> list[str]:
    """Agents and workers that run from a folder under *folder*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder).encode() in command and b"agent.py" in command:
            found.append(path.parent.name)
    return found
