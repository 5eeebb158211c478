"""The state of a training after a whole epoch, in one file: all that is needed to go on, bit for bit."""

import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekit import checkpoint, files
from edgekit.data import Dataset
from edgekit.errors import CheckpointError
from edgekit.recipe import ModelSpec
from edgekit.schema import encode
from edgekit.trainspec import IMAGENET, TrainSpec

FORMAT = 2
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile)
STATE = "state.pt"
LEARNT_FROM = "learnt_from"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """After *epoch* epochs. *settings*: what must be the same to go on, by dotted name. *rows*: metrics.jsonl."""

    settings: dict[str, Any]
    epoch: int
    threads: int  # sums are rounded differently with another number
    learner: dict[str, Any]
    rows: list[dict[str, float]]
    best_metrics: dict[str, float]
    best_weights: dict[str, Tensor]
    last_weights: dict[str, Tensor]


def settings(dataset: Dataset, model: ModelSpec, spec: TrainSpec) -> dict[str, Any]:
    """Everything that the weights depend on, by dotted name."""
    tree = {
        "model": encode(model),
        "train": encode(spec),
        "data": {
            "classes": encode(dataset.classes),
            "preprocess": encode(dataset.preprocess),
            "train_images": dataset.train.images_sha256[:12],
            "val_images": dataset.val.images_sha256[:12],
        },
        LEARNT_FROM: _learnt_from(spec),
    }
    return dict(_flat(tree, ""))


def _learnt_from(spec: TrainSpec) -> dict[str, str]:
    """The weights' hashes of the runs and checkpoints that a training starts or learns from, by their folders."""
    names = [spec.finetune.weights] if spec.finetune and spec.finetune.weights != IMAGENET else []
    names += [spec.distill.teacher] if spec.distill else []
    folders = {name: Path(name) for name in names if Path(name).is_dir()}
    return {name: checkpoint.find(folder).weights_sha256[:12] for name, folder in folders.items()}


def write(folder: Path, state: State) -> None:
    """Put the state in place of the one before, at once."""
    values = {name: getattr(state, name) for name in State.__dataclass_fields__}
    content = io.BytesIO()  # torch's own writer tells of a full disk by a RuntimeError without a name
    torch.save({"format": FORMAT, **values}, content)
    with files.replacing(folder / STATE) as temporary:
        temporary.write_bytes(content.getbuffer())


def read(folder: Path, wanted: dict[str, Any]) -> State | None:
    """The state in *folder*, if there is one. Raises CheckpointError: damaged, or of other settings."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load would not notice a changed byte
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {bad} is wrong")
        values = torch.load(path, map_location="cpu", weights_only=True)
        found = values.pop("format")
        if found != FORMAT:
            raise CheckpointError(f"{path} has format {found}; this edgekit reads format {FORMAT}: train anew")
        state = State(**values)
    except (*DAMAGED, OSError) as error:
        # torch's own messages go on for paragraphs
        first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise CheckpointError(
            f"{path} is damaged: {first}; remove it, or train without resuming, to start anew"
        ) from error
    # What a training once started from may be gone by now.
    gone = {name for name in state.settings.keys() - wanted.keys() if name.startswith(f"{LEARNT_FROM}.")}
    names = sorted((wanted.keys() | state.settings.keys()) - gone)
    if other := [name for name in names if wanted.get(name) != state.settings.get(name)]:
        differences = "; ".join(
            f"{n} was {_short(state.settings.get(n))} and is {_short(wanted.get(n))}" for n in other[:5]
        )
        more = f"; and {len(other) - 5} more" if len(other) > 5 else ""
        raise CheckpointError(
            f"the training in {folder} has other settings: {differences}{more}. Go on with the old ones, give "
            "another folder, or train without resuming"
        )
    return state


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def clear(folder: Path, *names: str) -> None:
    """Remove the state and *names*, and what a killed process left half-written of them."""
    for name in (STATE, *names):
        files.remove(folder / name)
    sweep(folder, *names)


def sweep(folder: Path, *names: str) -> None:
    """Remove the temporary files that a killed process left."""
    for name in (STATE, *names):
        for pattern in (f".{Path(name).stem}.*.part*", f".{Path(name).stem}.*.old*"):
            for path in folder.glob(pattern):
                files.remove(path)


def _flat(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else key)]
    return [(name, value)]
