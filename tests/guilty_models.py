"""A small classifier in which one layer is made bad for int8 on purpose; in float it computes as before."""

from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgekit.convert import noise
from edgekit.data.dataset import Memory, Split
from edgekit.export import ExportSource, PixelClassifier, calibration_images, labelled
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Pixels, Preprocess

LABELS = ("red", "green", "blue")  # the brightest colour of the picture
SIDE = 16
CONTRACT = Preprocess(height=SIDE, width=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
FACTOR = 1e3

Fault = Literal["none", "range", "weights", "scales"]


def network(fault: Fault) -> nn.Sequential:
    """Random weights with a dense layer fitted by least squares, then the fault. What is measured of it:

    ``0`` the stem, ``2`` pointwise, ``4.pad`` and ``4`` depthwise, ``6`` pointwise, ``8`` the mean, ``10`` dense.

    "range": layer 2 gives one channel 1,000 times as large, and layer 4 takes it 1,000 times as small: a scale for
    the whole tensor leaves nothing of the other channels. "weights": layer 6 has large weights for a channel that
    is always 0: a scale for each of its kernels leaves nothing of its other weights. "scales": what layers 2 and 4
    give is 1/100 to 100 times as large, another number for each channel, and layers 4 and 6 make up for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem, first = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 24, 1)
        depthwise, second = nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24), nn.Conv2d(24, 32, 1)
        dense = nn.Linear(32, len(LABELS))
    assert depthwise.bias is not None
    assert first.bias is not None
    relu, pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    body = nn.Sequential(stem, relu, first, relu, depthwise, relu, second, relu, pool, nn.Flatten())
    with torch.no_grad():
        depthwise.weight[0] = depthwise.bias[0] = 0
        _fit_(dense, body)
        if fault == "weights":
            second.weight[:, 0] = FACTOR
        if fault == "range":
            first.weight[1] *= FACTOR
            first.bias[1] *= FACTOR
            depthwise.weight[1] /= FACTOR
        if fault == "scales":
            _scale_(first, depthwise, depthwise=True)
            _scale_(depthwise, second, depthwise=False)
    return nn.Sequential(*body, dense)


def _scale_(before: nn.Conv2d, after: nn.Conv2d, *, depthwise: bool) -> None:
    """Change the size of each channel between two layers by 1/100 to 100, and nothing else."""
    factor = 10 ** (4 * torch.rand(before.out_channels, generator=torch.Generator().manual_seed(1)) - 2)
    assert before.bias is not None
    before.weight *= factor[:, None, None, None]
    before.bias *= factor
    after.weight /= factor.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1))


def _fit_(dense: nn.Linear, body: nn.Module) -> None:
    pictures, truth = images(600, seed=1)
    features = body(Normalize(CONTRACT)(torch.from_numpy(pictures).permute(0, 3, 1, 2).float()))
    table = torch.cat([features, torch.ones(len(features), 1)], 1)
    wanted = 10 * nn.functional.one_hot(torch.from_numpy(truth), len(LABELS)).float()
    # Ridge: large weights would make the dense layer guilty, too.
    fitted = torch.linalg.solve(table.T @ table + 1e-2 * torch.eye(table.shape[1]), table.T @ wanted)
    dense.weight.copy_(fitted[:-1].T)
    dense.bias.copy_(fitted[-1])


def images(count: int, seed: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Pictures of blobs (N, S, S, 3), in each of which one colour is clearly the brightest; and which."""
    pictures = noise((SIDE, SIDE, 3), 8 * count + 100, seed)
    means = pictures.mean((1, 2))
    first, second = np.sort(means, axis=1)[:, ::-1].T[:2]
    clear = np.flatnonzero(first - second > 20)[:count]
    assert len(clear) == count
    return pictures[clear], means[clear].argmax(1)


def split(count: int, seed: int) -> Split:
    pictures, truth = images(count, seed)
    ids = tuple(f"{index:04}.png" for index in range(count))
    return Split(ids=ids, labels=tuple(truth.tolist()), reader=Memory(pixels=pictures), rows=np.arange(count))


def source(fault: Fault, *, held_out: bool = True) -> ExportSource:
    """The network with pictures to calibrate it on and others to measure it on."""
    return ExportSource(
        model=PixelClassifier(network(fault), CONTRACT).eval(),
        preprocess=CONTRACT,
        labels=LABELS,
        calibrate=partial(calibration_images, split(200, seed=2)),
        held_out=partial(labelled, split(400, seed=3), LABELS, LABELS) if held_out else None,
    )
