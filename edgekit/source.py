"""What `edgekit convert MODEL` may be given, as an export source: a run, a checkpoint, a model by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit import checkpoint, data, models
from edgekit.errors import CheckpointError, ConversionError, UsageError
from edgekit.export import ExportSource, PixelClassifier, calibration_images, from_checkpoint
from edgekit.files import sha256
from edgekit.preprocess import Preprocess
from edgekit.recipe import ModelSpec
from edgekit.requires import require
from edgekit.runs import Run, is_run

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """*source*, a short *name* for the folder of its files, and *notes* that the user should read."""

    source: ExportSource
    name: str
    notes: tuple[str, ...] = ()


def find(
    model: str,
    *,
    preprocess: Preprocess | None,
    labels: tuple[str, ...] | None,
    weights: Path | None,
    calibrate: str | None,
    confirm: Callable[[str], bool],
) -> Found:
    """The source that *model* names. Raises UsageError, CheckpointError or DataError.

    *calibrate* is a data name or a folder. A run calibrates on its own training images without it.
    """
    path = Path(model)
    if path.is_dir():
        if preprocess or labels or weights:
            raise UsageError(f"{path} brings its own preprocess, labels and weights: leave out those options")
        found = _from_folder(path, confirm)
    else:
        found = _by_name(model, preprocess, labels, weights)
    if calibrate:
        source = found.source
        split = data.evaluation(calibrate, source.preprocess, "train", confirm=confirm).split
        found = replace(found, source=replace(source, calibrate=partial(calibration_images, split)))
    return found


def _from_folder(path: Path, confirm: Callable[[str], bool]) -> Found:
    if is_run(path):
        run = Run(folder=path)
        trained = checkpoint.read(run.checkpoint)
        source, state = from_checkpoint(trained, None), run.state()
        assert state is not None
        spec, origin = run.recipe().data, state.source
        lazy = _calibrate_later(lambda: data.load(spec, source=origin, confirm=confirm).train)
        return Found(source=replace(source, calibrate=lazy), name=path.resolve().name)
    if not (path / checkpoint.DESCRIPTION).is_file():
        raise CheckpointError(
            f"{path} is neither a run nor a checkpoint: it holds no run.json and no {checkpoint.DESCRIPTION}"
        )
    return Found(source=from_checkpoint(checkpoint.read(path), None), name=path.resolve().name)


def _calibrate_later(load: Callable[[], data.Split]) -> Callable[..., Any]:
    return lambda spec: calibration_images(load(), spec)


def _by_name(
    model: str, preprocess: Preprocess | None, labels: tuple[str, ...] | None, weights: Path | None
) -> Found:
    classes = len(labels) if labels else IMAGENET_CLASSES
    models.check(ModelSpec(name=model))
    if preprocess is None:
        raise UsageError(
            f"{model} does not say how pixels become its input: give --preprocess imagenet, minus1to1, 0to1 or a "
            "TOML file, and --size"
        )
    torch.manual_seed(0)
    module = models.build(ModelSpec(name=model), classes).eval()
    notes = []
    if weights:
        _load(module, weights)
    elif ".py:" not in model:
        notes.append(f"{model} has random weights: its latency counts, its accuracy does not (--weights FILE)")
    outputs = _outputs(module, preprocess, model)
    if labels and len(labels) != outputs:
        raise UsageError(f"{model} gives {outputs} scores, but there are {len(labels)} labels")
    if not labels:
        notes.append(f"no --labels: the {outputs} classes are called 0 to {outputs - 1}")
    source = ExportSource(
        model=PixelClassifier(module, preprocess).eval(),
        preprocess=preprocess,
        labels=labels or tuple(str(index) for index in range(outputs)),
        parent=sha256(weights) if weights else "",
    )
    return Found(source=source, name=Path(model.partition(".py:")[0]).name.replace(":", "-"), notes=tuple(notes))


def _load(module: nn.Module, path: Path) -> None:
    """Put the tensors of a .safetensors file, or of a .pt file read without unpickling code, into *module*."""
    if not path.is_file():
        raise UsageError(f"--weights: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            tensors = require("safetensors.torch", feature="Reading weights", extra="train").load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(tensors)
    except Exception as error:
        kinds = ("UnpicklingError", "RuntimeError", "SafetensorError", "TypeError", "AttributeError", "EOFError")
        if type(error).__name__ not in kinds:
            raise
        first = str(error).strip().splitlines()
        shown = " ".join(line.strip() for line in first[:3])
        raise CheckpointError(f"--weights {path} does not hold this model's tensors: {shown}") from error


def _outputs(module: nn.Module, preprocess: Preprocess, name: str) -> int:
    """How many scores the model gives for one image."""
    image = torch.zeros(1, 3, preprocess.height, preprocess.width)
    try:
        with torch.no_grad():
            logits = module(image)
    except RuntimeError as error:
        raise ConversionError(f"{name} does not run on {tuple(image.shape)}: {error}") from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or math.prod(logits.shape) < 2:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConversionError(f"{name} gives {shape}; a classifier gives scores of shape (1, classes)")
    return int(logits.shape[1])
