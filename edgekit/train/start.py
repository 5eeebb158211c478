"""Trained networks that a training starts from or learns from."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit import checkpoint, models
from edgekit.checkpoint import Checkpoint
from edgekit.errors import CheckpointError, UsageError
from edgekit.models import pretrained
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Preprocess, preset
from edgekit.recipe import ModelSpec
from edgekit.train.augment import resized
from edgekit.trainspec import TrainSpec

IMAGENET = "imagenet"
Confirm = Callable[[str], bool]


def check(model: ModelSpec, spec: TrainSpec, confirm: Confirm | None) -> None:
    """Find, or download after *confirm* said yes, all that the training starts from.

    Raises UsageError or CheckpointError, also for a checkpoint of another architecture.
    """
    if spec.finetune:
        if spec.finetune.weights == IMAGENET:
            pretrained.ensure(model, confirm)
        else:
            _same_architecture(checkpoint.find(Path(spec.finetune.weights)), model)
    if spec.distill and not Path(spec.distill.teacher).is_dir():
        teacher = ModelSpec(name=spec.distill.teacher)
        models.check(teacher)
        pretrained.ensure(teacher, confirm)


def start_(network: nn.Module, model: ModelSpec, classes: tuple[str, ...], weights: str) -> tuple[str, ...]:
    """Put trained weights into *network*; the last layer stays random for other classes. Gives notes."""
    if weights == IMAGENET:
        return pretrained.load_(network, model)
    found = checkpoint.find(Path(weights))
    _same_architecture(found, model)
    tensors = checkpoint.read_weights(found)
    names = {name: name for name in tensors}
    return pretrained.put_(network, tensors, weights, names=names, new_classes=found.classes != classes)


def _same_architecture(found: Checkpoint, model: ModelSpec) -> None:
    names = [
        name
        for name in ModelSpec.__dataclass_fields__
        if name not in ("dropout", "drop_path") and getattr(found.model, name) != getattr(model, name)
    ]
    if names:
        differences = "; ".join(
            f"{name} was {getattr(found.model, name)} and is {getattr(model, name)}" for name in names
        )
        raise CheckpointError(f"{found.path} holds another architecture: {differences}")


class Teacher:
    """Its logits (N, K) of raw pixels (N, 3, H, W), float 0 to 255, in the order of the student's classes."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, order: Tensor, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.normalize = Normalize(preprocess).to(device)
        self.size = preprocess.height, preprocess.width
        self.order = order.to(device)

    @torch.no_grad()
    def __call__(self, pixels_NCHW: Tensor) -> Tensor:
        x = self.normalize(resized(pixels_NCHW, *self.size)).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(x)
        return logits[:, self.order]


def teacher(name: str, classes: tuple[str, ...], device: torch.device) -> Teacher:
    """The teacher of that name. Raises UsageError where its classes are not the student's, CheckpointError."""
    if Path(name).is_dir():
        found = checkpoint.find(Path(name))
        if set(found.classes) != set(classes):
            raise _other_classes(name, found.classes, classes)
        order = torch.tensor([found.classes.index(one) for one in classes])
        return Teacher(models.restore(found), found.preprocess, order, device)
    spec = ModelSpec(name=name)
    if len(classes) != pretrained.CLASSES:
        raise UsageError(
            f"the teacher {name} knows ImageNet's {pretrained.CLASSES} classes and the data have {len(classes)}: "
            "train it on these data first, and name its run or checkpoint folder"
        )
    side = models.resolution(name) or 224
    with torch.random.fork_rng(devices=[]):  # its random weights are thrown away
        network = models.build(spec, pretrained.CLASSES, side)
    pretrained.load_(network, spec)
    contract = preset(pretrained.published(spec).preprocess, side, side)
    return Teacher(network, contract, torch.arange(pretrained.CLASSES), device)


def _other_classes(name: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> UsageError:
    lacking, more = [c for c in ours if c not in theirs], [c for c in theirs if c not in ours]
    parts = [
        f"{what} {', '.join(some[:5])}" for what, some in (("it lacks", lacking), ("it also has", more)) if some
    ]
    return UsageError(
        f"the teacher {name} has other classes ({len(theirs)}) than the data ({len(ours)}): {'; '.join(parts)}"
    )
