"""`edgekit bench` of Core ML files without a Mac: accuracy by edgekit's own execution of them, no latency."""

import json
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from edgekit import convert, data, plugins, report, result
from edgekit.artifact import Artifact
from edgekit.bench import PLAIN, bench
from edgekit.benchstage import BenchStage
from edgekit.cli import main
from edgekit.device import Entry, Progress, open_device
from edgekit.errors import DeviceError, UsageError
from edgekit.export import ExportSource, PixelClassifier
from edgekit.preprocess import Preprocess
from edgekit.recipe import BenchSpec, Variant
from edgekit.runs import Run
from edgekit.visit import Images
from tests.test_convert import patches

SMALL = Preprocess(height=8, width=8)
SPEC = BenchSpec(samples=3, seconds=0.0, blocks=1, warmup=1, warmup_seconds=0.0)
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox")
COUNT = 30


def quiet(text: str, share: float) -> None: ...


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportSource, list[Artifact]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, len(LABELS)))
    source = ExportSource(model=PixelClassifier(model, SMALL).eval(), preprocess=SMALL, labels=LABELS)
    variants = [Variant(target="coreml", precision=name) for name in ("fp16", "pal4")]
    out = tmp_path_factory.mktemp("files")
    return source, convert.convert(source, variants, patches(16, SMALL, seed=0), out, quiet)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reference keeps what it computed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edgekit/reference"


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were executed, in order."""
    module, found = plugins.load("devices", "reference"), list[str]()
    top = module._top

    def counted(entry: Entry, *rest: Any) -> Any:
        found.append(entry.artifact.name)
        return top(entry, *rest)

    monkeypatch.setattr(module, "_top", counted)
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures in folders by class."""
    for number, pixels in enumerate(patches(COUNT, SMALL, seed=5)):
        folder = tmp_path / "photos" / LABELS[number % len(LABELS)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


def labelled(photos: Path) -> Images:
    evaluation = data.evaluation(str(photos), SMALL, "all", confirm=lambda _: False)
    return Images(
        name="photos",
        images_sha256=evaluation.split.images_sha256,
        truth=evaluation.split.labels,
        classes=evaluation.classes,
        read=lambda _: evaluation.split.read(),
    )


def expected(source: ExportSource, pixels: npt.NDArray[np.uint8]) -> list[int]:
    return [int(one) for one in source.logits(pixels).argmax(1)]


def test_bench_gives_top1_without_a_device_named(
    files: tuple[ExportSource, list[Artifact]],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if sys.platform == "darwin":
        pytest.skip("on a Mac Core ML itself runs")
    source, artifacts = files
    out = tmp_path / "results"
    words = ["bench", *(str(one.path) for one in artifacts), "--data", str(photos), "--out", str(out), "--quick"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "accuracy of coreml-fp16, coreml-pal4 by edgekit's reference execution, no latency" in told.err
    assert "edgekit's execution gives accuracy and no latency" in " ".join(told.out.split())
    found = result.read(out / "coreml-fp16.json")
    assert found.device.reference
    assert json.loads((out / "coreml-fp16.json").read_text())["device"]["reference"] is True
    assert found.measurement.count == 0
    assert not found.validity.valid
    assert found.predictions is not None
    assert len(found.predictions.truth) == COUNT
    in_order = np.stack(
        [
            np.asarray(Image.open(path))
            for label in sorted(LABELS)
            for path in sorted((photos / label).glob("*.png"))
        ]
    )
    assert found.predictions.top_NK[:, 0].tolist() == expected(source, in_order)


def test_without_data_there_is_nothing_to_measure(
    files: tuple[ExportSource, list[Artifact]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if sys.platform == "darwin":
        pytest.skip("on a Mac Core ML itself runs")
    assert main(["bench", str(files[1][0].path), "--out", str(tmp_path / "out")]) == 2
    assert "Core ML runs on Apple systems only: give --data DIR for the accuracy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reference_results_are_never_ranked(
    files: tuple[ExportSource, list[Artifact]], photos: Path, tmp_path: Path
) -> None:
    images = labelled(photos)
    results = bench(files[1], open_device("reference"), SPEC, tmp_path / "out", images=images, progress=quiet)
    for allow in (False, True):
        [group] = report.compare(results, allow_invalid=allow).groups
        assert group.choice.pick == ""
        assert group.choice.pareto == ()
        assert {row.left_out for row in group.rows} == {"executed by edgekit, not timed"}
        assert all(row.latency is None for row in group.rows)
        assert all(len(row.reasons) == 1 and not row.valid for row in group.rows)
        assert group.rows[1].speed_words == "no claim: not timed"


def test_a_damaged_file_fails_and_the_other_runs(
    files: tuple[ExportSource, list[Artifact]], photos: Path, tmp_path: Path
) -> None:
    good, bad = files[1]
    shutil.copytree(bad.path, tmp_path / "bad.mlpackage")
    (tmp_path / "bad.mlpackage/Data/com.apple.CoreML/model.mlmodel").write_bytes(b"\x00garbage")
    images = labelled(photos)
    damaged = replace(bad, path=tmp_path / "bad.mlpackage", file="bad.mlpackage")
    with pytest.raises(
        DeviceError, match=r"1 of 2 failed on reference:\n  bad: .* is not a sound Core ML package"
    ):
        bench([good, damaged], open_device("reference"), SPEC, tmp_path / "out", images=images, progress=quiet)
    assert (tmp_path / "out/coreml-fp16.json").is_file()


def test_the_reference_takes_nothing_behind_its_name() -> None:
    with pytest.raises(UsageError, match="the device reference takes nothing behind its name, but got 'x'"):
        open_device("reference://x")


def test_a_file_is_executed_once_for_the_same_images(
    files: tuple[ExportSource, list[Artifact]], photos: Path, tmp_path: Path, kept: Path, executed: list[str]
) -> None:
    images, device = labelled(photos), open_device("reference")
    half = replace(
        images,
        images_sha256="0" * 64,
        truth=images.truth[: COUNT // 2],
        read=lambda one: images.read(one)[: COUNT // 2],
    )

    def predictions(given: Images) -> list[tuple[int, ...]]:
        found = bench(files[1], device, SPEC, tmp_path / "out", images=given, progress=quiet)
        return [tuple(one.predictions.top) for one in found if one.predictions]

    first = predictions(images)
    assert executed == ["coreml-fp16", "coreml-pal4"]
    assert predictions(images) == first
    assert executed == ["coreml-fp16", "coreml-pal4"]
    assert predictions(half) == [top[: len(top) // 2] for top in first]
    assert len(executed) == 4
    for one in kept.iterdir():
        one.write_text("[1, 2")  # as after a crash of the machine
    assert predictions(images) == first
    assert len(executed) == 6


def test_a_run_measures_core_ml_by_reference_where_no_device_runs_it(
    files: tuple[ExportSource, list[Artifact]], photos: Path, tmp_path: Path, executed: list[str]
) -> None:
    if sys.platform == "darwin":
        pytest.skip("on a Mac Core ML itself runs")
    said: list[str] = []

    class Listener:
        def say(self, text: str) -> None:
            said.append(text)

        def bar(self, stage: str) -> AbstractContextManager[Progress]:
            return nullcontext(quiet)

        def confirm(self, question: str) -> bool:
            return False

    def stage() -> BenchStage:
        return BenchStage(
            run=Run(folder=tmp_path / "run"),
            spec=replace(SPEC, threads=(1, 2)),  # of which a reference has one
            listener=Listener(),
            train_key="trained",
            images=lambda: labelled(photos),
            method=PLAIN,
        )

    Run(folder=tmp_path / "run").begin("small", "photos", "")
    stage().measure(files[1], ["local"])
    assert said == [
        "bench: coreml-fp16 is not measured: local cannot run coreml",
        "bench: coreml-pal4 is not measured: local cannot run coreml",
        "bench: nothing to measure on local",
        "bench: accuracy of coreml-fp16, coreml-pal4 by edgekit's reference execution, no latency",
        "bench: 2 files on reference",
    ]
    found = result.read(tmp_path / "run/results/reference/coreml-fp16.json")
    assert found.device.reference
    assert found.predictions is not None
    assert len(found.predictions.truth) == COUNT
    stage().measure(files[1], ["local"])
    assert said[-1] == "bench: reference done already"
    assert len(executed) == 2
