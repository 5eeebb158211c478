"""A small graph of TFLite operators: the importer fills it, passes change it in place, the writer stores it.

Tensors go by name. Shapes are as stored: an image is (N, H, W, C). Every operator has one output.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One operator. *kind* is TFLite's name of it; *options* are the fields of its options table."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "NONE"  # fused: NONE, RELU, RELU6 or RELU_N1_TO_1


@dataclass(kw_only=True, slots=True)
class Graph:
    """Nodes by the name of their output, in the order in which they run."""

    input: str
    output: str = ""
    shapes: dict[str, Shape] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken."""
        number, found = 0, name
        while found in self.shapes:
            number += 1
            found = f"{name}_{number}"
        return found

    def add_constant_(self, name: str, value: Array) -> str:
        """Store *value*, floats as float32; gives the tensor's name."""
        name = self.unique(name)
        stored = value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value
        self.constants[name], self.shapes[name] = np.array(stored, order="C"), value.shape
        return name

    def set_(self, name: str, value: Array) -> None:
        """Give a constant of floats another value."""
        self.constants[name] = np.array(value, np.float32, order="C")

    def add_node_(self, node: Node, shape: Iterable[int]) -> str:
        self.nodes[node.output], self.shapes[node.output] = node, tuple(shape)
        return node.output

    def users(self, name: str) -> list[Node]:
        return [node for node in self.nodes.values() if name in node.inputs]

    def is_private(self, name: str) -> bool:
        """Whether one operator alone reads the tensor, and once: its values may change with that operator."""
        return name != self.output and sum(node.inputs.count(name) for node in self.nodes.values()) == 1

    def change_(self, node: Node, **changes: Any) -> Node:
        """The node with *changes*, which takes its place."""
        changed = replace(node, **changes)
        self.nodes[node.output] = changed
        return changed

    def drop_(self, node: Node) -> None:
        """Remove a node; what read its output reads its first input."""
        before = node.inputs[0]
        del self.nodes[node.output]
        del self.shapes[node.output]
        for user in self.users(node.output):
            self.change_(user, inputs=tuple(before if name == node.output else name for name in user.inputs))
        if self.output == node.output:
            self.output = before

    def forget_(self, node: Node) -> None:
        """Remove a node that nothing reads any more."""
        if node.output != self.output and not self.users(node.output):
            del self.nodes[node.output]
            del self.shapes[node.output]

    def prune_(self) -> None:
        """Remove what the output does not need: operators first, then constants."""
        for node in reversed(tuple(self.nodes.values())):
            self.forget_(node)
        read = {name for node in self.nodes.values() for name in node.inputs}
        for name in tuple(self.constants):
            if name not in read and name != self.output:
                del self.constants[name]
                del self.shapes[name]
