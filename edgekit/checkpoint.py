"""A checkpoint: ``model.safetensors`` and ``checkpoint.json`` in one folder. Nothing in it is unpickled."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files
from edgekit.errors import CheckpointError
from edgekit.preprocess import Preprocess
from edgekit.recipe import ModelSpec
from edgekit.requires import require
from edgekit.schema import SchemaError, decode, encode

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "checkpoint.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """``metrics``: shares of 1, such as ``val_top1``. ``provenance``: data, versions, seed, as text."""

    format: int = FORMAT
    model: ModelSpec
    classes: tuple[str, ...]
    preprocess: Preprocess
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    weights_sha256: str = ""
    path: Path = field(default=Path(), metadata={"skip": True}, compare=False)


def write(folder: Path, checkpoint: Checkpoint, weights: "dict[str, Tensor]") -> Checkpoint:
    """The checkpoint as saved in *folder*, which it replaces whole."""
    to_bytes = _safetensors().save
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        # Copies: the format has no tensors that share memory, as tied layers do.
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
        (temporary / WEIGHTS).write_bytes(to_bytes(copies))
        saved = replace(checkpoint, weights_sha256=files.sha256(temporary / WEIGHTS), path=folder)
        files.write_json(temporary / DESCRIPTION, encode(saved))
    return saved


def read(folder: Path) -> Checkpoint:
    """The checkpoint in *folder*, without its weights. Raises CheckpointError."""
    path = folder / DESCRIPTION
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        checkpoint = decode(Checkpoint, value)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint in {folder}: {DESCRIPTION} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; train again or restore the file") from error
    except SchemaError as error:
        raise CheckpointError(f"{path} is not a checkpoint of format {FORMAT}: {error.faults[0]}") from error
    if checkpoint.format != FORMAT:
        raise CheckpointError(f"{path} has format {checkpoint.format}; this edgekit reads format {FORMAT}")
    return replace(checkpoint, path=folder)


def find(folder: Path) -> Checkpoint:
    """The checkpoint that *folder* is, or the best one of the run that it is. Raises CheckpointError."""
    for place in (folder, folder / "train" / "best"):
        if (place / DESCRIPTION).is_file():
            return read(place)
    raise CheckpointError(
        f"{folder} is neither a run nor a checkpoint: it holds no {DESCRIPTION} and no train/best"
    )


def read_weights(checkpoint: Checkpoint) -> "dict[str, Tensor]":
    """The tensors by name, on the CPU. Raises CheckpointError when the file is missing, cut short or changed."""
    path = checkpoint.path / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"no weights in {checkpoint.path}: {WEIGHTS} is missing")
    if (found := files.sha256(path)) != checkpoint.weights_sha256:
        raise CheckpointError(
            f"{path} is damaged: SHA-256 {found[:12]}, expected {checkpoint.weights_sha256[:12]}; "
            "train again or restore the file"
        )
    weights: dict[str, Tensor] = _safetensors().load_file(path)
    return weights


def _safetensors() -> Any:
    return require("safetensors.torch", feature="Reading and writing checkpoints", extra="train")
