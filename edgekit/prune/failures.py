"""Where in a model something went wrong, for people who have to change it."""

import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACKAGES = Path(torch.__file__).parent.parent
_FRAME = re.compile(r'File "(.+)", line (\d+)')


def told(error: BaseException) -> str:
    """The error's first line, and the last line of the model's own code that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{_text(error)}{_at([(frame.filename, frame.lineno or 0) for frame in frames])}"


def untraced(error: BaseException, names: Mapping[nn.Module, str]) -> str:
    """The same of torch-pruning's graph: the operation that it stumbled over, and the module before it.

    The operations must have been recorded under autograd's anomaly detection, which notes their lines.
    """
    node, trace = None, error.__traceback__
    while trace is not None:
        node, trace = trace.tb_frame.f_locals.get("node", node), trace.tb_next
    grad_fn = getattr(node, "grad_fn", None)
    lines = (getattr(grad_fn, "metadata", None) or {}).get("traceback_", [])
    frames = [(match[1], int(match[2])) for line in lines if (match := _FRAME.search(line))]
    if not frames:
        return told(error)
    before = _module_before(node, names)
    where = f" after {before}" if before else ""
    return f"torch-pruning does not know {grad_fn.name()}{where}{_at(frames)}"  # type: ignore[union-attr]


def _module_before(node: Any, names: Mapping[nn.Module, str]) -> str:
    """The nearest layer that the operation's input comes from."""
    seen, queue = set(), [node]
    while queue:
        one = queue.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one.module in names:
            return names[one.module]
        queue += one.inputs
    return ""


def _text(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _at(frames: list[tuple[str, int]]) -> str:
    """The last of them that is the model's, and neither torch's nor ours."""
    others = (PACKAGES / "torch", PACKAGES / "torch_pruning", Path(__file__).parent.parent)
    found = [f for f in frames if not any(folder in Path(f[0]).parents for folder in others)]
    return f" ({found[-1][0]}, line {found[-1][1]})" if found else ""
