"""Make a graph lean without changing what it computes, beyond the rounding of weights.

Each rule looks at one operator and its neighbours, and changes the graph in place where it applies.
"""

from collections.abc import Callable

import numpy as np

from edgekit.lower import folding
from edgekit.lower.folding import CONVOLUTIONS, LINEAR
from edgekit.lower.graph import Graph, Node
from edgekit.lower.windows import LOWEST, read_pads, same_pads

Rule = Callable[[Graph, Node], None]
_FUSING = (*LINEAR, "ADD", "SUB", "MUL")
_ACTIVATIONS = ("RELU", "RELU6", "RELU_N1_TO_1")
_NEVER_NEGATIVE = ("RELU", "RELU6", "LOGISTIC", "SOFTMAX")


def run_(graph: Graph) -> None:
    """Apply all rules, each to all operators."""
    graph.prune_()
    for rule in _RULES:
        for name in tuple(graph.nodes):
            if name in graph.nodes:
                rule(graph, graph.nodes[name])
    graph.prune_()


# --- activations ----------------------------------------------------------------------------------


def _fuse_activation_(graph: Graph, node: Node) -> None:
    before = graph.nodes.get(node.inputs[0])
    if node.kind not in _ACTIVATIONS or before is None or before.kind not in _FUSING:
        return
    if before.activation == "NONE" and graph.is_private(before.output):
        graph.change_(before, activation=node.kind)
        graph.drop_(node)


# --- padding --------------------------------------------------------------------------------------


def _merge_pads_(graph: Graph, node: Node) -> None:
    """A layer of padding before a convolution that pads: one PAD."""
    before = graph.nodes.get(node.inputs[0])
    if node.kind == "PAD" and before is not None and before.kind == "PAD" and graph.is_private(before.output):
        graph.constants[node.inputs[1]] = graph.constants[node.inputs[1]] + graph.constants[before.inputs[1]]
        graph.change_(node, inputs=(before.inputs[0], node.inputs[1]))
        graph.forget_(before)


def _pad_with_zeros_(graph: Graph, node: Node) -> None:
    """Nothing is below zero after a ReLU: there a zero pads as well as the lowest number, and quantizes."""
    if node.kind != "PADV2" or not _is_lowest(graph, node) or not _is_positive(graph, node.inputs[0]):
        return
    if all(user.kind == "MAX_POOL_2D" for user in graph.users(node.output)):
        graph.change_(node, kind="PAD", inputs=node.inputs[:2])


def _is_positive(graph: Graph, name: str) -> bool:
    """Whether the tensor holds no number below zero."""
    node = graph.nodes.get(name)
    if node is None:
        return False
    if node.kind in ("MAX_POOL_2D", "CONCATENATION"):
        return all(_is_positive(graph, before) for before in node.inputs)
    return node.activation in ("RELU", "RELU6") or node.kind in _NEVER_NEGATIVE


def _is_lowest(graph: Graph, node: Node) -> bool:
    return bool(graph.constants[node.inputs[2]] == np.float32(LOWEST))


def _same_(graph: Graph, node: Node) -> None:
    """PAD and VALID become SAME where TFLite's rule pads exactly so. SAME leaves padding out of a maximum."""
    pad, o = graph.nodes.get(node.inputs[0]), node.options
    if pad is None or pad.kind not in ("PAD", "PADV2") or o.get("padding") != "VALID":
        return
    lowest = pad.kind == "PADV2" and _is_lowest(graph, pad)
    if node.kind in CONVOLUTIONS and pad.kind == "PAD":
        kernel = graph.shapes[node.inputs[1]][1:3]
    elif node.kind == "MAX_POOL_2D" and (lowest or _is_positive(graph, pad.inputs[0])):
        kernel = (o["filterHeight"], o["filterWidth"])
    else:
        return
    stride, dilation = (o["strideH"], o["strideW"]), (o.get("dilationHFactor", 1), o.get("dilationWFactor", 1))
    sides, outputs = graph.shapes[pad.inputs[0]][1:3], graph.shapes[node.output][1:3]
    given = graph.constants[pad.inputs[1]]
    if any(out != -(-side // step) for out, side, step in zip(outputs, sides, stride, strict=True)):
        return
    read = read_pads(sides, outputs, given[1:3, 0].tolist(), kernel, stride, dilation)
    if read == same_pads(sides, kernel, stride, dilation) and not given[[0, 3]].any():
        graph.change_(node, inputs=(pad.inputs[0], *node.inputs[1:]), options={**o, "padding": "SAME"})
        graph.forget_(pad)


def _mirror_(graph: Graph, node: Node) -> None:
    """Padding with what the windows read anyway, not with the lowest number, which no int8 range can hold."""
    pad, o = graph.nodes.get(node.inputs[0]), node.options
    if node.kind != "MAX_POOL_2D" or pad is None or pad.kind != "PADV2" or not graph.is_private(pad.output):
        return
    given, sides, outputs = graph.constants[pad.inputs[1]], graph.shapes[pad.inputs[0]], graph.shapes[node.output]
    kernel, stride = (o["filterHeight"], o["filterWidth"]), (o["strideH"], o["strideW"])
    for axis in (0, 1):
        (before, after), side = given[axis + 1], sides[axis + 1]
        last = (outputs[axis + 1] - 1) * stride[axis] - before  # where the last window begins
        if before > kernel[axis] - before or after > side - last:
            return
    if _is_lowest(graph, pad):
        graph.change_(pad, kind="MIRROR_PAD", inputs=pad.inputs[:2], options={"mode": "SYMMETRIC"})


# --- shapes ---------------------------------------------------------------------------------------


def _merge_reshapes_(graph: Graph, node: Node) -> None:
    """Of two in a row the second says it all; and one that changes nothing goes."""
    if node.kind != "RESHAPE":
        return
    before = graph.nodes.get(node.inputs[0])
    if before is not None and before.kind == "RESHAPE":
        node = graph.change_(node, inputs=(before.inputs[0], node.inputs[1]))
        graph.forget_(before)
    if graph.shapes[node.inputs[0]] == graph.shapes[node.output]:
        graph.drop_(node)


def _mean_without_axes_(graph: Graph, node: Node) -> None:
    """A MEAN that keeps its axes, and a RESHAPE that takes them away: one MEAN."""
    before = graph.nodes.get(node.inputs[0])
    if node.kind != "RESHAPE" or before is None or before.kind != "MEAN" or not graph.is_private(before.output):
        return
    axes = {int(axis) for axis in graph.constants[before.inputs[1]]}
    shape = graph.shapes[before.inputs[0]]
    if tuple(side for axis, side in enumerate(shape) if axis not in axes) == graph.shapes[node.output]:
        graph.shapes[before.output] = graph.shapes[node.output]
        graph.change_(before, options={"keepDims": False})
        graph.drop_(node)


def _permute_columns_(graph: Graph, node: Node) -> None:
    """An image that is flattened in torch's order before a dense layer: the layer's columns are reordered."""
    reshape = graph.nodes.get(node.inputs[0])
    transpose = graph.nodes.get(reshape.inputs[0]) if reshape is not None else None
    if node.kind != "FULLY_CONNECTED" or reshape is None or transpose is None:
        return
    if (reshape.kind, transpose.kind) != ("RESHAPE", "TRANSPOSE") or not graph.is_private(reshape.output):
        return
    shape, weights = graph.shapes[transpose.output], graph.constants[node.inputs[1]]
    if shape[0] != 1 or weights.shape[1] != np.prod(shape):
        return
    permutation = graph.constants[transpose.inputs[1]]
    columns = weights.reshape(len(weights), *shape[1:])
    back = np.argsort(permutation)  # from torch's order to the stored one; the batch stays first in both
    if back[0] == 0:
        graph.set_(node.inputs[1], columns.transpose(back).reshape(weights.shape))
        graph.change_(reshape, inputs=(transpose.inputs[0], reshape.inputs[1]))
        graph.forget_(transpose)


# In an order in which each makes room for the next.
_RULES: tuple[Rule, ...] = (
    _merge_reshapes_,
    _merge_pads_,
    _permute_columns_,
    folding.permute_channels_,
    folding.drop_neutral_,
    folding.fold_after_,
    folding.fold_before_,
    _fuse_activation_,
    folding.move_scale_,
    _pad_with_zeros_,
    _same_,
    _mirror_,
    _mean_without_axes_,
    folding.widen_,
)
