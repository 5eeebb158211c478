"""Stores a graph as a float32 TFLite flatbuffer."""

from typing import Any

import numpy as np

from edgekit import flatbuffer
from edgekit.lower.graph import Graph, Node

SIGNATURE = "serving_default"  # the name that TensorFlow's and Google's tools give and expect
# Operators whose options table has no name made of their own.
_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "PADV2": "PadV2Options",
    "MIRROR_PAD": "MirrorPadOptions",
    "CONCATENATION": "ConcatenationOptions",
    "SOFTMAX": "SoftmaxOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "GELU": "GeluOptions",
    "RESHAPE": "ReshapeOptions",
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
}
_ENUMS = {"padding": "Padding", "mode": "MirrorPadMode"}
# Kernels have versions. What is written here is in the first, except for a dense layer of more than two axes.
_VERSIONS = {"FULLY_CONNECTED": 5}


def to_bytes(graph: Graph) -> bytes:
    """The flatbuffer: one signature with the graph's input and output under their own names."""
    kinds = flatbuffer.schema()
    model, stored = kinds.ModelT(), kinds.SubGraphT()
    model.version, model.description, model.subgraphs = 3, "edgekit", [stored]
    model.buffers, model.operatorCodes = [kinds.BufferT()], []
    stored.name, stored.tensors, stored.operators = "main", [], []

    indices: dict[str, int] = {}
    for name in _in_order(graph):
        indices[name] = len(stored.tensors)
        stored.tensors.append(_tensor(graph, name, model.buffers))
    codes: dict[str, int] = {}
    for node in graph.nodes.values():
        if node.kind not in codes:
            codes[node.kind] = len(model.operatorCodes)
            model.operatorCodes.append(_code(node.kind))
        stored.operators.append(_operator(node, codes[node.kind], indices))
    stored.inputs, stored.outputs = [indices[graph.input]], [indices[graph.output]]
    model.signatureDefs = [_signature(graph, indices)]
    return flatbuffer.pack(model)


def _in_order(graph: Graph) -> list[str]:
    """All tensors in use, as the operators come to them."""
    read = [name for node in graph.nodes.values() for name in (*node.inputs, node.output) if name]
    return list(dict.fromkeys((graph.input, *read)))


def _tensor(graph: Graph, name: str, buffers: list[Any]) -> Any:
    kinds = flatbuffer.schema()
    tensor, value = kinds.TensorT(), graph.constants.get(name)
    tensor.name, tensor.shape, tensor.hasRank = name, list(graph.shapes[name]), True
    tensor.type = kinds.TensorType.FLOAT32
    buffer = kinds.BufferT()
    if value is not None:
        tensor.type = {"float32": kinds.TensorType.FLOAT32, "int32": kinds.TensorType.INT32}[value.dtype.name]
        buffer.data = value.reshape(-1).view(np.uint8)
    # Each tensor has a buffer of its own: quantizing tools take two tensors of one buffer for one tensor.
    tensor.buffer = len(buffers)
    buffers.append(buffer)
    return tensor


def _code(kind: str) -> Any:
    kinds = flatbuffer.schema()
    code = kinds.OperatorCodeT()
    code.builtinCode = getattr(kinds.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # the field of before there were more than 127
    code.version = _VERSIONS.get(kind, 1)
    return code


def _operator(node: Node, code: int, indices: dict[str, int]) -> Any:
    kinds = flatbuffer.schema()
    operator = kinds.OperatorT()
    operator.opcodeIndex = code
    operator.inputs = [indices[name] if name else -1 for name in node.inputs]
    operator.outputs = [indices[node.output]]
    if table := _OPTIONS.get(node.kind):
        options = getattr(kinds, f"{table}T")()
        for name, value in node.options.items():
            assert hasattr(options, name), f"{table} has no field {name}"
            setattr(options, name, getattr(getattr(kinds, _ENUMS[name]), value) if name in _ENUMS else value)
        if hasattr(options, "fusedActivationFunction"):
            options.fusedActivationFunction = getattr(kinds.ActivationFunctionType, node.activation)
        operator.builtinOptionsType, operator.builtinOptions = getattr(kinds.BuiltinOptions, table), options
    return operator


def _signature(graph: Graph, indices: dict[str, int]) -> Any:
    kinds = flatbuffer.schema()
    signature = kinds.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    ends = []
    for name in (graph.input, graph.output):
        entry = kinds.TensorMapT()
        entry.name, entry.tensorIndex = name, indices[name]
        ends.append([entry])
    signature.inputs, signature.outputs = ends
    return signature
