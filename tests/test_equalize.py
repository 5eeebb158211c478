"""Equalized channels and corrected biases: the float network stays what it is, its int8 file comes nearer."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from edgekit import calibrate, convert, flatbuffer
from edgekit.data.dataset import Memory, Split
from edgekit.equalize import correct_biases, equalize, pairs
from edgekit.export import ExportSource, PixelClassifier, calibration_images
from edgekit.lower import lower
from edgekit.parity import sqnr_db
from edgekit.preprocess import Preprocess
from edgekit.quantize import quantize
from edgekit.quiet import quiet
from edgekit.recipe import CalibrationSpec, Variant

SIDE = 16
UNEVEN = 2.0 ** np.arange(-6, 2)  # the sizes of neighbouring channels: 1 to 128


class Network(nn.Module):
    """Convolution, depthwise (after a PAD), pointwise, a linear one into a skip, the pool, a dense layer."""

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 16, 3, 2, 1), act()
        self.depthwise = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.wide, self.thin = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.head, self.last = nn.Conv2d(16, 32, 1), nn.Linear(32, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.depthwise(self.act(self.stem(x / 64 - 2))))
        x = x + self.thin(self.act(self.wide(x)))
        logits: torch.Tensor = self.last(self.act(self.head(x)).mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Case:
    """The same network twice, with *even* channels and with *uneven* ones."""

    even: bytes
    uneven: bytes


def network(act: type[nn.Module]) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Network(act).eval()
    with torch.no_grad():
        made.last.weight *= 40
    return made


@pytest.fixture(scope="module")
def relu() -> Case:
    return Case(
        even=lower(network(nn.ReLU), (1, SIDE, SIDE, 3)), uneven=lower(uneven(nn.ReLU), (1, SIDE, SIDE, 3))
    )


def uneven(act: type[nn.Module]) -> Network:
    """The same network in other numbers: neighbouring channels are up to 128 times as large."""
    made = network(act)
    with torch.no_grad():
        for first, second in ((made.stem, made.depthwise), (made.wide, made.thin), (made.head, made.last)):
            factor = torch.from_numpy(np.resize(UNEVEN, len(first.weight))).float()
            first.weight *= factor[:, None, None, None]
            assert first.bias is not None
            first.bias *= factor
            if second is made.depthwise:
                second.weight /= factor[:, None, None, None]
            else:
                second.weight /= factor.reshape(1, -1, *[1] * (second.weight.ndim - 2))
    return made


def pictures(count: int = 64, seed: int = 0) -> npt.NDArray[np.uint8]:
    return convert.noise((SIDE, SIDE, 3), count, seed)


def int8(content: bytes, ranges_of: bytes | None = None) -> bytes:
    observed = calibrate.observe(ranges_of or content, pictures())
    with quiet():
        made: bytes = quantize(content, "int8", calibrate.by_rule(observed, "min-max").ranges)
    return made


def int8_db(content: bytes, wanted: npt.NDArray[np.float32]) -> float:
    """The int8 file of *content* against the wanted logits of fresh images."""
    return sqnr_db(wanted, calibrate.logits(int8(content), pictures(seed=1)))


def test_which_layers_are_pairs(relu: Case) -> None:
    found = [(pair.tensor, pair.second[1]) for pair in pairs(flatbuffer.unpack(relu.even))]
    # What the depthwise layer and the thin one give goes to two places.
    assert found == [("stem", "DEPTHWISE_CONV_2D"), ("wide", "CONV_2D"), ("head", "FULLY_CONNECTED")]


def test_equalized_relu_networks_compute_the_same(relu: Case) -> None:
    fresh = pictures(seed=1)
    wanted = calibrate.logits(relu.uneven, fresh)
    found, factors = equalize(relu.uneven, pictures())
    assert np.abs(calibrate.logits(found, fresh) - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert len(factors) == 3
    assert all(factor.min() < 0.1 and factor.max() >= 0.99 for factor in factors.values())


def test_uneven_channels_ruin_int8_and_equalizing_heals_it(relu: Case) -> None:
    wanted = calibrate.logits(relu.even, pictures(seed=1))
    even, uneven, healed = (
        int8_db(content, wanted) for content in (relu.even, relu.uneven, equalize(relu.uneven, pictures())[0])
    )
    assert even > 30
    assert uneven < even - 15
    assert healed > even - 1.5


def test_channels_of_a_depthwise_layer_become_equally_large(relu: Case) -> None:
    found, factors = equalize(relu.uneven, pictures())
    _, again = equalize(found, pictures())
    assert factors["stem"].max() / factors["stem"].min() > 128  # the unevenness, and what there was before
    assert np.median(again["stem"]) == pytest.approx(1, abs=1e-3)
    assert again["stem"].min() > 0.2


def test_relu6_is_the_same_on_the_images_it_saw() -> None:
    made = network(nn.ReLU6)
    with torch.no_grad():
        made.stem.weight *= 4  # some channels reach 6
    content, images = lower(made, (1, SIDE, SIDE, 3)), pictures()
    wanted = calibrate.logits(content, images)
    found, factors = equalize(content, images)
    assert 0 < (factors["stem"] == 1).sum() < 16
    assert np.abs(calibrate.logits(found, images) - wanted).max() < 1e-5 * np.abs(wanted).max()
    fresh = pictures(seed=1)
    assert sqnr_db(calibrate.logits(content, fresh), calibrate.logits(found, fresh)) > 40


def test_corrected_biases_bring_the_means_back(relu: Case) -> None:
    images = pictures()
    wanted = calibrate.logits(relu.uneven, images)
    found, changes = correct_biases(relu.uneven, images, lambda content: int8(content, relu.uneven))
    before, after = (
        np.abs((calibrate.logits(int8(content, relu.uneven), images) - wanted).mean(0)).max()
        for content in (relu.uneven, found)
    )
    assert list(changes) == ["thin", "last"]
    assert after < 0.3 * before


def test_a_variant_asks_for_them(tmp_path: Path) -> None:
    """Through the converter: nearer to the float model, and said in the sidecar."""
    contract = Preprocess(height=SIDE, width=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    source = ExportSource(
        model=PixelClassifier(uneven(nn.ReLU), contract).eval(),
        preprocess=contract,
        labels=tuple("abcdef"),
        calibrate=partial(calibration_images, split()),
    )
    found: list[float] = []
    for repairs in (
        {},
        {"equalize": True},
        {"equalize": True, "correct_biases": True},
        {"equalize": True, "correct_biases": True, "adaround": True},
    ):
        spec = CalibrationSpec(images=64, method="min-max", **repairs)
        variant = Variant(target="tflite", precision="int8", calibration=spec)
        [made] = convert.convert(source, [variant], pictures(seed=1), tmp_path / str(len(found)), lambda *_: None)
        assert made.calibration is not None
        assert made.calibration.repairs == tuple(repairs)
        assert made.parity is not None
        found.append(made.parity.sqnr_db)
    assert found[1] > found[0] + 10
    assert found[2] > found[1] - 1
    assert found[3] > found[2] - 1


def split() -> Split:
    images = pictures()
    return Split(
        ids=tuple(map(str, range(64))),
        labels=tuple(i % 6 for i in range(64)),
        reader=Memory(pixels=images),
        rows=np.arange(64),
    )
