"""Random changes of a whole batch on the training device.

Shapes: N images, K classes, H height, W width; NCHW.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from edgekit.preprocess import cut_out
from edgekit.requires import require
from edgekit.train.seeds import generator, number
from edgekit.trainspec import AugmentSpec

GROUPS = 16  # torchvision changes a whole batch alike; each group of images gets draws of its own


def augmented(
    pixels_NCHW: Tensor,
    spec: AugmentSpec,
    seed: tuple[object, ...],
    *,
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0),
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """The batch (uint8) as float32 from 0 to 255, each image changed by chance.

    Every change draws from its own generator: one that is turned off leaves the others as they were. What
    comes in from outside is black, what is erased *colour* (0 to 255). A shift is by whole pixels, so that it
    alone blurs nothing. The images are *first* and following of a batch of *total*, the rest of which other
    processes have: what happens to an image does not depend on who has it.
    """
    mine = slice(first, first + len(pixels_NCHW))
    total = len(pixels_NCHW) if total is None else total
    if spec.policy != "none":
        pixels_NCHW = _by_group(pixels_NCHW, _policy(spec), (*seed, "policy"), mine, total)
    x = _moved(pixels_NCHW.float(), spec, seed, mine, total)
    if spec.erase:
        x = _by_group(x, _erasing(spec.erase, colour), (*seed, "erase"), mine, total)
    return x


def mixed(
    x_NCHW: Tensor, labels: Tensor, classes: int, spec: AugmentSpec, seed: tuple[object, ...]
) -> tuple[Tensor, Tensor]:
    """Images mixed with their neighbours, and the labels: (N), or shares (N, K) where they were mixed."""
    alphas = {name: alpha for name, alpha in (("MixUp", spec.mixup), ("CutMix", spec.cutmix)) if alpha}
    if not alphas or len(labels) < 2:
        return x_NCHW, labels
    with _drawing(*seed, "mix"):
        name = list(alphas)[int(torch.randint(len(alphas), ()))]
        images, shares = getattr(_v2(), name)(alpha=alphas[name], num_classes=classes)(x_NCHW, labels)
    return images, shares


def resized(x_NCHW: Tensor, height: int, width: int) -> Tensor:
    if tuple(x_NCHW.shape[2:]) == (height, width):
        return x_NCHW
    return torch.nn.functional.interpolate(x_NCHW, (height, width), mode="bilinear", antialias=True)


def crop_draws(total: int, seed: tuple[object, ...]) -> Tensor:
    """What decides a random resized crop: (N, 4) draws from 0 to 1 for its area, aspect ratio, x and y."""
    return torch.rand(total, 4, generator=generator(*seed, "crop"))


def _moved(x: Tensor, spec: AugmentSpec, seed: tuple[object, ...], mine: slice, total: int) -> Tensor:
    """Mirrored, scaled, shifted and cropped, in one resampling."""
    if not (spec.flip or spec.shift or spec.scale or spec.crop):
        return x
    _, _, height, width = x.shape
    # Per image: input coordinate = zoom * output coordinate + offset, in units where the image spans -1 to 1.
    zoom, offset = torch.ones(2, total), torch.zeros(2, total)  # x and y
    if spec.scale:
        zoom = zoom / (1 + spec.scale * _uniform(total, *seed, "scale"))
    if spec.crop:
        draws = crop_draws(total, seed)
        cut = torch.stack(cut_out(draws, spec.crop, width, height))
        zoom, offset = zoom * cut, offset + (2 * draws[:, 2:].T - 1) * (1 - cut)
    if spec.flip:
        zoom[0] *= _uniform(total, *seed, "flip").sign()
    if spec.shift:
        draws = _uniform(2 * total, *seed, "shift").view(2, total)
        sides = torch.tensor([[width], [height]])
        offset = offset + torch.round(draws * spec.shift * sides) * (2 / sides)
    zero = torch.zeros(total)
    rows = [torch.stack([zoom[0], zero, offset[0]], 1), torch.stack([zero, zoom[1], offset[1]], 1)]
    theta = torch.stack(rows, 1)[mine].to(x.device, non_blocking=True)  # (N, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def _by_group(x: Tensor, transform: Any, seed: tuple[object, ...], mine: slice, total: int) -> Tensor:
    """*transform* on each group of the whole batch, as far as its images are here."""
    parts, size = [], -(-total // GROUPS)
    for start in range(0, total, size):
        low, high = max(start, mine.start), min(start + size, mine.stop)
        if low < high:
            with _drawing(*seed, start // size):
                parts.append(transform(x[low - mine.start : high - mine.start]))
    return torch.cat(parts)


@cache
def _policy(spec: AugmentSpec) -> Any:
    bilinear = require("torchvision.transforms", feature="Augmenting", extra="train").InterpolationMode.BILINEAR
    if spec.policy == "trivial":
        return _v2().TrivialAugmentWide(interpolation=bilinear)
    return _v2().RandAugment(spec.policy_ops, spec.policy_magnitude, interpolation=bilinear)


@cache
def _erasing(chance: float, colour: tuple[float, float, float]) -> Any:
    return _v2().RandomErasing(chance, value=list(colour))


def _v2() -> Any:
    return require("torchvision.transforms.v2", feature="Augmenting", extra="train")


@contextmanager
def _drawing(*seed: object) -> Iterator[None]:
    """torchvision draws from torch's global generator on the CPU: inside it is seeded, afterwards as before."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(number(*seed))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _uniform(count: int, *seed: object) -> Tensor:
    """Draws from -1 to 1."""
    return torch.rand(count, generator=generator(*seed)) * 2 - 1
