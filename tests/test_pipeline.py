"""The whole way of a small recipe, with the real tools; and that an interruption anywhere loses nothing."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit import pipeline, recipe, result, runs
from edgekit.errors import UsageError
from edgekit.preprocess import preset
from edgekit.recipe import ModelSpec
from edgekit.runs import Run
from edgekit.schema import decode, encode
from edgekit.trainspec import FinetuneSpec, TrainSpec

ROOT = Path(__file__).parent.parent

SMALL = """
[model]
name = "mobilenet_v2"
width = 0.1
stem_stride = 2
[data]
source = "digits"
[data.preprocess]
height = 32
width = 32
resize = "squash"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[train]
epochs = {epochs}
warmup_epochs = 0
[train.augment]
flip = false
[[variant]]
target = "tflite"
precision = "fp32"
[[variant]]
target = "tflite"
precision = "int8"
[bench]
samples = 200
seconds = {seconds}
warmup_seconds = 0.1
"""


class Silent:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def bar(self, stage: str) -> "Silent":
        return self

    def __enter__(self) -> Callable[[str, float], None]:
        return lambda *_: None

    def __exit__(self, *_: object) -> None: ...

    def confirm(self, question: str) -> bool:
        return False


def small(folder: Path, *, epochs: int = 2, seconds: float = 0.5) -> Path:
    path = folder / "small.toml"
    path.write_text(SMALL.format(epochs=epochs, seconds=seconds))
    return path


def hidden(folder: Path) -> list[str]:
    """What a cut-off write would leave under another name."""
    return [str(path) for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finished")
    run, comparison = pipeline.run(str(small(folder)), listener=Silent(), out=folder / "run")
    assert comparison is not None
    assert {row.name for group in comparison.groups for row in group.rows} == {"tflite-fp32", "tflite-int8"}
    return run


def test_a_run_leaves_every_stage_on_disk(finished: Run) -> None:
    names = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    assert {
        "recipe.toml",
        "run.json",
        "train/best/model.safetensors",
        "train/best/checkpoint.json",
        "train/metrics.jsonl",
        "artifacts/tflite-fp32.tflite",
        "artifacts/tflite-fp32.tflite.json",
        "artifacts/tflite-int8.tflite",
        "results/local/tflite-fp32.json",
        "results/local/tflite-int8.json",
        "report.html",
    } <= names
    assert not hidden(finished.folder)


def test_accuracy_is_measured_with_the_shipped_file_on_the_held_out_images(finished: Run) -> None:
    found = result.read(finished.results("local") / "tflite-int8.json")
    assert found.predictions is not None
    assert len(found.predictions.truth) == 359
    assert found.predictions.dataset == "digits/val"
    assert found.artifact.calibration is not None
    assert found.artifact.calibration.count == 256
    assert len(found.measurement.samples_ns) >= 200
    assert sorted(set(found.measurement.blocks)) == [0, 1, 2, 3, 4]


def test_float_file_and_training_agree_on_the_accuracy(finished: Run) -> None:
    from edgekit import checkpoint

    found = result.read(finished.results("local") / "tflite-fp32.json")
    assert found.predictions is not None
    top1 = found.predictions.correct(1) / len(found.predictions.truth)
    assert top1 == pytest.approx(checkpoint.read(finished.checkpoint).metrics["val_top1"], abs=1e-9)


def test_a_second_run_skips_what_is_done(finished: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*.tflite")}
    listener = Silent()
    pipeline.run(str(finished.folder / "recipe.toml"), listener=listener, out=finished.folder)
    assert [line.partition(":")[0] for line in listener.said if "done already" in line] == [
        "train",
        "convert",
        "bench",
    ]
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*.tflite")}


def test_the_budget_of_the_recipe_decides_the_pick(finished: Run) -> None:
    path = finished.folder.parent / "budget.toml"
    path.write_text((finished.folder / "recipe.toml").read_text() + "[report]\nmax_size_bytes = 1000\n")
    _, comparison = pipeline.run(
        str(path), listener=Silent(), out=finished.folder, allow_invalid=True, command="edgekit run budget.toml"
    )
    assert comparison is not None
    assert "No ranked file meets the budget (at most 1 kB): the smallest is tflite-int8" in comparison.verdict
    text = finished.report.read_text()
    assert "meets the budget" in text
    assert "What takes the space" in text
    assert "<dd>edgekit run budget.toml</dd>" in text
    assert "max_size_bytes = 1000" in text, "the recipe stands on the page"


def test_force_redoes_one_stage(finished: Run) -> None:
    path = finished.results("local") / "tflite-fp32.json"
    before = result.read(path).created, path.stat().st_mtime_ns
    listener = Silent()
    pipeline.run(str(finished.folder / "recipe.toml"), listener=listener, out=finished.folder, force=["bench"])
    assert path.stat().st_mtime_ns > before[1]
    assert any(line.startswith("train: done already") for line in listener.said)


def test_another_training_does_not_replace_a_finished_one(finished: Run) -> None:
    text = (finished.folder / "recipe.toml").read_text().replace("epochs = 2", "epochs = 3")
    before = (finished.checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="--force train"):
        pipeline.run("small", text=text, listener=Silent(), out=finished.folder)
    assert (finished.checkpoint / "model.safetensors").read_bytes() == before
    assert runs.Run(folder=finished.folder).recipe().train.epochs == 2


def test_other_data_need_another_folder(finished: Run, tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    with pytest.raises(UsageError, match="is a run on the data digits"):
        pipeline.run(
            str(finished.folder / "recipe.toml"),
            data=str(tmp_path / "photos"),
            listener=Silent(),
            out=finished.folder,
        )


def test_a_changed_artifact_is_made_again(finished: Run) -> None:
    path = finished.artifacts / "tflite-int8.tflite"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    pipeline.run(str(finished.folder / "recipe.toml"), listener=Silent(), out=finished.folder, until="convert")
    assert path.read_bytes() == good


def test_a_run_is_held_against_a_second_one(finished: Run) -> None:
    with (
        finished.locked(),
        pytest.raises(UsageError, match=rf"in use by another edgekit \(process {os.getpid()}\)"),
    ):
        pipeline.run(str(finished.folder / "recipe.toml"), listener=Silent(), out=finished.folder)


def photos(folder: Path, count: int = 12) -> None:
    """Red and blue pictures of several sizes, in class folders."""
    rng = np.random.default_rng(0)
    for name, channel in (("blue things", 2), ("red", 0)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 90, (40 + number, 60, 3), np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")


def test_an_own_folder_goes_through_unchanged(tmp_path: Path) -> None:
    """Two classes: fewer than the five of top-5."""
    photos(tmp_path / "photos")
    run, comparison = pipeline.run(
        str(small(tmp_path, epochs=10)), data=str(tmp_path / "photos"), listener=Silent(), out=tmp_path / "run"
    )
    assert comparison is not None
    found = result.read(run.results("local") / "tflite-fp32.json")
    assert found.artifact.labels == ("blue things", "red")
    assert found.predictions is not None
    assert len(found.predictions.truth) == 4
    assert "blue things" in (run.artifacts / "tflite-fp32.tflite.json").read_text()


CIFAR = ROOT.parent / "shared" / "data" / "cifar10.tar.xz"


@pytest.mark.data
@pytest.mark.skipif(not CIFAR.is_file(), reason=f"no {CIFAR.name} in shared/data beside the checkout")
def test_real_photographs_go_through_unchanged(tmp_path: Path) -> None:
    """150 aeroplanes and 150 automobiles of CIFAR-10 (JPEG copy): better than a coin after 40 short epochs."""
    wanted = {"airplane": 150, "automobile": 150}
    with tarfile.open(CIFAR) as archive:
        for member in archive:
            name = Path(member.name).parent.name
            if member.isfile() and wanted.get(name):
                wanted[name] -= 1
                archive.extract(member, tmp_path, filter="data")
            if not any(wanted.values()):
                break
    run, comparison = pipeline.run(
        str(small(tmp_path, epochs=40)),
        data=str(tmp_path / "cifar" / "train"),
        listener=Silent(),
        out=tmp_path / "run",
    )
    assert comparison is not None
    found = result.read(run.results("local") / "tflite-int8.json")
    assert found.predictions is not None
    assert len(found.predictions.truth) == 60
    assert found.predictions.correct(1) > 33


def start(folder: Path, recipe_path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", "run", str(recipe_path), "--out", str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def cut_off(folder: Path, recipe_path: Path, when: Callable[[], bool], number: int) -> tuple[int, int, str]:
    """Start a run and send it a signal once *when* holds. Returns its id, exit status and stderr."""
    process = start(folder, recipe_path)
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the stage was never reached"
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    return process.pid, process.returncode, err


def living(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_an_interrupt_at_any_stage_leaves_a_run_that_the_same_command_finishes(tmp_path: Path) -> None:
    recipe_path, folder = small(tmp_path, epochs=4, seconds=3.0), tmp_path / "run"
    stages = (
        ("train", lambda: (folder / "train" / "state.pt").exists(), signal.SIGINT),
        ("train, killed", lambda: _epochs(folder) >= 2, signal.SIGKILL),
        ("convert", lambda: '"train"' in _text(folder / "run.json"), signal.SIGINT),
        ("bench", lambda: '"convert/tflite-int8"' in _text(folder / "run.json"), signal.SIGINT),
    )
    for stage, when, number in stages:
        session, status, err = cut_off(tmp_path, recipe_path, when, number)
        if number == signal.SIGINT:
            assert status == 130, (stage, err)
            assert "edgekit: interrupted; the same command goes on where it stopped" in err, stage
            assert "Traceback" not in err, stage
            assert not hidden(folder), stage
        time.sleep(0.5)
        assert not living(session), stage
        for path in folder.rglob("*.json"):
            json.loads(path.read_text())  # whole, whatever the moment
    (folder / "artifacts" / ".tflite-fp32.1.part.tflite").write_text("left by a killed process")
    last = start(tmp_path, recipe_path)
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert "train: done already" in err
    assert "convert: 2 files: done already" in err
    assert "report: " in out
    assert not hidden(folder)
    assert _epochs(folder) == 4
    whole, _ = pipeline.run(str(recipe_path), listener=Silent(), out=tmp_path / "whole", until="train")
    weights = [(run / "train/best/model.safetensors").read_bytes() for run in (folder, whole.folder)]
    assert weights[0] == weights[1], "interrupted twice, the training gives other weights"


def _epochs(folder: Path) -> int:
    return len(_text(folder / "train" / "metrics.jsonl").splitlines())


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_the_recipe_of_a_model_by_name_decodes() -> None:
    contract = preset("minus1to1", 96, 96)
    text = recipe.for_model(ModelSpec(name="mobilenet_v2", width=0.5), 'a "quoted" folder', contract, epochs=3)
    found = recipe.parse(text, "text")
    assert found.data.source == 'a "quoted" folder'
    assert found.model == ModelSpec(name="mobilenet_v2", width=0.5)
    assert found.data.preprocess == contract
    assert found.train == TrainSpec(epochs=3)
    tuned = recipe.parse(recipe.for_model(found.model, "x", contract, epochs=1, weights="imagenet"), "text")
    assert tuned.train.finetune == FinetuneSpec(weights="imagenet", freeze_epochs=0)


def test_a_later_edgekit_with_more_settings_knows_its_old_runs() -> None:
    """What a run was made from is hashed without defaults, so a new field with a default changes no hash."""
    spec = TrainSpec(epochs=3, momentum=0.9)
    assert encode(spec, defaults=False) == {"epochs": 3}
    assert decode(TrainSpec, encode(spec, defaults=False)) == spec
