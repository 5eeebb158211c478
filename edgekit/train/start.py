"""Trained networks that a training starts from or learns from."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit import checkpoint, models
from edgekit.checkpoint import Checkpoint
from edgekit.errors import CheckpointError, UsageError
from edgekit.models import foreign, layers, pretrained
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Preprocess, preset
from edgekit.recipe import ModelSpec
from edgekit.train.augment import resized
from edgekit.trainspec import IMAGENET, TrainSpec

Confirm = Callable[[str], bool]


def check(model: ModelSpec, spec: TrainSpec, *, resume: bool, confirm: Confirm | None) -> None:
    """Find, or download after *confirm* said yes, all that the training starts from and learns from.

    Raises UsageError or CheckpointError, also for a checkpoint of another architecture.
    """
    if spec.finetune and not resume:
        if spec.finetune.weights == IMAGENET:
            pretrained.ensure(model, confirm)
        else:
            _same_architecture(checkpoint.find(Path(spec.finetune.weights)), model)
    if spec.distill and Path(spec.distill.teacher).is_dir():
        checkpoint.find(Path(spec.distill.teacher))
    elif spec.distill:
        name = spec.distill.teacher
        if name not in models.names() and not name.startswith(pretrained.TORCHVISION_PREFIX):
            raise UsageError(
                f"train.distill.teacher: {name!r} is no folder of a run or checkpoint, no built-in model "
                f"({', '.join(models.names())}), and not torchvision:NAME"
            )
        pretrained.ensure(ModelSpec(name=name), confirm)


def start_(network: nn.Module, model: ModelSpec, classes: tuple[str, ...], weights: str) -> tuple[str, ...]:
    """Put trained weights into *network*; the last layer stays random for other classes. Gives notes."""
    last = f"{layers.last_layer(network)}.weight"
    found_shape = tuple(network.state_dict()[last].shape) if last in network.state_dict() else ()
    if found_shape[:1] != (len(classes),):
        raise UsageError(
            f"{model.name}: its last layer seems to be {last.removesuffix('.weight')}, whose weights have the "
            f"shape {found_shape} and not a row for each of {len(classes)} classes: fine-tuning cannot tell which "
            "layer to start anew; register the classifier last"
        )
    if weights == IMAGENET:
        return pretrained.load_(network, model)
    found = checkpoint.find(Path(weights))
    _same_architecture(found, model)
    tensors = checkpoint.read_weights(found)
    names = {name: name for name in tensors}
    return pretrained.put_(network, tensors, weights, names=names, new_classes=found.classes != classes)


def _same_architecture(found: Checkpoint, model: ModelSpec) -> None:
    free = ["dropout", "drop_path"]
    if foreign.kind(found.model.name) == foreign.kind(model.name) == "file":  # one file has many spellings
        free.append("name")
    names = [
        name
        for name in ModelSpec.__dataclass_fields__
        if name not in free and getattr(found.model, name) != getattr(model, name)
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
    published = pretrained.published(spec)
    side = models.resolution(name) or published.side
    with torch.random.fork_rng(devices=[]):  # its random weights are thrown away
        network = models.build(spec, pretrained.CLASSES, side)
    pretrained.load_(network, spec)
    contract = preset(published.preprocess, side, side)
    return Teacher(network, contract, torch.arange(pretrained.CLASSES), device)


def _other_classes(name: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> UsageError:
    lacking, more = [c for c in ours if c not in theirs], [c for c in theirs if c not in ours]
    parts = [
        f"{what} {', '.join(some[:5])}" for what, some in (("it lacks", lacking), ("it also has", more)) if some
    ]
    return UsageError(
        f"the teacher {name} has other classes ({len(theirs)}) than the data ({len(ours)}): {'; '.join(parts)}"
    )
