"""Operators that move numbers and change none: shapes, slices, joins, constant padding."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import ConversionError
from edgekit.mil.arguments import Operator, ints


def _pad(a: dict[str, Any]) -> Tensor:
    """MIL pads the last axes, (before, after) of each in order; torch wants the last axis first."""
    if a["mode"] != "constant":
        raise ConversionError(f"the reference knows the Core ML operator 'pad' with constants, not {a['mode']!r}")
    pairs = np.array(ints(a["pad"])).reshape(-1, 2)[::-1]
    return F.pad(a["x"], [int(side) for pair in pairs for side in pair], value=float(a.get("constant_val", 0.0)))


def _split(a: dict[str, Any]) -> tuple[Tensor, ...]:
    axis = int(a["axis"])
    if "split_sizes" in a:
        return torch.split(a["x"], ints(a["split_sizes"]), dim=axis)
    return torch.tensor_split(a["x"], int(a["num_splits"]), dim=axis)


def _concat(a: dict[str, Any]) -> Tensor:
    axis, values = int(a["axis"]) % a["values"][0].dim(), a["values"]
    if a["interleave"]:
        return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, dim=axis)


def _slice_by_index(a: dict[str, Any]) -> Tensor:
    """NumPy's slicing; a set mask frees that end, or keeps *begin* alone and drops the axis."""
    x: Tensor = a["x"]
    begins, ends = ints(a["begin"]), ints(a["end"])
    strides = ints(a["stride"]) if "stride" in a else [1] * x.dim()
    free_begin, free_end, single = (
        [bool(flag) for flag in a[name]] if name in a else [False] * x.dim()
        for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    for axis, length in enumerate(x.shape):
        begin, end = (None if free_begin[axis] else begins[axis]), (None if free_end[axis] else ends[axis])
        rows = [begins[axis] % length] if single[axis] else list(range(length)[begin : end : strides[axis]])
        x = x.index_select(axis, torch.tensor(rows))
    return x.squeeze([axis for axis, dropped in enumerate(single) if dropped])


def _squeeze(a: dict[str, Any]) -> Tensor:
    x: Tensor = a["x"]
    return x.squeeze(ints(a["axes"]) if "axes" in a else [axis for axis, n in enumerate(x.shape) if n == 1])


def _expand_dims(a: dict[str, Any]) -> Tensor:
    """Axes count in what comes out."""
    x: Tensor = a["x"]
    rank = x.dim() + len(ints(a["axes"]))
    for axis in sorted(axis % rank for axis in ints(a["axes"])):
        x = x.unsqueeze(axis)
    return x


SHAPES: dict[str, Operator] = {
    "concat": _concat,
    "expand_dims": _expand_dims,
    "pad": _pad,
    "reshape": lambda a: a["x"].reshape(ints(a["shape"])),
    "slice_by_index": _slice_by_index,
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda a: torch.stack(a["values"], dim=int(a["axis"])),
    "transpose": lambda a: a["x"].permute(ints(a["perm"])),
}
