"""What died in training does no harm in an int8 file: channels without weights, and tensors of zeros."""

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import calibrate, convert, flatbuffer
from edgekit.calibrate import Ranges
from edgekit.dissect import constant
from edgekit.export import PixelClassifier
from edgekit.lower import lower
from edgekit.parity import parity
from edgekit.preprocess import preset
from edgekit.quantize import quantize
from edgekit.quiet import quiet

SIDE = 16


def made(net: nn.Module) -> tuple[bytes, Ranges, float]:
    """The int8 file of a network, the ranges that it was made with, and its SQNR to the float file."""
    images = convert.noise((SIDE, SIDE, 3), 16)
    with quiet():
        exact = lower(PixelClassifier(net, preset("imagenet", SIDE, SIDE)).eval(), (1, SIDE, SIDE, 3))
        ranges = calibrate.by_rule(calibrate.observe(exact, images), "min-max").ranges
        int8 = quantize(exact, "int8", ranges)
        return int8, ranges, parity(calibrate.logits(exact, images), calibrate.logits(int8, images)).sqnr_db


@pytest.mark.parametrize("tiny", [0.0, 1e-12])
@pytest.mark.parametrize("groups", [1, 8])
def test_a_dead_channel_keeps_its_bias(groups: int, tiny: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dead = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), dead, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )
        with torch.no_grad():
            dead.weight[3] *= tiny
            dead.bias[3] = 2.0  # type: ignore[index]
    int8, _, sqnr_db = made(net)
    assert sqnr_db > 30
    model = flatbuffer.unpack(int8)
    [place] = [
        i for i, one in enumerate(model.subgraphs[0].tensors) if flatbuffer.text(one.name) == "model.2.bias"
    ]
    scales = np.asarray(model.subgraphs[0].tensors[place].quantization.scale)
    stored = constant(model, place)
    assert stored[3] * scales[3] == pytest.approx(2.0, rel=1e-6)
    assert np.abs(stored).max() <= 2**30


def test_a_tensor_of_zeros_has_a_range_that_the_runtime_takes() -> None:
    """With steps as small as the range itself XNNPACK does not prepare the file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dead, wide = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            dead.bias.fill_(-100.0)  # type: ignore[union-attr]
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.ReLU(), dead, nn.ReLU(), wide, nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
        )
    _, ranges, sqnr_db = made(net)
    assert sqnr_db > 30
    assert (ranges["model.2"].low, ranges["model.2"].high) == (0.0, 0.0)
