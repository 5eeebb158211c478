"""Sums and products: element by element, by constants for each channel, and dense layers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.lower.emit import NHWC, Emitter, Unsupported, Value, plain

Scalar = float | int


def add(e: Emitter, self: Any, other: Any, alpha: Scalar = 1) -> Value:
    if alpha != 1:
        raise Unsupported(f"its alpha is {alpha}")
    return _binary(e, "ADD", *_constant_last(self, other))


def mul(e: Emitter, self: Any, other: Any) -> Value:
    return _binary(e, "MUL", *_constant_last(self, other))


def sub(e: Emitter, self: Any, other: Any, alpha: Scalar = 1) -> Value:
    if alpha != 1:
        raise Unsupported(f"its alpha is {alpha}")
    if not isinstance(other, Value):  # the same numbers, and one operator less for the passes to know
        return _binary(e, "ADD", self, -_array(other))
    return _binary(e, "SUB", self, other)


def rsub(e: Emitter, self: Value, other: Any, alpha: Scalar = 1) -> Value:
    return sub(e, other, self, alpha)


def div(e: Emitter, self: Any, other: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode:
        raise Unsupported(f"it rounds ({rounding_mode})")
    if not isinstance(other, Value):
        return _binary(e, "MUL", self, 1 / _array(other))
    return _binary(e, "DIV", self, other)


def reciprocal(e: Emitter, self: Value) -> Value:
    return div(e, 1, self)


def _constant_last(a: Any, b: Any) -> tuple[Any, Any]:
    return (a, b) if isinstance(a, Value) else (b, a)


def _array(value: Any) -> Any:
    """A constant in double precision: its reciprocal is rounded once."""
    return value.detach().numpy().astype(np.float64) if isinstance(value, Tensor) else np.float64(value)


def _binary(e: Emitter, kind: str, a: Any, b: Any) -> Value:
    order = next(x.order for x in (a, b) if isinstance(x, Value) and len(x.shape) == len(e.shape))
    if not all(len(x.shape) == len(order) for x in (a, b) if isinstance(x, Value)):
        order = plain(len(order))  # TFLite, as torch, adds missing axes in front
    names = []
    for x in (a, b):
        if not isinstance(x, Value):
            names.append(e.constant("constant", _spread(_array(x), order)))
        elif len(x.shape) == len(order):
            names.append(e.stored_as(x, order).name)
        else:
            names.append(e.stored_as(x, plain(len(x.shape))).name)
    return e.emit(kind, names, order=order)


def _spread(constant: Any, order: tuple[int, ...]) -> Any:
    """The constant as the other operand is stored, without leading axes of length 1."""
    if constant.ndim > len(order):
        raise Unsupported("a constant has more axes than what it meets")
    whole = constant.reshape((1,) * (len(order) - constant.ndim) + constant.shape).transpose(order)
    if (whole == whole.flat[0]).all():
        return whole.flat[0]
    while whole.shape[0] == 1:
        whole = whole[0]
    return whole


def batch_norm(
    e: Emitter,
    input: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    """A product and a sum for each channel. The passes fold them into the convolution before."""
    if training or running_mean is None or running_var is None:
        raise Unsupported("it takes its statistics from the batch")
    scale = 1 / (running_var.double() + eps).sqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    order = NHWC if len(input.shape) == 4 else input.order
    if len(input.shape) not in (2, 4):
        raise Unsupported(f"its input has {len(input.shape)} axes")
    x = e.stored_as(input, order)
    scaled = e.emit("MUL", (x.name, e.constant("scale", scale)), order=order, suffix="scaled")
    return e.emit("ADD", (scaled.name, e.constant("shift", shift)), order=order)


def linear(e: Emitter, input: Value, weight: Tensor, bias: Tensor | None) -> Value:
    if not isinstance(weight, Tensor):
        raise Unsupported("its weights are computed from the pixels")
    x = e.stored_as(input, plain(len(input.shape)))
    values = torch.zeros(len(weight)) if bias is None else bias
    inputs = (x.name, e.constant("weight", weight), e.constant("bias", values))
    return e.emit("FULLY_CONNECTED", inputs, keepNumDims=len(e.shape) > 2)


def addmm(e: Emitter, self: Tensor, mat1: Value, mat2: Tensor, beta: Scalar, alpha: Scalar) -> Value:
    if not isinstance(self, Tensor) or not isinstance(mat2, Tensor) or (beta, alpha) != (1, 1):
        raise Unsupported("it is no dense layer")
    return linear(e, mat1, mat2.T, self.expand(mat2.shape[1]))
