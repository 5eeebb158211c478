"""What converters take: a float classifier with normalisation inside, and everything that travels with it.

Shapes: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgekit import models
from edgekit.artifact import Calibration
from edgekit.checkpoint import Checkpoint
from edgekit.data import Split
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Pixels, Preprocess
from edgekit.recipe import CalibrationSpec

T = TypeVar("T")
Logits = npt.NDArray[np.float32]


class PixelClassifier(nn.Module):
    """Logits (N, K) of raw RGB pixels (N, C, H, W), float 0 to 255: what every artifact computes."""

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.normalize = Normalize(preprocess)
        self.model = model

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(pixels_NCHW))
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationImages:
    pixels_NHWC: Pixels
    record: Calibration


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A trained model on its way to files. *calibrate* gives real training images; None when there are none."""

    model: PixelClassifier
    preprocess: Preprocess
    labels: tuple[str, ...]
    parent: str = ""
    calibrate: Callable[[CalibrationSpec], CalibrationImages] | None = None
    _memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What *make* gives, made once per source: precisions of one target share their lowering."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    @property
    def shape_NHWC(self) -> tuple[int, int, int, int]:
        return (1, self.preprocess.height, self.preprocess.width, 3)

    def example_NCHW(self) -> Tensor:
        return torch.zeros(1, 3, self.preprocess.height, self.preprocess.width)

    @torch.no_grad()
    def logits(self, pixels_NHWC: Pixels) -> Logits:
        """The float reference (N, K) for parity."""
        images = torch.from_numpy(np.array(pixels_NHWC)).permute(0, 3, 1, 2)
        rows: list[Tensor] = [self.model(images[i : i + 32].float()) for i in range(0, len(images), 32)]
        return torch.cat(rows).numpy()


def calibration_images(split: Split, spec: CalibrationSpec) -> CalibrationImages:
    """A seeded choice of the split's images, all of them where it has fewer."""
    order = np.random.default_rng(spec.seed).permutation(len(split))[: spec.images]
    chosen = split.take([int(index) for index in sorted(order)])
    record = Calibration(count=len(chosen), seed=spec.seed, method=spec.method, images_sha256=chosen.images_sha256)
    return CalibrationImages(pixels_NHWC=chosen.read(), record=record)


def from_checkpoint(checkpoint: Checkpoint, train: Split | None) -> ExportSource:
    """The checkpoint on its way to files, calibrated on images of *train*. Raises CheckpointError."""
    return ExportSource(
        model=PixelClassifier(models.restore(checkpoint), checkpoint.preprocess).eval(),
        preprocess=checkpoint.preprocess,
        labels=checkpoint.classes,
        parent=checkpoint.weights_sha256,
        calibrate=partial(calibration_images, train) if train else None,
    )
