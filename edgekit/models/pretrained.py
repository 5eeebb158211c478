"""ImageNet weights of torchvision and timm: found, checked, for our own modules renamed tensor by tensor.

Nothing is downloaded unless *confirm* said yes; nothing is unpickled but tensors.
"""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgekit import files
from edgekit.errors import CheckpointError, EdgekitError, UsageError, unknown
from edgekit.models.layers import last_layer
from edgekit.models.renaming import renamed
from edgekit.recipe import ModelSpec
from edgekit.requires import require

CLASSES = 1000
TORCHVISION_PREFIX = "torchvision:"
# Settings that do not decide whether weights fit; the width is looked at by itself.
_FREE = ("name", "width", "stem_stride", "stage_stride", "dropout", "drop_path")
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights"
_HUB = "https://huggingface.co/timm/{0}/resolve/main/model.safetensors"
_TORCHVISION = (
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    *(f"efficientnet_b{i}" for i in range(8)),
)


class Published(NamedTuple):
    """*file* in the cache, from *url*; *preprocess*, *side*: the preset and size that they had in training."""

    url: str
    file: str
    preprocess: str
    side: int = 224


# timm.get_pretrained_cfg(NAME) has these addresses, and mean and std 0.5 for all of them.
TIMM = {
    ("mobilenet_v1", 1.0): "mobilenetv1_100.ra4_e3600_r224_in1k",
    ("mobilenet_v1", 1.25): "mobilenetv1_125.ra4_e3600_r224_in1k",
    ("efficientnet_lite0", 1.0): "tf_efficientnet_lite0-0aa007d2.pth",
    ("efficientnet_lite1", 1.0): "tf_efficientnet_lite1-bde8b488.pth",
    ("efficientnet_lite2", 1.0): "tf_efficientnet_lite2-dcccb7df.pth",
    ("efficientnet_lite3", 1.0): "tf_efficientnet_lite3-b733e338.pth",
    ("efficientnet_lite4", 1.0): "tf_efficientnet_lite4-741542c3.pth",
}


def published(spec: ModelSpec) -> Published:
    """Where the weights of *spec* are. Raises UsageError for a model that has none."""
    if spec.name.startswith(TORCHVISION_PREFIX):
        return _torchvision(spec.name.removeprefix(TORCHVISION_PREFIX))
    plain = ModelSpec(name=spec.name)
    changed = [
        field.name
        for field in fields(spec)
        if field.name not in _FREE and getattr(spec, field.name) != getattr(plain, field.name)
    ]
    if not changed and (name := TIMM.get((spec.name, spec.width))):
        if name.endswith(".pth"):
            return Published(f"{_TIMM}/{name}", name, "minus1to1")
        return Published(_HUB.format(name), f"{name}.safetensors", "minus1to1")
    if not changed and spec.name in _TORCHVISION and spec.width == 1.0:
        return _torchvision(spec.name)
    known = sorted({*_TORCHVISION, *(name for name, _ in TIMM), "torchvision:NAME"})
    what = ", ".join([spec.name, *(f"{option} = {getattr(spec, option)}" for option in ("width", *changed))])
    raise UsageError(f"there are no ImageNet weights of {what}; there are of {', '.join(known)}, at width 1")


def _torchvision(name: str) -> Published:
    models = require("torchvision.models", feature="Naming ImageNet weights", extra="train")
    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision model", name, known)
    weights = models.get_model_weights(name).DEFAULT
    # These two were trained by TensorFlow; torchvision turns ImageNet's way into theirs inside of the model.
    contract = "minus1to1" if name in ("googlenet", "inception_v3") else "imagenet"
    file = weights.url.rpartition("/")[2]
    return Published(weights.url, file, contract, weights.transforms.keywords["crop_size"])


def ensure(spec: ModelSpec, confirm: Callable[[str], bool] | None = None) -> Path:
    """The file of the weights, its hash checked. Downloaded only after *confirm* said yes to the question.

    Raises UsageError, or CheckpointError with the file, its address and the folder that it belongs to.
    """
    found = published(spec)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / found.file
    promised = re.search(r"-([0-9a-f]{8,})\.", found.file)  # torch.hub's rule: NAME-HASH.pth
    prefix = promised.group(1) if promised else ""
    if not path.is_file():
        if confirm is None or not confirm(f"Download {found.url} to {path}?"):
            raise CheckpointError(
                f"the ImageNet weights of {spec.name} are not here and were not downloaded: put {found.file} into "
                f"{folder}, from {found.url}; or agree to the download at a terminal"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(found.url, str(path), prefix or None, progress=False)  # whole or not
        except (OSError, RuntimeError) as error:  # no network, or another hash
            raise CheckpointError(
                f"{found.url} cannot be downloaded: {error}; put {found.file} into {folder} by hand"
            ) from error
    if not (sha256 := files.sha256(path)).startswith(prefix):
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 begins with {sha256[: len(prefix)]}, its name promises {prefix}; "
            f"remove it and get it again from {found.url}"
        )
    return path


def load_(model: nn.Module, spec: ModelSpec, confirm: Callable[[str], bool] | None = None) -> tuple[str, ...]:
    """Put the ImageNet weights of *spec* into *model*, which `models.build` made; gives notes for the user.

    A classifier for another number of classes than ImageNet's 1000 keeps its random weights. Raises
    UsageError or CheckpointError.
    """
    path = ensure(spec, confirm)
    tensors = _read(path)
    if not spec.name.startswith(TORCHVISION_PREFIX):
        return put_(model, tensors, str(path))
    # The side classifiers of GoogLeNet and Inception are for their training alone; we build without.
    kept = {name: name for name in tensors if not name.lower().startswith("aux")}
    return put_(model, {name: tensors[name] for name in kept}, str(path), names=kept)


def put_(
    model: nn.Module,
    tensors: dict[str, Tensor],
    source: str,
    *,
    names: dict[str, str] | None = None,
    new_classes: bool = False,
) -> tuple[str, ...]:
    """Put the tensors of a module into ours; gives notes for the user. Raises CheckpointError.

    *names*: theirs to ours; None for torchvision's or timm's of our own models. The last layer stays random where
    it has another number of classes, and where *new_classes* says that they are others.
    """
    names = renamed(tensors) if names is None else names
    given = {names[theirs]: tensor for theirs, tensor in tensors.items() if theirs in names}
    wanted, notes = model.state_dict(), []
    last = last_layer(model)
    head = [name for name in (f"{last}.weight", f"{last}.bias") if name in wanted]
    old, new = (len(found[head[0]]) if head[0] in found else 0 for found in (given, wanted))
    if new_classes or (old and old != new):
        given |= {name: wanted[name] for name in head}
        theirs = f"ImageNet's {CLASSES}" if old == CLASSES else f"the {old} of {source}"
        what = "other classes than" if old == new else f"{new} classes and not"
        notes.append(f"the last layer has {what} {theirs}: its weights are random")
    for name, tensor in wanted.items():  # older files do not count batches; evaluation never looks
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, tensor)
    faults = [f"{name} is missing" for name in wanted if name not in given]
    faults += [
        f"{name} is unknown" for name in (*(n for n in tensors if n not in names), *(given.keys() - wanted))
    ]
    faults += [
        f"{name} is {tuple(given[name].shape)} and not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if faults:
        raise CheckpointError(f"{source} does not hold this model's tensors: {'; '.join(faults[:3])}")
    model.load_state_dict(given)
    return tuple(notes)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors = require("safetensors.torch", feature="Reading weights", extra="train").load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (EdgekitError, OSError):
        raise
    except Exception as error:  # a damaged file makes torch and safetensors raise anything
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return dict(tensors)
