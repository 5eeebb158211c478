"""What `edgekit convert MODEL` may be given, as an export source: a run, a checkpoint, a model by name or file."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from edgekit import checkpoint, data, keras_model, keras_source, models
from edgekit.convert import noise
from edgekit.errors import CheckpointError, ConversionError, EdgekitError, UsageError
from edgekit.export import (
    ExportSource,
    Labelled,
    PixelClassifier,
    Source,
    calibration_images,
    from_checkpoint,
    labelled,
    lessons,
)
from edgekit.files import sha256
from edgekit.models import pretrained
from edgekit.models.settle import settle_
from edgekit.preprocess import PRESETS, Preprocess, preset
from edgekit.recipe import ModelSpec
from edgekit.requires import require
from edgekit.runs import Run, is_run

IMAGENET_CLASSES = 1000
SETTLING_PIXELS = 2**18  # of the images that set an untrained network's batch norms
IMAGENET = "imagenet"  # the value of --weights that names the published ones
NO_CONTRACT = (
    f"does not say how pixels become its input: give --preprocess {', '.join(PRESETS)} or a TOML file, and --size"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """*source*, a short *name* for the folder of its files, and *notes* that the user should read."""

    source: Source
    name: str
    notes: tuple[str, ...] = ()


def find(
    model: str,
    *,
    preprocess: Preprocess | None,
    labels: tuple[str, ...] | None,
    weights: Path | str | None,
    calibrate: str | None,
    confirm: Callable[[str], bool],
    measure: str | None = None,
) -> Found:
    """The source that *model* names. Raises UsageError, CheckpointError or DataError.

    *weights*: a file, or ``imagenet`` for the published ones, downloaded only after *confirm* said yes.
    *calibrate* and *measure* are data names or folders: the one's training images set ranges, on the other's
    held-out images accuracy is measured. Either stands for both; a run brings its own.
    """
    path = Path(model)
    if keras_model.is_keras(path):
        found = _from_keras(path, preprocess, labels, weights)
    elif path.is_dir():
        if preprocess or labels or weights:
            raise UsageError(f"{path} brings its own preprocess, labels and weights: leave out those options")
        found = _from_folder(path, confirm)
    else:
        found = _by_name(model, preprocess, labels, weights, confirm)
    source = found.source
    ranges = calibrate or (measure if source.calibrate is None else None)
    accuracy = measure or (calibrate if source.held_out is None else None)
    if accuracy:  # never on images that calibrate
        part: data.Part | None = "val" if accuracy == ranges else None
        source = replace(source, held_out=partial(_held_out, accuracy, part, source, confirm))
    if ranges:
        given = data.evaluation(ranges, source.preprocess, "train", confirm=confirm)
        source = replace(
            source,
            calibrate=partial(calibration_images, given.split, classes=given.classes, labels=source.labels),
            lessons=partial(lessons, given.split, given.classes, source.labels),
        )
    return replace(found, source=source)


def _held_out(origin: str, part: data.Part | None, source: Source, confirm: Callable[[str], bool]) -> Labelled:
    found = data.evaluation(origin, source.preprocess, part, confirm=confirm)
    return labelled(found.split, found.classes, source.labels)


def _from_folder(path: Path, confirm: Callable[[str], bool]) -> Found:
    if is_run(path):
        run = Run(folder=path)
        trained = checkpoint.read(run.checkpoint)
        source, state = from_checkpoint(trained, None), run.state()
        assert state is not None
        spec, origin = run.recipe().data, state.source
        load = cache(lambda: data.load(spec, source=origin, confirm=confirm))
        lazy = replace(
            source,
            calibrate=lambda spec: calibration_images(load().train, spec),
            held_out=lambda: labelled(load().val, load().classes, source.labels),
            lessons=lambda: lessons(load().train, load().classes, source.labels, run.recipe().train.augment),
        )
        return Found(source=lazy, name=path.resolve().name)
    return Found(source=from_checkpoint(checkpoint.find(path), None), name=path.resolve().name)


def _from_keras(
    path: Path, preprocess: Preprocess | None, labels: tuple[str, ...] | None, weights: Path | str | None
) -> Found:
    if weights:
        raise UsageError(f"{path} brings its own weights: leave out --weights")
    if preprocess is None:
        raise UsageError(f"{path} {NO_CONTRACT}")
    source = keras_source.find(path, preprocess, labels)
    notes = () if labels else (_numbered(len(source.labels)),)
    return Found(source=source, name=path.resolve().stem, notes=notes)


def _numbered(count: int) -> str:
    return f"no --labels: the {count} classes are called 0 to {count - 1}"


def _by_name(
    model: str,
    preprocess: Preprocess | None,
    labels: tuple[str, ...] | None,
    weights: Path | str | None,
    confirm: Callable[[str], bool],
) -> Found:
    classes, spec = len(labels) if labels else IMAGENET_CLASSES, ModelSpec(name=model)
    models.check(spec)
    if preprocess is None:
        raise UsageError(f"{model} {NO_CONTRACT}")
    if weights and model.endswith(".pt2"):
        raise UsageError(f"{model} brings its own weights: leave out --weights")
    file = pretrained.ensure(spec, confirm) if str(weights) == IMAGENET else Path(weights) if weights else None
    side = preprocess.height if preprocess.height == preprocess.width else None
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays as it was
        torch.manual_seed(0)
        module = models.build(spec, classes, side).eval()
    notes = []
    if str(weights) == IMAGENET:
        notes += [*pretrained.load_(module, spec), *_expectations(spec, preprocess)]
    elif file:
        _load(module, file)
    outputs = _outputs(module, preprocess, model)
    classifier = PixelClassifier(module, preprocess).eval()
    if not weights and ".py:" not in model and not model.endswith(".pt2"):
        _settle_(classifier, preprocess)
        notes.append(f"{model} has random weights: its latency counts, its accuracy does not (--weights FILE)")
    if labels and len(labels) != outputs:
        raise UsageError(f"{model} gives {outputs} scores, but there are {len(labels)} labels")
    if not labels:
        notes.append(_numbered(outputs))
    source = ExportSource(
        model=classifier,
        preprocess=preprocess,
        labels=labels or tuple(str(index) for index in range(outputs)),
        parent=sha256(file) if file else sha256(Path(model)) if model.endswith(".pt2") else "",
    )
    name = Path(model.partition(".py:")[0]).name.removesuffix(".pt2").replace(":", "-")
    return Found(source=source, name=name, notes=tuple(notes))


def _settle_(model: PixelClassifier, preprocess: Preprocess) -> None:
    """Give an untrained network numbers of a trained one's size: else fp16 holds nothing of its logits."""
    height, width = preprocess.height, preprocess.width
    count = min(64, max(8, SETTLING_PIXELS // (height * width)))
    settle_(model, torch.from_numpy(noise((height, width, 3), count)).permute(0, 3, 1, 2).float())


def _expectations(spec: ModelSpec, preprocess: Preprocess) -> list[str]:
    """What a user should know who feeds published weights otherwise than they were trained."""
    name, side = pretrained.published(spec).preprocess, models.resolution(spec.name)
    wanted, notes = preset(name, preprocess.height, preprocess.width), []
    if (preprocess.mean, preprocess.std) != (wanted.mean, wanted.std):
        notes.append(f"these weights were trained with --preprocess {name}: another costs accuracy")
    if side != preprocess.height:
        notes.append(f"{spec.name} was published for {side} pixels and is made for {preprocess.height} here")
    return notes


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
    except (EdgekitError, OSError):
        raise
    except Exception as error:  # a damaged file makes torch and safetensors raise anything
        first = str(error).strip().splitlines()
        shown = " ".join(line.strip() for line in first[:3]) or type(error).__name__
        if isinstance(error, UnpicklingError):  # torch's own text advises to run what is in the file
            shown = "it holds other Python objects, or is damaged; save model.state_dict() instead"
        raise CheckpointError(f"--weights {path} does not hold this model's tensors: {shown}") from error


def _outputs(module: nn.Module, preprocess: Preprocess, name: str) -> int:
    """How many scores the model gives for one image."""
    image = torch.zeros(1, 3, preprocess.height, preprocess.width)
    try:
        with torch.no_grad():
            logits = module(image)
    except (RuntimeError, AssertionError, ValueError) as error:  # models of one size assert it
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{name} does not run on {tuple(image.shape)}: {line}") from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or math.prod(logits.shape) < 2:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConversionError(f"{name} gives {shape}; a classifier gives scores of shape (1, classes)")
    return int(logits.shape[1])
