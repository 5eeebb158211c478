"""Rules for products and sums with constants: into the weights and biases of their neighbours.

Each looks at one operator, and changes the graph in place where it applies.
"""

import numpy as np

from edgekit.lower.graph import Array, Graph, Node

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
LINEAR = (*CONVOLUTIONS, "FULLY_CONNECTED")
_FEW_CHANNELS = 8


def _factor(graph: Graph, node: Node, kind: str) -> Array | None:
    """The constant of a product or sum if it is one number, or one for each channel."""
    if node.kind != kind or node.activation != "NONE" or node.inputs[1] not in graph.constants:
        return None
    value, shape = graph.constants[node.inputs[1]].astype(np.float64), graph.shapes[node.output]
    single = value.ndim == 0 or value.shape == shape[-1:]
    return value if single and graph.shapes[node.inputs[0]] == shape else None


def drop_neutral_(graph: Graph, node: Node) -> None:
    """x + 0, x * 1."""
    for kind, neutral in (("ADD", 0), ("MUL", 1)):
        factor = _factor(graph, node, kind)
        if factor is not None and (factor == neutral).all():
            graph.drop_(node)


def fold_after_(graph: Graph, node: Node) -> None:
    """conv(x) * c + d, such as batch norm: into the weights and the bias."""
    before = graph.nodes.get(node.inputs[0])
    if before is None or before.kind not in LINEAR or before.activation != "NONE":
        return
    if not graph.is_private(before.output):
        return
    if (scale := _factor(graph, node, "MUL")) is not None:
        _scale_outputs_(graph, before, scale)
    elif (shift := _factor(graph, node, "ADD")) is not None:
        graph.set_(before.inputs[2], graph.constants[before.inputs[2]] + shift)
    else:
        return
    graph.drop_(node)


def _scale_outputs_(graph: Graph, linear: Node, scale: Array) -> None:
    weights = graph.constants[linear.inputs[1]].astype(np.float64)
    wide = scale
    if linear.kind != "DEPTHWISE_CONV_2D" and scale.ndim:  # its outputs are the last axis, all others' the first
        wide = scale.reshape(-1, *[1] * (weights.ndim - 1))
    graph.set_(linear.inputs[1], weights * wide)
    graph.set_(linear.inputs[2], graph.constants[linear.inputs[2]] * scale)


def _scale_inputs_(graph: Graph, linear: Node, scale: Array) -> None:
    weights = graph.constants[linear.inputs[1]].astype(np.float64)
    if linear.kind == "DEPTHWISE_CONV_2D" and scale.ndim:
        scale = scale.repeat(weights.shape[-1] // scale.size)
    graph.set_(linear.inputs[1], weights * scale)


def _takes(graph: Graph, linear: Node, value: Array) -> bool:
    """Whether *value* has one number for each input of the linear operator, and not for each of a group's."""
    grouped = linear.kind == "CONV_2D" and graph.shapes[linear.inputs[1]][-1] != graph.shapes[linear.inputs[0]][-1]
    return value.ndim == 0 or not grouped


def _only_user(graph: Graph, name: str) -> Node | None:
    return graph.users(name)[0] if graph.is_private(name) else None


def fold_before_(graph: Graph, node: Node) -> None:
    """conv(x * c) and conv(x + c): into the weights and the bias."""
    while node.kind in LINEAR and _fold_input_(graph, node):
        node = graph.nodes[node.output]


def _fold_input_(graph: Graph, linear: Node) -> bool:
    """Fold the product or sum that the linear operator reads, and say whether there was one.

    Padding with zeros lets a product through. Behind it a sum would be wrong at the borders: what is padded is
    zero after the sum, not before. So the mean of the pixels stays one ADD, and only their standard deviation
    goes into the first convolution.
    """
    before, padded = graph.nodes.get(linear.inputs[0]), False
    if before is not None and before.kind == "PAD" and graph.is_private(before.output):
        before, padded = graph.nodes.get(before.inputs[0]), True
    if before is None or not graph.is_private(before.output):
        return False
    scale, shift = _factor(graph, before, "MUL"), _factor(graph, before, "ADD")
    if scale is not None and _takes(graph, linear, scale):
        _scale_inputs_(graph, linear, scale)
    elif shift is not None and _takes(graph, linear, shift) and not padded:
        _shift_inputs_(graph, linear, shift)
    else:
        return False
    graph.drop_(before)
    return True


def _shift_inputs_(graph: Graph, linear: Node, shift: Array) -> None:
    weights = graph.constants[linear.inputs[1]].astype(np.float64)
    if linear.kind == "DEPTHWISE_CONV_2D":
        shifts = shift.repeat(weights.shape[-1] // shift.size) if shift.ndim else shift
        moved = (weights * shifts).sum((0, 1, 2))
    else:
        moved = (weights * shift).sum(tuple(range(1, weights.ndim)))
    graph.set_(linear.inputs[2], graph.constants[linear.inputs[2]] + moved)


def move_scale_(graph: Graph, node: Node) -> None:
    """conv(x * (s * c)), the gate of a hard sigmoid: one number c goes through the product into the weights."""
    scale = _factor(graph, node, "MUL")
    product = _only_user(graph, node.output)
    if scale is None or scale.ndim or product is None or product.kind != "MUL" or product.activation != "NONE":
        return
    user = _only_user(graph, product.output)
    if user is not None and user.kind == "PAD":
        user = _only_user(graph, user.output)
    if user is not None and user.kind in LINEAR:
        _scale_inputs_(graph, user, scale)
        graph.drop_(node)


def widen_(graph: Graph, node: Node) -> None:
    """The mean of the pixels, one number for each of three channels: stored for a whole row of the image.

    XNNPACK repeats a constant over its last axis in vectors; with three in a vector it took a tenth of the time
    of MobileNetV3-Small, with a row 1 %.
    """
    constant = graph.constants.get(node.inputs[-1])
    shape = graph.shapes[node.output]
    if node.kind not in ("ADD", "MUL") or constant is None or constant.ndim != 1:
        return
    if len(shape) == 4 and shape[-1] <= _FEW_CHANNELS:
        row = np.tile(constant, (shape[2], 1))
        graph.constants[node.inputs[-1]], graph.shapes[node.inputs[-1]] = row, row.shape


def permute_channels_(graph: Graph, node: Node) -> None:
    """Channels that are taken apart and joined in another order (BGR): the next convolution reads them so."""
    if node.kind != "CONCATENATION" or node.options["axis"] != len(graph.shapes[node.output]) - 1:
        return
    parts = [graph.nodes.get(name) for name in node.inputs]
    source = parts[0].inputs[0] if parts[0] is not None else ""
    order: list[int] = []
    for part in parts:
        if part is None or part.kind != "SLICE" or part.inputs[0] != source:
            return
        begin, size = (graph.constants[name] for name in part.inputs[1:])
        order += range(int(begin[-1]), int(begin[-1] + size[-1]))
    if sorted(order) != list(range(graph.shapes[source][-1])):
        return
    back, between, user = np.argsort(order), [], _only_user(graph, node.output)
    while user is not None and (user.kind == "PAD" or _factor(graph, user, user.kind) is not None):
        between.append(user)
        user = _only_user(graph, user.output)
    if user is None or user.kind != "CONV_2D" or not _takes(graph, user, back):
        return
    graph.set_(user.inputs[1], graph.constants[user.inputs[1]][..., back])
    for step in between:
        if step.kind != "PAD" and graph.constants[step.inputs[1]].ndim:
            graph.set_(step.inputs[1], graph.constants[step.inputs[1]][back])
    graph.drop_(graph.change_(node, inputs=(source,)))
