"""Architectures by name: built in, from torchvision or timm, or from a user's own file.

Importing this loads no torch: names are listed and checked without it.
"""

import importlib
from typing import TYPE_CHECKING

from edgekit import checkpoint as checkpoints
from edgekit.checkpoint import Checkpoint
from edgekit.errors import CheckpointError, UsageError, unknown
from edgekit.models import foreign
from edgekit.recipe import ModelSpec
from edgekit.requires import require

if TYPE_CHECKING:
    from torch import nn

BUILT_IN = {"mobilenet_v2": "MobileNetV2"}  # the module of that name, and the class in it


def names() -> list[str]:
    """The built-in architectures."""
    return sorted(BUILT_IN)


def check(spec: ModelSpec) -> None:
    """Raise at once for a model that cannot be built: an unknown name, a missing file, package or option."""
    if spec.name not in BUILT_IN and foreign.kind(spec.name) is None:
        forms = [*names(), "torchvision:NAME", "timm:NAME", "FILE.py:FACTORY"]
        raise unknown("model", spec.name, forms)
    if spec.name not in BUILT_IN:
        _only_name(spec)
        foreign.check(spec.name)


def build(spec: ModelSpec, classes: int) -> "nn.Module":
    """The model with random weights from torch's global generator: images (N, 3, H, W) to logits (N, classes).

    Raises UsageError for a name, an option or a file that cannot be used.
    """
    check(spec)
    require("torch", feature="Building a model", extra="train")
    if spec.name not in BUILT_IN:
        return foreign.build(spec.name, classes)
    architecture = getattr(importlib.import_module(f"edgekit.models.{spec.name}"), BUILT_IN[spec.name])
    model: nn.Module = architecture(
        classes=classes, width=spec.width, stem_stride=spec.stem_stride, dropout=spec.dropout
    )
    return model


def restore(checkpoint: Checkpoint) -> "nn.Module":
    """The checkpoint's model with its weights, in evaluation mode, on the CPU. Raises CheckpointError."""
    torch = require("torch", feature="Restoring a model", extra="train")
    weights = checkpoints.read_weights(checkpoint)
    with torch.random.fork_rng(devices=[]):  # the weights that building draws are thrown away
        model = build(checkpoint.model, len(checkpoint.classes))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in expected]
    faults += [
        f"{name} is {found[name]} and not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"the weights in {checkpoint.path} are not those of {checkpoint.model.name} with "
            f"{len(checkpoint.classes)} classes: {'; '.join(faults[:3])}{more}"
        )
    model.load_state_dict(weights)
    return model.eval()


def _only_name(spec: ModelSpec) -> None:
    """Options of built-in models must not be dropped in silence."""
    default = ModelSpec(name=spec.name)
    for option in ("width", "stem_stride", "dropout"):
        if getattr(spec, option) != getattr(default, option):
            raise UsageError(
                f"model.{option} = {getattr(spec, option)} applies to built-in models only ({', '.join(names())}) "
                f"and {spec.name!r} is not one: leave {option} out"
            )
