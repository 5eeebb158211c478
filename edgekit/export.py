"""What converters take: a float classifier with normalisation inside, and everything that travels with it.

Shapes: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgekit.artifact import Calibration
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
        batches = torch.from_numpy(np.ascontiguousarray(pixels_NHWC)).split(32)
        rows = [self.model(batch.permute(0, 3, 1, 2).float()) for batch in batches]
        return torch.cat(rows).numpy()
