"""Appends operators to a graph and keeps track of how torch's axes are stored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgekit.lower.graph import Array, Graph, Node, Shape

NHWC = (0, 2, 3, 1)  # how torch's axes N, C, H, W of an image are stored


class Unsupported(Exception):
    """Why an operator cannot be written; the importer adds where it stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A tensor of the graph. *shape* is torch's; axis i of what is stored is torch's axis *order[i]*.

    So a permutation in torch costs nothing until an operator wants another order.
    """

    name: str
    shape: Shape
    order: tuple[int, ...]

    @property
    def stored(self) -> Shape:
        return tuple(self.shape[axis] for axis in self.order)


def plain(rank: int) -> tuple[int, ...]:
    """The order of torch itself."""
    return tuple(range(rank))


@dataclass(kw_only=True, slots=True)
class Emitter:
    """*name*: of the torch operator that is being read, from its module's path. *shape*: of torch's result."""

    graph: Graph
    name: str = ""
    shape: Shape = ()

    def emit(
        self,
        kind: str,
        inputs: Sequence[str],
        shape: Shape | None = None,
        order: tuple[int, ...] | None = None,
        *,
        suffix: str = "",
        **options: Any,
    ) -> Value:
        """One more operator. *shape* is torch's and that of the whole torch operator if it is not given."""
        shape = self.shape if shape is None else shape
        order = plain(len(shape)) if order is None else order
        output = self.graph.unique(f"{self.name}.{suffix}" if suffix else self.name)
        value = Value(name=output, shape=shape, order=order)
        node = Node(kind=kind, inputs=tuple(inputs), output=output, options=options)
        self.graph.add_node_(node, value.stored)
        return value

    def constant(self, suffix: str, value: torch.Tensor | Array) -> str:
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        return self.graph.add_constant_(f"{self.name}.{suffix}", array)

    def integers(self, suffix: str, values: Sequence[Any]) -> str:
        return self.constant(suffix, np.array(values, np.int32))

    def stored_as(self, value: Value, order: tuple[int, ...]) -> Value:
        """The value with its axes in *order*: transposed, or reshaped where only axes of length 1 move."""
        if value.order == order:
            return value
        moving = [tuple(axis for axis in o if value.shape[axis] != 1) for o in (value.order, order)]
        if moving[0] == moving[1]:
            shape = [value.shape[axis] for axis in order]
            inputs = (value.name, self.integers("shape", shape))
            return self.emit("RESHAPE", inputs, value.shape, order, suffix="reshape", newShape=shape)
        permutation = self.integers("axes", [value.order.index(axis) for axis in order])
        return self.emit("TRANSPOSE", (value.name, permutation), value.shape, order, suffix="transpose")

    def image(self, value: Value) -> Value:
        """The value as (N, H, W, C)."""
        if len(value.shape) != 4:
            raise Unsupported(f"its input has {len(value.shape)} axes and not 4")
        return self.stored_as(value, NHWC)

    def reshaped(self, value: Value, shape: Shape) -> Value:
        """The value with another shape, as torch's `reshape` reads it; axes stay stored as they are if they can.

        Axes that are merged have to lie side by side in torch's order; what one axis is split into does.
        """
        order: list[int] = []  # of the value, so that each group of axes lies together
        found: list[int] = []  # of the result
        groups = _groups(value.shape, shape)
        for axis in value.order:
            if axis not in order:
                old, new = next(((old, new) for old, new in groups if axis in old), ([axis], []))
                order += old
                found += new
        for axis in (axis for axis, side in enumerate(shape) if side == 1):
            found.insert(axis, axis)
        source = self.stored_as(value, tuple(order))
        stored = [shape[axis] for axis in found]
        if tuple(stored) == source.stored:
            return Value(name=source.name, shape=shape, order=tuple(found))
        inputs = (source.name, self.integers("shape", stored))
        return self.emit("RESHAPE", inputs, shape, tuple(found), newShape=stored)

    def padded(self, value: Value, pads: Sequence[tuple[int, int]], fill: float = 0.0) -> Value:
        """The value with *pads* (before, after) for each of its stored axes."""
        if not any(map(any, pads)):
            return value
        if min(map(min, pads)) < 0:
            raise Unsupported("it pads by less than nothing")
        widths = dict(zip(value.order, map(sum, pads), strict=True))
        shape = tuple(side + widths[axis] for axis, side in enumerate(value.shape))
        inputs = (value.name, self.integers("pads", pads))
        if fill == 0:
            return self.emit("PAD", inputs, shape, value.order, suffix="pad")
        filled = (*inputs, self.constant("fill", np.array(fill, np.float32)))
        return self.emit("PADV2", filled, shape, value.order, suffix="pad")


def _groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Which axes of one shape become which of the other, as small groups as can be; lengths of 1 left out."""
    groups: list[tuple[list[int], list[int]]] = []
    old = [axis for axis, side in enumerate(before) if side != 1]
    new = [axis for axis, side in enumerate(after) if side != 1]
    while old:
        taken, made = [old.pop(0)], [new.pop(0)]
        while (a := math.prod(before[i] for i in taken)) != (b := math.prod(after[i] for i in made)):
            if a < b:
                taken.append(old.pop(0))
            else:
                made.append(new.pop(0))
        groups.append((taken, made))
    return groups
