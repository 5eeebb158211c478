"""What converters take: a float classifier with normalisation inside, and everything that travels with it.

Shapes: N images, C channels, H height, W width, K classes.
"""

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

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
from edgekit.trainspec import AugmentSpec

T = TypeVar("T")
LABELLED_BYTES = 2**30  # pixels of held-out images that are kept in memory
LABELLED_IMAGES = 10_000
BATCH_PIXELS = 2**17  # of the images that a network is given at once: more waits for memory
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
    """Images, their record and their *ids*; of each class that they lack, the id of one image of the split.

    *absent*: the model's classes of which the split has no image, where its folders are named as classes are.
    """

    pixels_NHWC: Pixels
    record: Calibration
    ids: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Images that neither trained nor calibrated the model. *truth*: their classes (N,), as the model counts."""

    pixels_NHWC: Pixels
    truth: npt.NDArray[np.int64]
    images_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lessons:
    """Images to go on training with. *truth*: their classes (N,), as the model counts."""

    split: Split
    truth: tuple[int, ...]
    augment: AugmentSpec = field(default_factory=AugmentSpec)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lowered:
    """A float32 TFLite model of the pixels as floats, 0 to 255, NHWC; what wrote it; what to tell of it."""

    content: bytes
    tools: tuple[str, ...] = ("torch",)
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """What converters take: a float classifier of any framework, and everything that travels with it.

    *calibrate* gives real training images; None when there are none. *held_out* gives the images on which accuracy
    is measured; None when there are none with labels. *lessons* gives training images with labels, where there are
    some. It is a frozen dataclass.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def parent(self) -> str: ...

    @property
    def calibrate(self) -> Callable[[CalibrationSpec], CalibrationImages] | None: ...

    @property
    def held_out(self) -> Callable[[], Labelled] | None: ...

    @property
    def lessons(self) -> Callable[[], Lessons] | None: ...

    @property
    def shape_NHWC(self) -> tuple[int, int, int, int]: ...

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What *make* gives, made once per source: precisions of one target share their lowering."""
        ...

    def logits(self, pixels_NHWC: Pixels) -> Logits:
        """The float reference (N, K) for parity."""
        ...

    def torch_model(self, target: str) -> PixelClassifier:
        """The torch module for the converter of *target*. Raises ConversionError where there is none."""
        ...

    def float_tflite(self) -> Lowered | None:
        """The TFLite file that its own framework writes; None where the converter writes it from the module."""
        ...


@dataclass(frozen=True, kw_only=True)
class BaseSource:
    """What a source of any framework is given, and remembers."""

    preprocess: Preprocess
    labels: tuple[str, ...]
    parent: str = ""
    calibrate: Callable[[CalibrationSpec], CalibrationImages] | None = None
    held_out: Callable[[], Labelled] | None = None
    lessons: Callable[[], Lessons] | None = None
    _memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: str, make: Callable[[], T]) -> T:
        return remembered(self._memo, key, make)

    @property
    def shape_NHWC(self) -> tuple[int, int, int, int]:
        return (1, self.preprocess.height, self.preprocess.width, 3)


@dataclass(frozen=True, kw_only=True)
class ExportSource(BaseSource):
    """A torch model on its way to files: a `Source`."""

    model: PixelClassifier

    def torch_model(self, target: str) -> PixelClassifier:
        return self.model

    def float_tflite(self) -> Lowered | None:
        return None

    @torch.no_grad()
    def logits(self, pixels_NHWC: Pixels) -> Logits:
        images = torch.from_numpy(np.array(pixels_NHWC)).permute(0, 3, 1, 2)
        step = max(1, BATCH_PIXELS // (images.shape[2] * images.shape[3]))
        rows: list[Tensor] = [self.model(images[i : i + step].float()) for i in range(0, len(images), step)]
        return torch.cat(rows).numpy()


def remembered(memo: dict[str, Any], key: str, make: Callable[[], T]) -> T:
    """What *memo* holds for the key, made where it holds nothing."""
    if key not in memo:
        memo[key] = make()
    value: T = memo[key]
    return value


def calibration_images(
    split: Split, spec: CalibrationSpec, classes: tuple[str, ...] = (), labels: tuple[str, ...] = ()
) -> CalibrationImages:
    """A seeded choice of the split's images, all of them where it has fewer.

    *classes* are the split's, *labels* the model's. Images of other things may calibrate, too.
    """
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
    absent = tuple(name for name in labels if name not in classes) if set(classes) & set(labels) else ()
    return CalibrationImages(
        pixels_NHWC=chosen.read(), record=record, ids=chosen.ids, lacking=lacking, absent=absent
    )


def labelled(split: Split, classes: tuple[str, ...], labels: tuple[str, ...]) -> Labelled:
    """The split's images, a seeded choice where they are many; *classes* are the split's, *labels* the model's.

    Raises DataError for a class that the model does not know.
    """
    places = np.array(_places(classes, labels), np.int64)
    count = min(LABELLED_IMAGES, LABELLED_BYTES // math.prod(split.read([0]).shape))
    chosen = split.take([int(row) for row in sorted(np.random.default_rng(0).permutation(len(split))[:count])])
    return Labelled(
        pixels_NHWC=chosen.read(),
        truth=places[np.array(chosen.labels, np.int64)],
        images_sha256=chosen.images_sha256,
    )


def _places(classes: tuple[str, ...], labels: tuple[str, ...]) -> list[int]:
    """For each class of some images the model's number of it."""
    if unknown := [name for name in classes if labels.count(name) != 1]:
        raise DataError(
            f"the images have classes that the model does not know: {', '.join(unknown[:5])}; it knows "
            f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}"
        )
    return [labels.index(name) for name in classes]


def lessons(
    split: Split, classes: tuple[str, ...], labels: tuple[str, ...], augment: AugmentSpec | None = None
) -> Lessons:
    """The split's images to learn from; *classes* are the split's, *labels* the model's.

    Raises DataError for a class that the model does not know.
    """
    places = _places(classes, labels)
    truth = tuple(places[label] for label in split.labels)
    return Lessons(split=split, truth=truth, augment=augment or AugmentSpec())


def from_checkpoint(
    checkpoint: Checkpoint,
    train: Split | None,
    held_out: Split | None = None,
    augment: AugmentSpec | None = None,
) -> ExportSource:
    """The checkpoint on its way to files, calibrated on images of *train*, its accuracy measured on *held_out*.

    *augment*: how images of *train* are changed where it is trained on. Raises CheckpointError.
    """
    classes = checkpoint.classes
    return ExportSource(
        model=PixelClassifier(models.restore(checkpoint), checkpoint.preprocess).eval(),
        preprocess=checkpoint.preprocess,
        labels=classes,
        parent=checkpoint.weights_sha256,
        calibrate=partial(calibration_images, train) if train else None,
        held_out=partial(labelled, held_out, classes, classes) if held_out else None,
        lessons=partial(lessons, train, classes, classes, augment) if train else None,
    )
