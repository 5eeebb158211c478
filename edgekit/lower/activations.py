"""Functions of one value, and softmax."""

from typing import Any

import numpy as np

from edgekit.lower.emit import Emitter, Unsupported, Value

Scalar = float | int


def unary(kind: str, e: Emitter, x: Value, **options: Any) -> Value:
    return e.emit(kind, (x.name,), order=x.order, **options)


def relu(e: Emitter, self: Value) -> Value:
    return unary("RELU", e, self)


def relu6(e: Emitter, self: Value) -> Value:
    return unary("RELU6", e, self)


def hardtanh(e: Emitter, self: Value, min_val: Scalar, max_val: Scalar) -> Value:
    return clamp(e, self, min_val, max_val)


def clamp(e: Emitter, self: Value, min: Scalar | None, max: Scalar | None) -> Value:
    match min, max:
        case (0, None):
            return unary("RELU", e, self)
        case (0, 6):
            return unary("RELU6", e, self)
        case (-1, 1):
            return unary("RELU_N1_TO_1", e, self)
    low = self
    if min is not None:
        inputs = (self.name, e.constant("min", np.array(float(min))))
        low = e.emit("MAXIMUM", inputs, order=self.order, suffix="" if max is None else "low")
    if max is None:
        return low
    return e.emit("MINIMUM", (low.name, e.constant("max", np.array(float(max)))), order=self.order)


def clamp_min(e: Emitter, self: Value, min: Scalar) -> Value:
    return clamp(e, self, min, None)


def hardswish(e: Emitter, self: Value) -> Value:
    return unary("HARD_SWISH", e, self)


def sigmoid(e: Emitter, self: Value) -> Value:
    return unary("LOGISTIC", e, self)


def silu(e: Emitter, self: Value) -> Value:
    gate = e.emit("LOGISTIC", (self.name,), order=self.order, suffix="sigmoid")
    return e.emit("MUL", (self.name, gate.name), order=self.order)


def hardsigmoid(e: Emitter, self: Value) -> Value:
    """relu6(x + 3) / 6: the sum goes into a bias, relu6 into the convolution, the sixth into what comes next."""
    three, sixth = e.constant("three", np.array(3.0)), e.constant("sixth", np.array(1 / 6))
    moved = e.emit("ADD", (self.name, three), order=self.order, suffix="moved")
    clipped = e.emit("RELU6", (moved.name,), order=self.order, suffix="clipped")
    return e.emit("MUL", (clipped.name, sixth), order=self.order)


def tanh(e: Emitter, self: Value) -> Value:
    return unary("TANH", e, self)


def elu(e: Emitter, self: Value, alpha: Scalar, scale: Scalar, input_scale: Scalar) -> Value:
    if (alpha, scale, input_scale) != (1, 1, 1):
        raise Unsupported(f"its alpha is {alpha}")
    return unary("ELU", e, self)


def leaky_relu(e: Emitter, self: Value, negative_slope: Scalar) -> Value:
    return unary("LEAKY_RELU", e, self, alpha=float(negative_slope))


def gelu(e: Emitter, self: Value, approximate: str) -> Value:
    return unary("GELU", e, self, approximate=approximate == "tanh")


def softmax(e: Emitter, self: Value, dim: int, dtype: Any = None, half_to_float: bool = False) -> Value:
    x = _last(e, self, dim)
    return e.emit("SOFTMAX", (x.name,), order=x.order, beta=1.0)


def log_softmax(e: Emitter, self: Value, dim: int, dtype: Any = None, half_to_float: bool = False) -> Value:
    x = _last(e, self, dim)
    return e.emit("LOG_SOFTMAX", (x.name,), order=x.order)


def _last(e: Emitter, value: Value, dim: int) -> Value:
    """The value with the axis *dim* stored last."""
    wanted = dim % len(value.shape)
    return e.stored_as(value, (*(axis for axis in value.order if axis != wanted), wanted))
