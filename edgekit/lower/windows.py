"""Operators that move a window over an image: convolutions and pools, with torch's padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.lower.emit import NHWC, Emitter, Unsupported, Value, plain

Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)
LOWEST = float(np.finfo(np.float32).min)


def same_pads(sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Pads:
    """What TFLite's SAME adds: to ceil(side / stride) outputs, the odd row and column last."""
    found = []
    for side, k, s, d in zip(sides, kernel, stride, dilation, strict=True):
        total = max(0, (-(-side // s) - 1) * s + (k - 1) * d + 1 - side)
        found.append((total // 2, total - total // 2))
    return found[0], found[1]


def read_pads(
    sides: Sequence[int],
    outputs: Sequence[int],
    before: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pads:
    """The pads of which the windows of *outputs* read something: torch's own, less what lies behind the last."""
    found = []
    for side, out, top, k, s, d in zip(sides, outputs, before, kernel, stride, dilation, strict=True):
        found.append((top, max(0, (out - 1) * s + (k - 1) * d + 1 - side - top)))
    return found[0], found[1]


def conv2d(
    e: Emitter,
    input: Value,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    transposed: bool = False,
    output_padding: Sequence[int] = (),
) -> Value:
    if transposed:
        raise Unsupported("it is a transposed convolution")
    if not isinstance(weight, Tensor):
        raise Unsupported("its weights are computed from the pixels")
    x = e.image(input)
    (stride, dilation), kernel = map(_pair, (stride, dilation)), weight.shape[2:]
    if padding == "valid":
        padding = (0, 0)
    if isinstance(padding, str):  # torch has "same" for stride 1 only, and its rule is TFLite's
        pads = same_pads(input.shape[2:], kernel, stride, dilation)
    else:
        (height, width) = _pair(padding)
        pads = ((height, height), (width, width))
    x = e.padded(x, ((0, 0), *pads, (0, 0)))
    options: dict[str, Any] = {"padding": "VALID"}
    options |= dict(zip(("strideH", "strideW"), stride, strict=True))
    options |= dict(zip(("dilationHFactor", "dilationWFactor"), dilation, strict=True))
    channels, kind = input.shape[1], "CONV_2D"
    if groups == channels > 1:
        kind, options["depthMultiplier"] = "DEPTHWISE_CONV_2D", len(weight) // channels
    # A convolution's weights are stored (out, H, W, in / groups), a depthwise one's (1, H, W, out).
    stored = weight.permute((1, 2, 3, 0) if kind == "DEPTHWISE_CONV_2D" else (0, 2, 3, 1))
    values = torch.zeros(len(weight)) if bias is None else bias
    inputs = (x.name, e.constant("weight", stored), e.constant("bias", values))
    return e.emit(kind, inputs, order=NHWC, **options)


def max_pool2d(
    e: Emitter,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Value:
    if any(step != 1 for step in dilation):
        raise Unsupported(f"its dilation is {dilation}")
    kernel, before = _pair(kernel_size), _pair(padding)
    stride = _pair(stride or kernel)
    pads = read_pads(self.shape[2:], e.shape[2:], before, kernel, stride, (1, 1))
    x = e.padded(e.image(self), ((0, 0), *pads, (0, 0)), LOWEST)
    return _pool(e, "MAX_POOL_2D", x, kernel, stride, "VALID")


def avg_pool2d(
    e: Emitter,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Value:
    kernel, before = _pair(kernel_size), _pair(padding)
    stride = _pair(stride or kernel)
    pads = read_pads(self.shape[2:], e.shape[2:], before, kernel, stride, (1, 1))
    # The pool of an image of ones tells by what torch divides.
    ones = torch.ones(1, 1, *self.shape[2:])
    wanted = F.avg_pool2d(ones, kernel, stride, before, ceil_mode, count_include_pad, divisor_override)
    if pads == same_pads(self.shape[2:], kernel, stride, (1, 1)) and (wanted == 1).all():
        return _pool(e, "AVERAGE_POOL_2D", e.image(self), kernel, stride, "SAME")  # counts no padding
    (top, bottom), (left, right) = pads
    given = F.avg_pool2d(F.pad(ones, (left, right, top, bottom)), kernel, stride)
    given = given[..., : e.shape[2], : e.shape[3]]
    x = e.padded(e.image(self), ((0, 0), *pads, (0, 0)))
    if torch.equal(wanted, given):
        return _pool(e, "AVERAGE_POOL_2D", x, kernel, stride, "VALID")
    pooled = _pool(e, "AVERAGE_POOL_2D", x, kernel, stride, "VALID", suffix="pool")
    share = e.constant("share", (wanted.double() / given)[0].permute(1, 2, 0))
    return e.emit("MUL", (pooled.name, share), order=NHWC)


def mean(e: Emitter, self: Value, dim: Sequence[int] | None, keepdim: bool, dtype: Any = None) -> Value:
    rank = len(self.shape)
    gone = {axis % rank for axis in dim or range(rank)}
    axes = e.integers("axes", [i for i, axis in enumerate(self.order) if axis in gone])
    if keepdim:
        return e.emit("MEAN", (self.name, axes), order=self.order, keepDims=True)
    left = [axis for axis in plain(rank) if axis not in gone]
    order = tuple(left.index(axis) for axis in self.order if axis not in gone)
    return e.emit("MEAN", (self.name, axes), order=order, keepDims=False)


def adaptive_avg_pool2d(e: Emitter, self: Value, output_size: Any) -> Value:
    x = e.image(self)
    (height, width), (rows, columns) = self.shape[2:], e.shape[2:]
    if (height, width) == (rows, columns):
        return x
    if (rows, columns) == (1, 1):
        return e.emit("MEAN", (x.name, e.integers("axes", (1, 2))), order=NHWC, keepDims=True)
    if height % rows or width % columns:
        raise Unsupported(f"{height} x {width} pixels do not divide into {rows} x {columns}")
    kernel = [height // rows, width // columns]
    return avg_pool2d(e, self, kernel, kernel, [0, 0], False, True, None)


def _pool(
    e: Emitter, kind: str, x: Value, kernel: Sequence[int], stride: Sequence[int], padding: str, suffix: str = ""
) -> Value:
    options: dict[str, Any] = {"padding": padding}
    options |= dict(zip(("filterHeight", "filterWidth"), kernel, strict=True))
    options |= dict(zip(("strideH", "strideW"), stride, strict=True))
    return e.emit(kind, (x.name,), order=NHWC, suffix=suffix, **options)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """torch takes one number for both axes."""
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])
