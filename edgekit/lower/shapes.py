"""Operators that move values and change none."""

from collections.abc import Sequence
from typing import Any

from edgekit.lower.emit import Emitter, Unsupported, Value, plain


def identity(e: Emitter, self: Value, **arguments: Any) -> Value:
    return self


def dropout(e: Emitter, input: Value, p: float, train: bool) -> Value:
    if train and p:
        raise Unsupported("it drops values in evaluation, too: give it training=self.training")
    return input


def reshape(e: Emitter, self: Value, **arguments: Any) -> Value:
    return e.reshaped(self, e.shape)


def permute(e: Emitter, self: Value, dims: Sequence[int]) -> Value:
    dims = [dim % len(dims) for dim in dims]
    return Value(name=self.name, shape=e.shape, order=tuple(dims.index(axis) for axis in self.order))


def transpose(e: Emitter, self: Value, dim0: int, dim1: int) -> Value:
    dims = list(plain(len(self.shape)))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(e, self, dims)


def channel_shuffle(e: Emitter, self: Value, groups: int) -> Value:
    batch, channels, height, width = self.shape
    apart = e.reshaped(self, (batch, groups, channels // groups, height, width))
    shape = (batch, channels // groups, groups, height, width)
    swapped = (0, 2, 1, 3, 4)
    order = tuple(swapped[axis] for axis in apart.order)
    return e.reshaped(Value(name=apart.name, shape=shape, order=order), e.shape)


def cat(e: Emitter, tensors: Sequence[Value], dim: int) -> Value:
    if not all(isinstance(tensor, Value) for tensor in tensors):
        raise Unsupported("it joins with a constant")
    order = tensors[0].order
    if len(tensors) == 1:
        return tensors[0]
    inputs = [e.stored_as(tensor, order).name for tensor in tensors]
    return e.emit("CONCATENATION", inputs, order=order, axis=order.index(dim % len(order)))


def slice(e: Emitter, self: Value, dim: int, start: int | None, end: int | None, step: int) -> Value:
    if step != 1:
        raise Unsupported(f"its step is {step}")
    first = range(self.shape[dim])[start:end]
    return _part(e, self, dim, first.start)


def _part(e: Emitter, value: Value, dim: int, start: int) -> Value:
    """*e.shape* of the value, from *start* on along the axis *dim*."""
    if e.shape == value.shape:
        return value
    begin = [start if axis == dim % len(value.order) else 0 for axis in value.order]
    inputs = (value.name, e.integers("begin", begin), e.integers("size", [e.shape[a] for a in value.order]))
    return e.emit("SLICE", inputs, order=value.order)


def pad(e: Emitter, self: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    if mode != "constant":
        raise Unsupported(f"its mode is {mode}")
    sides = {len(self.shape) - 1 - i // 2: (pad[i], pad[i + 1]) for i in range(0, len(pad), 2)}
    return e.padded(self, [sides.get(axis, (0, 0)) for axis in self.order], float(value or 0))
