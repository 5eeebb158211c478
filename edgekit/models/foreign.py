"""Models that edgekit does not bring: torchvision's, timm's, a function in a user's file, an exported program."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import EdgekitError, UsageError, unknown
from edgekit.requires import require

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["torchvision", "timm", "file", "exported"]
FORMS = ("torchvision:NAME", "timm:NAME", "FILE.py:FACTORY", "FILE.pt2")


def kind(name: str) -> Kind | None:
    """Where a model of that name comes from: see FORMS."""
    if name.startswith("torchvision:"):
        return "torchvision"
    if name.startswith("timm:"):
        return "timm"
    if name.endswith(".pt2"):
        return "exported"
    return "file" if ".py:" in name or name.endswith(".py") else None


def check(name: str) -> None:
    """Raise UsageError or MissingDependency for a name that cannot be built. A user's file is not run yet."""
    match kind(name):
        case "torchvision":
            _torchvision(name)
        case "timm":
            _timm(name)
        case "exported":
            if not Path(name).is_file():
                raise UsageError(f"no such file: {name}")
        case _:
            _file(name)


def build(name: str, classes: int, side: int | None = None) -> "nn.Module":
    """The model with random weights, or the program of a .pt2 file with its own. Raises UsageError.

    *side*: height and width of its images, for models that are made for one size.
    """
    from torch import nn

    match kind(name):
        case "torchvision":
            models, short = _torchvision(name)
            model = models.get_model(short, weights=None, num_classes=classes, **_torchvision_options(short, side))
        case "timm":
            timm, short = _timm(name)
            sized = side is not None and getattr(timm.get_pretrained_cfg(short), "fixed_input_size", False)
            options = {"img_size": side} if sized else {}
            model = timm.create_model(short, pretrained=False, num_classes=classes, **options)
        case "exported":
            from edgekit.models.exported import Exported

            model = Exported(Path(name))
        case _:
            model = _own(name, classes)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} returned {type(model).__name__}; the factory must return a torch.nn.Module")
    return model


def _torchvision(name: str) -> tuple[Any, str]:
    models = require("torchvision.models", feature=f"The model {name}", extra="train")
    short, known = name.removeprefix("torchvision:"), models.list_models(module=models)
    if short not in known:
        raise unknown("torchvision model", short, known)
    return models, short


def _torchvision_options(short: str, side: int | None) -> dict[str, Any]:
    """What get_model needs besides the classes."""
    if short in ("googlenet", "inception_v3"):  # in training the side classifiers would make a tuple of the logits
        return {"aux_logits": False, "init_weights": True}
    if short.startswith("vit_") and side is not None:  # its position embedding is for one size
        return {"image_size": side}
    return {}


def _timm(name: str) -> tuple[Any, str]:
    timm = require("timm", feature=f"The model {name}", extra="timm")
    short = name.removeprefix("timm:")
    if not timm.is_model(short):
        raise UsageError(
            f"unknown timm model {short!r}; timm.list_models() gives the {len(timm.list_models())} known"
        )
    return timm, short


def _file(name: str) -> tuple[Path, str]:
    path, _, function = name.rpartition(":")
    if not path or not function:
        raise UsageError(f"{name!r} names no function: write FILE.py:FACTORY")
    if not Path(path).is_file():
        raise UsageError(f"no such file: {path} (from the model {name!r})")
    return Path(path), function


def _factory(name: str) -> Callable[..., Any]:
    path, function = _file(name)
    module_name = f"edgekit.user_models.{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling in the file look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises; the traceback stays as the cause
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    factory = getattr(module, function, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function in {path}", function, known)
    return factory  # type: ignore[no-any-return]


def _own(name: str, classes: int) -> Any:
    """What the user's factory returns. Whatever the user's code raises is told with its line."""
    try:
        return _call(_factory(name), classes)
    except EdgekitError:
        raise
    except Exception as error:
        path = _file(name)[0].resolve()
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise UsageError(f"{name} failed in {where}: {type(error).__name__}: {error}") from error


def _call(factory: Callable[..., Any], classes: int) -> Any:
    """FACTORY(classes), or FACTORY() when it takes nothing."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = any(
        parameter.kind in positional or parameter.kind is inspect.Parameter.VAR_POSITIONAL
        for parameter in inspect.signature(factory).parameters.values()
    )
    return factory(classes) if takes else factory()
