"""What converters take: a float classifier with normalisation inside, and everything that travels with it.

Shapes: N images, C channels, H height, W width, K classes.
"""

import math
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
from edgekit.errors import DataError
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Pixels, Preprocess
from edgekit.recipe import CalibrationSpec

T = TypeVar("T")
LABELLED_BYTES = 2**30  # pixels of held-out images that are kept in memory
LABELLED_IMAGES = 10_000
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
    """Images, their record and their *ids*; of each class that they lack, the id of one image of the split."""

    pixels_NHWC: Pixels
    record: Calibration
    ids: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Images that neither trained nor calibrated the model. *truth*: their classes (N,), as the model counts."""

    pixels_NHWC: Pixels
    truth: npt.NDArray[np.int64]
    images_sha256: str


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A trained model on its way to files. *calibrate* gives real training images; None when there are none.

    *held_out* gives the images on which accuracy is measured; None when there are none with labels.
    """

    model: PixelClassifier
    preprocess: Preprocess
    labels: tuple[str, ...]
    parent: str = ""
    calibrate: Callable[[CalibrationSpec], CalibrationImages] | None = None
    held_out: Callable[[], Labelled] | None = None
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
    record = Calibration(
        count=len(chosen),
        seed=spec.seed,
        method=spec.method,
        images_sha256=chosen.images_sha256,
        repairs=spec.repairs,
    )
    examples = dict(zip(reversed(split.labels), reversed(split.ids), strict=True))  # the first of each class
    lacking = tuple(examples[label] for label in sorted(examples.keys() - set(chosen.labels)))
    return CalibrationImages(pixels_NHWC=chosen.read(), record=record, ids=chosen.ids, lacking=lacking)


def labelled(split: Split, classes: tuple[str, ...], labels: tuple[str, ...]) -> Labelled:
    """The split's images, a seeded choice where they are many; *classes* are the split's, *labels* the model's.

    Raises DataError for a class that the model does not know.
    """
    if unknown := [name for name in classes if labels.count(name) != 1]:
        raise DataError(
            f"the images have classes that the model does not know: {', '.join(unknown[:5])}; it knows "
            f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}"
        )
    count = min(LABELLED_IMAGES, LABELLED_BYTES // math.prod(split.read([0]).shape))
    chosen = split.take([int(row) for row in sorted(np.random.default_rng(0).permutation(len(split))[:count])])
    places = np.array([labels.index(name) for name in classes], np.int64)
    return Labelled(
        pixels_NHWC=chosen.read(),
        truth=places[np.array(chosen.labels, np.int64)],
        images_sha256=chosen.images_sha256,
    )


def from_checkpoint(checkpoint: Checkpoint, train: Split | None, held_out: Split | None = None) -> ExportSource:
    """The checkpoint on its way to files, calibrated on images of *train*, its accuracy measured on *held_out*.

    Raises CheckpointError.
    """
    return ExportSource(
        model=PixelClassifier(models.restore(checkpoint), checkpoint.preprocess).eval(),
        preprocess=checkpoint.preprocess,
        labels=checkpoint.classes,
        parent=checkpoint.weights_sha256,
        calibrate=partial(calibration_images, train) if train else None,
        held_out=partial(labelled, held_out, checkpoint.classes, checkpoint.classes) if held_out else None,
    )
