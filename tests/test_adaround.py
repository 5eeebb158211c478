"""Learned roundings: nearer to the float file than the nearest ones, and just what the quantizer writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit import calibrate, convert, flatbuffer
from edgekit.adaround import adaround
from edgekit.calibrate import Ranges
from edgekit.dissect import Array, File, constant, replace_constant_
from edgekit.equalize import correct_biases, restored
from edgekit.lower import lower
from edgekit.parity import sqnr_db
from edgekit.patches import Layer, draw, layers
from edgekit.preprocess import Pixels
from edgekit.quantize import quantize
from edgekit.quiet import quiet

SIDE = 16


class Network(nn.Module):
    """Every kind of layer: strided, dilated, grouped, depthwise with two outputs a channel, dense."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 32, 3, 2, 1, groups=16)
        self.grouped = nn.Conv2d(32, 24, 3, 1, 2, dilation=2, groups=4)
        self.wide = nn.Conv2d(24, 32, 1)
        self.gated = nn.Conv2d(32, 16, (3, 1), padding=(1, 0))
        self.last = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x / 64 - 2))
        x = F.relu6(self.depthwise(x))
        x = F.hardswish(self.grouped(x))
        x = F.silu(self.wide(x))
        logits: torch.Tensor = self.last(self.gated(x).mean((2, 3)))
        return logits


def pictures(count: int = 64, seed: int = 0) -> Pixels:
    return convert.noise((SIDE, SIDE, 3), count, seed)


class Case:
    """A float file, the ranges of its tensors, and what was learned."""

    def __init__(self, precision: str, zeros: float = 0.0) -> None:
        self.precision = precision
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            network = Network().eval()
            weight = network.wide.weight
            weight *= weight.abs() >= torch.quantile(weight.abs(), zeros)
            self.content = lower(network, (1, SIDE, SIDE, 3))
        observed = calibrate.observe(self.content, pictures())
        self.ranges: Ranges = calibrate.by_rule(observed, "min-max", 16 if precision == "int16x8" else 8).ranges
        self.rounded, self.learned = adaround(self.content, pictures(), self.int8)

    def int8(self, content: bytes) -> bytes:
        with quiet():
            made: bytes = quantize(content, self.precision, self.ranges)
        return made


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("int8")


@pytest.fixture(scope="module")
def fine() -> Case:
    """Where activations are exact, all of the error is the weights'."""
    return Case("int16x8")


def weights(content: bytes) -> dict[str, tuple[Array, Array]]:
    """Of each layer in integers its weights, and their scales."""
    model = flatbuffer.unpack(content)
    graph, found = model.subgraphs[0], {}
    for operator, detail in zip(graph.operators, flatbuffer.details(model), strict=True):
        if detail.weights == "int8" and detail.macs:
            tensor = int(operator.inputs[1])
            found[detail.name] = constant(model, tensor), np.asarray(graph.tensors[tensor].quantization.scale)
    return found


def test_all_layers_but_the_stem_learn(case: Case) -> None:
    assert list(case.learned) == ["depthwise", "grouped", "wide", "gated", "last"]
    assert all(learned.error <= 1 for learned in case.learned.values())
    assert case.learned["last"].error < 0.8
    assert all(learned.moved > 0 for learned in case.learned.values())


def test_the_quantizer_writes_the_integers_that_were_learned(case: Case) -> None:
    """Each is the nearest or its other neighbour; the scales are the same, and nothing else has changed."""
    nearest, rounded = weights(case.int8(case.content)), weights(case.int8(case.rounded))
    original = float_weights(case.content)
    on_grid = float_weights(case.rounded)
    for name, learned in case.learned.items():
        (before, scales), (after, same_scales) = nearest[name], rounded[name]
        assert (scales == same_scales).all()
        assert (before != after).sum() == learned.moved
        axis = int(np.argmax([side == len(scales) for side in after.shape])) if name != "depthwise" else 3
        step = scales.reshape([-1 if place == axis else 1 for place in range(after.ndim)])
        assert np.abs(original[name] / step - after).max() < 1
        assert np.abs(on_grid[name] / step - after).max() < 1e-3  # what is stored is what was learned
        assert (np.abs(after).max(tuple(i for i in range(after.ndim) if i != axis)) == 127).all()
    assert (original["stem"] == on_grid["stem"]).all()


def float_weights(content: bytes) -> dict[str, Array]:
    model = flatbuffer.unpack(content)
    pairs = zip(model.subgraphs[0].operators, flatbuffer.details(model), strict=True)
    return {detail.name: constant(model, int(one.inputs[1])) for one, detail in pairs if detail.macs}


@pytest.mark.parametrize(("which", "gain_db"), [("case", 0.3), ("fine", 3.0)])
def test_the_file_comes_nearer_on_fresh_images(which: str, gain_db: float, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(which)
    fresh = pictures(256, seed=1)
    wanted = calibrate.logits(case.content, fresh)
    before, after = (
        sqnr_db(wanted, calibrate.logits(case.int8(content), fresh)) for content in (case.content, case.rounded)
    )
    assert after > before + gain_db


def test_zeros_stay_zero_and_the_others_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.adaround.STRETCH", (-0.25, 1.25))  # where a sigmoid of 0 is rounded to above 0
    sparse = Case("int8", zeros=0.75)
    none = float_weights(sparse.content)["wide"] == 0
    integers, _ = weights(sparse.int8(sparse.rounded))["wide"]
    assert none.mean() == pytest.approx(0.75, abs=0.01)
    assert not integers[none].any()
    assert not float_weights(sparse.rounded)["wide"][none].any()
    assert sparse.learned["wide"].moved > 0


def test_the_same_images_and_seed_give_the_same_file(case: Case) -> None:
    again, _ = adaround(case.content, pictures(), case.int8)
    assert again == case.rounded


def test_biases_are_corrected_towards_the_file_before_the_rounding(case: Case) -> None:
    images, model = pictures(), flatbuffer.unpack(case.rounded)
    wanted = calibrate.logits(case.content, images).mean(0)
    bias = next(int(one.operator.inputs[2]) for one in layers(File(model)) if one.name == "gated")
    replace_constant_(model, bias, constant(model, bias) + 0.1)
    shifted = flatbuffer.pack(model)
    corrected, changes = correct_biases(shifted, images, case.int8, wanted=case.content)
    assert list(changes) == ["grouped", "wide", "gated", "last"]
    before, after = (
        np.abs(calibrate.logits(case.int8(content), images).mean(0) - wanted).max()
        for content in (shifted, corrected)
    )
    assert after < 0.05 * before


def test_a_layer_that_stays_in_float_gets_its_weights_back(case: Case) -> None:
    found, original = (float_weights(content) for content in (case.rounded, case.content))
    mixed = float_weights(restored(case.rounded, case.content, ["wide"]))
    assert (mixed["wide"] == original["wide"]).all()
    assert (found["wide"] != original["wide"]).any()
    assert (mixed["gated"] == found["gated"]).all()


# --- layers as products of matrices ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["stem", "depthwise", "grouped", "wide", "gated", "last"])
def test_patches_times_matrices_are_what_the_file_computes(case: Case, name: str) -> None:
    file = File(flatbuffer.unpack(case.content))
    layer: Layer = next(one for one in layers(file) if one.name == name)
    taken, made = draw(layer, file, file, pictures(4), np.random.default_rng(0))
    matrices = layer.matrices(constant(file.model, layer.operator.inputs[1]))
    bias = layer.per_channel(constant(file.model, layer.operator.inputs[2]))
    found = np.einsum("pgk,gkm->pgm", taken, matrices) + bias[:, 0]
    if name in ("stem", "depthwise"):
        found = np.clip(found, 0, 6 if name == "depthwise" else None)
    assert taken.shape[1:] == matrices.shape[:2]
    assert len(taken) == (4 if name == "last" else 4 * (64 if name == "stem" else 16))
    np.testing.assert_allclose(found, made, atol=2e-5)
    stored = layer.stored(matrices, constant(file.model, layer.operator.inputs[1]).shape)
    assert (stored == constant(file.model, layer.operator.inputs[1])).all()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, case: Case, tmp_path: Path) -> None:
    from edgekit import patches

    monkeypatch.setattr(patches, "VALUES", 4000)
    file = File(flatbuffer.unpack(case.content))
    for layer in layers(file):
        taken, made = draw(layer, file, file, pictures(), np.random.default_rng(0))
        assert taken.size <= 4000 + 64 * taken[0].size
        assert len(taken) == len(made)
