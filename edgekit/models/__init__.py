"""Architectures by name: built in, from torchvision or timm, or from a user's own file.

Importing this loads no torch: names are listed and checked without it.
"""

import importlib
from dataclasses import fields
from typing import TYPE_CHECKING

from edgekit import checkpoint as checkpoints
from edgekit.checkpoint import Checkpoint
from edgekit.errors import CheckpointError, UsageError, unknown
from edgekit.models import foreign
from edgekit.models.zoo import BUILT_IN
from edgekit.preprocess import Preprocess
from edgekit.recipe import ModelSpec
from edgekit.requires import require

if TYPE_CHECKING:
    from torch import nn


def names() -> list[str]:
    """The built-in architectures."""
    return list(BUILT_IN)


def resolution(name: str) -> int | None:
    """Height and width of the images that a built-in model was published for; None for another model."""
    return BUILT_IN[name].resolution if name in BUILT_IN else None


def check(spec: ModelSpec) -> None:
    """Raise at once for a model that cannot be built: an unknown name, a missing file, package or option."""
    if spec.name not in BUILT_IN and foreign.kind(spec.name) is None:
        forms = [*names(), *foreign.FORMS]
        raise unknown("model", spec.name, forms)
    _options(spec)
    if spec.name not in BUILT_IN:
        foreign.check(spec.name)


def build(spec: ModelSpec, classes: int, side: int | None = None) -> "nn.Module":
    """The model with random weights from torch's global generator: images (N, 3, H, W) to logits (N, classes).

    *side*: height and width of the images, for foreign models that are made for one size (`vit_b_16`).
    Raises UsageError for a name, an option or a file that cannot be used.
    """
    check(spec)
    require("torch", feature="Building a model", extra="train")
    if spec.name not in BUILT_IN:
        return _narrowed(foreign.build(spec.name, classes, side), spec)
    found = BUILT_IN[spec.name]
    architecture = getattr(importlib.import_module(f"edgekit.models.{found.module}"), found.architecture)
    options = {option: getattr(spec, option) for option in found.options}
    given = {option: value for option, value in options.items() if value is not None}
    return _narrowed(architecture(classes=classes, **found.arguments, **given), spec)


def _narrowed(model: "nn.Module", spec: ModelSpec) -> "nn.Module":
    if spec.channels:
        from edgekit.models.channels import narrow_

        narrow_(model, spec.channels, spec.name)
    return model


def restore(checkpoint: Checkpoint) -> "nn.Module":
    """The checkpoint's model with its weights, in evaluation mode, on the CPU. Raises CheckpointError."""
    torch = require("torch", feature="Restoring a model", extra="train")
    weights = checkpoints.read_weights(checkpoint)
    with torch.random.fork_rng(devices=[]):  # the weights that building draws are thrown away
        model = build(checkpoint.model, len(checkpoint.classes), side_of(checkpoint.preprocess))
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


def side_of(preprocess: Preprocess) -> int | None:
    """Height and width where they are equal."""
    return preprocess.height if preprocess.height == preprocess.width else None


def _options(spec: ModelSpec) -> None:
    """Options that a model does not have must not be dropped in silence."""
    default, taken = ModelSpec(name=spec.name), BUILT_IN[spec.name].options if spec.name in BUILT_IN else ()
    for option in (field.name for field in fields(spec) if field.name not in ("name", "channels", *taken)):
        if (value := getattr(spec, option)) == getattr(default, option):
            continue
        takers = [name for name, entry in BUILT_IN.items() if option in entry.options]
        raise UsageError(
            f"model.{option} = {value} applies to built-in models only ({', '.join(takers)}) "
            f"and {spec.name!r} is not one: leave {option} out"
            if not taken
            else f"model.{option} = {value}: {spec.name} has no such option; {', '.join(takers)} have it"
        )
