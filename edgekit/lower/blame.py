"""Where in a model's own code torch.export gave up: module path and source line."""

import linecache
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from edgekit import export
from edgekit.errors import ConversionError

_TORCH = Path(torch.__file__).parent
_STANDARD = Path(sysconfig.get_path("stdlib"))
_PACKAGES = ("site-packages", "dist-packages")
_OURS = (Path(__file__).parent, Path(export.__file__))
_DEPENDS = ("data-dependent", "DataDependent")
_CURE = "; write it so that what is computed does not depend on the values of the pixels"


def is_users(file: str) -> bool:
    """Whether a file of a traceback is a model's: not torch's, Python's own, or what edgekit wraps around it."""
    path = Path(file)
    standard = _STANDARD in path.parents and not any(name in path.parts for name in _PACKAGES)
    others = _TORCH in path.parents or "sympy" in path.parts or any(one in (path, *path.parents) for one in _OURS)
    return path.is_file() and not standard and not others


def untraceable(error: BaseException, model: nn.Module) -> ConversionError:
    """The error of torch.export as one line: what it says, the module, the line of its code, and what helps."""
    root = error
    while root.__cause__ is not None:  # it wraps its own in pages of advice
        root = root.__cause__
    line = (str(root).strip().splitlines() or [""])[0]
    kind = type(root).__name__
    paths = {id(module): path for path, module in model.named_modules()}
    module, source = "", ""
    for frame, number in _frames(root):
        owner = paths.get(id(frame.f_locals.get("self")), "")
        if owner:
            module = owner
        file = frame.f_code.co_filename
        if is_users(file):
            source = f" ({file}, line {number}: {linecache.getline(file, number).strip()})"
    place = f" in module {module}{source}" if module else source
    cure = _CURE if any(word in f"{kind} {line}" for word in _DEPENDS) else ""
    return ConversionError(f"torch.export cannot convert this model: {kind}: {line}{place}{cure}")


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """The frames that the error came through, outermost first."""
    entry = error.__traceback__
    while entry is not None:
        yield entry.tb_frame, entry.tb_lineno
        entry = entry.tb_next
