"""A budget of accuracy for Core ML files: what is tried, in which order, and what the file then is."""

import gc
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import artifact as artifacts
from edgekit import convert, mil
from edgekit.artifact import Artifact, Calibration
from edgekit.calibrate.choose import Chosen
from edgekit.coreml import integers, layers, plan, program
from edgekit.coreml.repair import of_integers
from edgekit.errors import UsageError
from edgekit.export import CalibrationImages, ExportSource, Labelled, PixelClassifier
from edgekit.preprocess import Preprocess
from edgekit.recipe import Variant
from tests import guilty_models
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


# --- int8: activations --------------------------------------------------------------------------------


def operator(name: str, harm: float, weights: float, macs: float) -> integers.Operator:
    return integers.Operator(name=name, harm=harm, weights=weights, macs=macs)


def judged(*operators: integers.Operator) -> integers.Integers:
    return integers.Integers(ranges=Chosen(ranges={}, rules={}), operators=operators, stem="stem")


def test_operators_are_left_until_the_others_do_little() -> None:
    first, second = operator("first", 0.01, 0.001, 0.1), operator("second", 0.002, 0.001, 0.1)
    many = [operator(f"n{place}", 0.00009, 0.01, 0.01) for place in range(5)]
    assert sum(one.harm for one in many) < integers.ENOUGH
    assert judged(first, *many, second).left() == (first, second)
    assert judged(first, *many, second).left(keep=("first",)) == (second,)
    assert judged(*many).left() == ()
    assert judged(*many, *many).left() == ()  # together more than enough, but each of them little
    heavy = operator("heavy", 1.0, 0.06, 0.01)  # of the weights more than may be left
    large = operator("large", 1.0, 0.01, 0.2)
    assert judged(heavy, large, first, second).left() == (large,)
    assert integers.named((first, second)) == (
        "computed in fp16, 20.0 % of the products, by what int8 there does to the answers (nats): "
        "first (0.01), second (0.002)"
    )


def test_operators_may_go_to_fp16_up_to_half_of_the_network() -> None:
    found = of_integers(
        judged(
            *(operator(f"n{place}", 0.1 / (place + 1), 0.3, 0.3) for place in range(4)),
            *(operator("light", 0.0001, 0.1, 0.1), operator("no", 0, 0, 0)),
        ),
        keep=("n0",),
    )
    assert [one.name for one in found] == ["n1", "light"]  # n2 and n3 are too large beside n1
    assert found[0].cost == pytest.approx(0.61)


@pytest.mark.parametrize("fault", ["range", "weights"])
def test_the_operators_whose_int8_breaks_the_answers_go_to_fp16(
    fault: guilty_models.Fault, tmp_path: Path
) -> None:
    """A channel of layer 2 is a thousand times as large as others, or weights of layer 6 are."""
    broken = guilty_models.source(fault)
    images = guilty_models.images(64, seed=4)[0]
    variant = Variant(target="coreml", precision="int8", max_drop=1.0)
    [one] = convert.convert(broken, [variant], images, tmp_path, quiet)
    assert one.repair is not None
    first = one.repair.steps[0]
    assert (first.tried, first.drop > 10) == ("int8 as made", True)
    assert one.repair.met
    assert {"range": {"_4"}, "weights": {"_6"}}[fault] <= set(one.repair.float_layers)
    assert len(one.repair.float_layers) <= 3
    assert broken.held_out is not None
    held_out = broken.held_out()
    answers = convert.converter("coreml").predict(one, held_out.pixels_NHWC).argmax(1)
    found = 100 * float((answers == held_out.truth).mean())
    assert found == pytest.approx(100 * one.repair.float_top1 - one.repair.drop)


def test_a_program_in_memory_answers_as_its_package_does(tmp_path: Path) -> None:
    float_model = program.floats(source(), "fp16")
    pixels = patches(8, SMALL, seed=3)
    bench = layers.bench(source(), float_model, pixels)
    stored = plan.choose(bench.judge(plan.SCHEMES["w8"].encode)).stored
    assert len(stored) == 3

    def change(_: Any, function: Any) -> None:
        plan.store_(function, stored, correct_biases=True)

    with warnings.catch_warnings(action="ignore"):  # coremltools leaves its folder to the garbage collector
        program.edit(float_model, change, "iOS16").save(str(tmp_path / "x.mlpackage"))
        gc.collect()
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float()
    wanted = mil.reference(tmp_path / "x.mlpackage").logits(images)
    assert torch.equal(mil.Reference(program.changed(float_model, change, "iOS16")).logits(images), wanted)
