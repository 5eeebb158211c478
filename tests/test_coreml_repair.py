"""A budget of accuracy for Core ML files: what is tried, in which order, and what the file then is."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import artifact as artifacts
from edgekit import convert, mil
from edgekit.artifact import Artifact, Calibration
from edgekit.coreml import program
from edgekit.errors import UsageError
from edgekit.export import CalibrationImages, ExportSource, Labelled, PixelClassifier
from edgekit.preprocess import Preprocess
from edgekit.recipe import Variant
from tests.test_convert import LABELS, patches

SMALL = Preprocess(height=8, width=8)
COUNT = 400


def quiet(text: str, share: float) -> None: ...


@cache
def source() -> ExportSource:
    """Three dense layers whose own answers are the truth: any other answer is a loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Flatten(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 6))
        )
    images, held_out = patches(32, SMALL, seed=1), patches(COUNT, SMALL, seed=2)
    record = Calibration(images_sha256="0" * 64, count=32, method="min-max", seed=0)
    plain = ExportSource(model=PixelClassifier(model, SMALL).eval(), preprocess=SMALL, labels=LABELS)
    truth = plain.logits(held_out).argmax(1).astype(np.int64)
    return ExportSource(
        model=plain.model,
        preprocess=SMALL,
        labels=LABELS,
        calibrate=lambda spec: CalibrationImages(pixels_NHWC=images, record=record),
        held_out=lambda: Labelled(pixels_NHWC=held_out, truth=truth, images_sha256="1" * 64),
    )


def made(variant: Variant, out: Path) -> Artifact:
    [one] = convert.convert(source(), [variant], patches(16, SMALL, seed=3), out, quiet)
    return one


def drop(one: Artifact) -> float:
    assert source().held_out is not None
    held_out = source().held_out()  # type: ignore[misc]
    answers = convert.converter("coreml").predict(one, held_out.pixels_NHWC).argmax(1)
    return 100 * float((answers != held_out.truth).mean())


def compressed(one: Artifact) -> list[str]:
    layers = program.linear_layers(mil.load(one.path))
    return [layer.name for layer in layers if layer.inputs["weight"].op.op_type != "const"]


def test_a_budget_that_is_met_at_once_changes_nothing(tmp_path: Path) -> None:
    one = made(Variant(target="coreml", precision="w8", max_drop=5.0), tmp_path)
    assert one.repair is not None
    assert one.repair.met
    assert [step.tried for step in one.repair.steps] == ["w8 as made"]
    assert one.repair.float_layers == ()
    assert drop(one) == pytest.approx(one.repair.drop)
    assert artifacts.read(one.path).repair == one.repair


def test_a_palette_is_repaired_within_its_budget(tmp_path: Path) -> None:
    plain = made(Variant(target="coreml", precision="pal4"), tmp_path / "plain")
    budget = drop(plain) / 2
    assert budget > 0
    one = made(Variant(target="coreml", precision="pal4", max_drop=budget), tmp_path / "repaired")
    assert one.repair is not None
    assert [step.tried for step in one.repair.steps][:2] == [
        "pal4 as made",
        "a table for every 8 outputs (iOS 18)",
    ]
    assert one.repair.met
    assert drop(one) == pytest.approx(one.repair.drop)
    assert drop(one) <= budget
    assert plain.size_bytes < one.size_bytes
    assert one.file == "coreml-pal4.mlpackage"
    if one.repair.repairs:
        assert mil.target(mil.load(one.path)) == "iOS18"
    assert not set(compressed(one)) & set(one.repair.float_layers)


def test_a_budget_that_cannot_be_met_says_so(tmp_path: Path) -> None:
    one = made(Variant(target="coreml", precision="pal2", max_drop=0.0, deploy="iOS16"), tmp_path)
    assert one.repair is not None
    assert not one.repair.met
    assert any("the budget is NOT met" in note for note in one.notes)
    # iOS16 has one table a layer
    assert "a table for every 8 outputs (iOS 18)" not in [step.tried for step in one.repair.steps]
    assert mil.target(mil.load(one.path)) == "iOS16"
    assert compressed(one)  # half of what is saved stays saved
    assert drop(one) == pytest.approx(one.repair.drop)


def test_layers_that_are_named_stay_in_fp16(tmp_path: Path) -> None:
    names = compressed(made(Variant(target="coreml", precision="w8"), tmp_path / "all"))
    one = made(Variant(target="coreml", precision="w8", keep_float=(names[0],)), tmp_path / "kept")
    assert compressed(one) == names[1:]
    assert any(f"as asked: {names[0]}" in note for note in one.notes)
    with pytest.raises(UsageError, match=rf"the model has no layer 'modle_1'; .*{names[0]}"):
        made(Variant(target="coreml", precision="w8", keep_float=("modle_1",)), tmp_path / "wrong")
