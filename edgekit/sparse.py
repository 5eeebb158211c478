"""TFLite files that hold their 1x1 convolutions without zeros, and whether XNNPACK's sparse kernels take them.

Where weights come through a DENSIFY, XNNPACK looks for a part of the network that can run with its channels
outermost (https://arxiv.org/abs/1911.09723): from the stem over 1x1 and depthwise convolutions to the pooling. If
more than two thirds of that part's 1x1 weights are zero, sparse kernels run there, on ARM; on x86 it has none, and
multiplies the zeros.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgekit import flatbuffer
from edgekit.errors import ConversionError
from edgekit.flatbuffer import schema

LEAST = 2 / 3  # of the weights are zero, and more, for XNNPACK to take the sparse path
ELEMENTWISE = ("ADD", "MUL", "RELU", "RELU6", "HARD_SWISH", "LOGISTIC", "TANH", "ELU", "LEAKY_RELU")
WORTH = 0.5  # of a layer's weights are zero, for it to be stored without them


def zeros(model: Any) -> tuple[int, int]:
    """How many weights of the file's 1x1 convolutions are zero, and how many there are."""
    found = [(int(weights.size - np.count_nonzero(weights)), weights.size) for _, weights in _pointwise(model)]
    return sum(none for none, _ in found), sum(size for _, size in found)


def stored(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The file without the zeros of its 1x1 convolutions, and a note where XNNPACK's sparse kernels refuse it.

    Raises ConversionError for a network without zeros.
    """
    model = flatbuffer.unpack(content)
    none, size = zeros(model)
    if not store_(model):
        raise ConversionError(
            f"sparse is for networks with zeros, and {100 * none / max(1, size):.1f} % of the weights of this "
            "one's 1x1 convolutions are zero: edgekit prune --sparsity 0.75 makes more"
        )
    told = verdict(model)
    return flatbuffer.pack(model), (() if told.startswith("taken") else (f"XNNPACK's sparse kernels: {told}",))


def store_(model: Any) -> int:
    """Store the weights of 1x1 convolutions of which half or more are zero as rows without zeros (CSR).

    Each gets a DENSIFY. Gives how many there are.
    """
    kinds, graph, layers = schema(), model.subgraphs[0], [*_pointwise(model)]
    layers = [(operator, weights) for operator, weights in layers if _share(weights) >= WORTH]
    if not layers:
        return 0
    code = kinds.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kinds.BuiltinOperator.DENSIFY
    code.version = 1
    model.operatorCodes.append(code)
    before = []
    for operator, weights in layers:
        stored = graph.tensors[operator.inputs[1]]
        dense, densify = kinds.TensorT(), kinds.OperatorT()
        dense.name, dense.shape, dense.type = f"{flatbuffer.text(stored.name)};dense", stored.shape, stored.type
        dense.hasRank, dense.buffer = True, len(model.buffers)
        model.buffers.append(kinds.BufferT())
        graph.tensors.append(dense)
        densify.opcodeIndex = len(model.operatorCodes) - 1
        densify.inputs, densify.outputs = [int(operator.inputs[1])], [len(graph.tensors) - 1]
        densify.builtinOptionsType, densify.builtinOptions = (
            kinds.BuiltinOptions.DensifyOptions,
            kinds.DensifyOptionsT(),
        )
        before.append(densify)
        operator.inputs = [operator.inputs[0], len(graph.tensors) - 1, *operator.inputs[2:]]
        rows = weights.reshape(weights.shape[0], -1)
        stored.sparsity = _rows(rows)
        model.buffers[stored.buffer].data = np.ascontiguousarray(rows[rows != 0], "<f4").view(np.uint8)
    graph.operators = [*before, *graph.operators]
    return len(layers)


def _rows(rows: Any) -> Any:
    """How the values that are not zero lie in a tensor (O, 1, 1, I) of *rows* (O, I)."""
    kinds, sparsity = schema(), schema().SparsityParametersT()
    sparsity.traversalOrder = [0, 1, 2, 3]
    sparsity.dimMetadata = []
    for size in (len(rows), 1, 1):
        dimension = kinds.DimensionMetadataT()
        dimension.format, dimension.denseSize = kinds.DimensionType.DENSE, size
        sparsity.dimMetadata.append(dimension)
    dimension = kinds.DimensionMetadataT()
    dimension.format = kinds.DimensionType.SPARSE_CSR
    ends = np.concatenate([[0], np.cumsum(np.count_nonzero(rows, 1))])
    dimension.arraySegmentsType, dimension.arraySegments = _indices(ends)
    dimension.arrayIndicesType, dimension.arrayIndices = _indices(np.nonzero(rows)[1])
    sparsity.dimMetadata.append(dimension)
    return sparsity


def _indices(values: Any) -> tuple[int, Any]:
    """The numbers in as few bytes as they fit in."""
    kinds = schema()
    largest = int(values.max(initial=0))
    name, dtype = (
        ("Uint8", "u1") if largest < 1 << 8 else ("Uint16", "<u2") if largest < 1 << 16 else ("Int32", "<i4")
    )
    vector = getattr(kinds, f"{name}VectorT")()
    vector.values = values.astype(dtype)
    return getattr(kinds.SparseIndexVector, f"{name}Vector"), vector


def _pointwise(model: Any) -> Iterator[tuple[Any, Any]]:
    """The file's 1x1 convolutions in float, and their weights (O, 1, 1, I)."""
    graph, names = model.subgraphs[0], flatbuffer.operator_names(model)
    for operator in graph.operators:
        if names[operator.opcodeIndex] != "CONV_2D":
            continue
        weights = constant(model, int(operator.inputs[1]))
        if weights is not None and weights.shape[1:3] == (1, 1):
            yield operator, weights


def constant(model: Any, index: int) -> Any:
    """The values of a constant of 32-bit floats, also of one that a DENSIFY gives; None for what is none."""
    graph, kinds = model.subgraphs[0], schema()
    tensor = graph.tensors[index]
    if tensor.type != kinds.TensorType.FLOAT32:
        return None
    if (sparse := densified(model).get(index)) is not None:
        return _dense(model, graph.tensors[sparse])
    data = model.buffers[tensor.buffer].data
    return None if data is None or not len(data) else np.frombuffer(bytes(data), "<f4").reshape(tensor.shape)


def densified(model: Any) -> dict[int, int]:
    """For what a DENSIFY gives, the constant that it takes."""
    names = flatbuffer.operator_names(model)
    return {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in model.subgraphs[0].operators
        if names[operator.opcodeIndex] == "DENSIFY"
    }


def _dense(model: Any, tensor: Any) -> Any:
    """A tensor that was stored as `store_` does, with its zeros; None for one that is stored in another way."""
    found, kinds = tensor.sparsity, schema()
    if found is None or len(tensor.shape) != 4 or [int(axis) for axis in found.traversalOrder] != [0, 1, 2, 3]:
        return None
    if [one.format for one in found.dimMetadata] != [kinds.DimensionType.DENSE] * 3 + [
        kinds.DimensionType.SPARSE_CSR
    ]:
        return None
    last, values = found.dimMetadata[3], np.frombuffer(bytes(model.buffers[tensor.buffer].data), "<f4")
    ends = np.asarray(last.arraySegments.values).astype(np.int64)
    rows = np.zeros((int(np.prod(tensor.shape[:3])), int(tensor.shape[3])), np.float32)
    rows[np.repeat(np.arange(len(rows)), np.diff(ends)), np.asarray(last.arrayIndices.values)] = values
    return rows.reshape(tensor.shape)


def _share(weights: Any) -> float:
    return 1 - int(np.count_nonzero(weights)) / int(weights.size)


def verdict(model: Any) -> str:
    """Whether XNNPACK's sparse kernels will take the file, or why not; nothing for one without zeros."""
    none, size = zeros(model)
    if not size or none < WORTH / 2 * size:
        return ""
    told = f"{100 * none / size:.1f} % of the weights of its 1x1 convolutions are zero"
    if not densified(model):
        return f"not taken: {told}, but they are stored: convert to precision sparse"
    if none <= LEAST * size:
        return f"not taken: {told}, and it takes more than {100 * LEAST:.1f} %"
    if fault := _fault(model):
        return f"not taken: {fault}"
    return f"taken on ARM: {told}; on x86 they are multiplied"


def _fault(model: Any) -> str:
    """What keeps the part from the stem to the pooling from running with its channels outermost."""
    graph, names, pads = model.subgraphs[0], flatbuffer.operator_names(model), _pads(model)
    kinds = [names[operator.opcodeIndex] for operator in graph.operators]
    ends = [place for place, kind in enumerate(kinds) if kind == "MEAN"]
    if "CONV_2D" not in kinds or not ends:
        return "it has no pooling (MEAN) that could end the sparse part"
    first = kinds.index("CONV_2D")
    for place in range(first, ends[-1]):
        kind, operator = kinds[place], graph.operators[place]
        name = flatbuffer.text(graph.tensors[operator.outputs[0]].name)
        if kind == "CONV_2D":
            fault = _stem(model, operator, pads) if place == first else _pointwise_fault(model, operator)
        elif kind == "DEPTHWISE_CONV_2D":
            fault = _depthwise(model, operator, pads)
        else:
            fault = "" if kind in (*ELEMENTWISE, "PAD", "MEAN", "DENSIFY") else f"{kind} cannot run so"
        if fault:
            return f"{name}: {fault}"
    return ""


def _pads(model: Any) -> dict[int, list[list[int]]]:
    """What a PAD adds to each axis, by what it gives."""
    names, found = flatbuffer.operator_names(model), {}
    for operator in model.subgraphs[0].operators:
        if names[operator.opcodeIndex] == "PAD":
            data = model.buffers[model.subgraphs[0].tensors[operator.inputs[1]].buffer].data
            found[int(operator.outputs[0])] = np.frombuffer(bytes(data), "<i4").reshape(-1, 2).tolist()
    return found


def _stem(model: Any, operator: Any, pads: dict[int, list[list[int]]]) -> str:
    options, weights = operator.builtinOptions, model.subgraphs[0].tensors[operator.inputs[1]].shape
    if [*weights[1:3]] != [3, 3] or weights[3] != 3 or (options.strideH, options.strideW) != (2, 2):
        sides = "x".join(str(int(side)) for side in weights[1:3])
        return f"the first convolution has to be 3x3 with stride 2, and is {sides} with stride {options.strideH}"
    return _padding(model, operator, pads, 1)


def _pointwise_fault(model: Any, operator: Any) -> str:
    options, weights = operator.builtinOptions, model.subgraphs[0].tensors[operator.inputs[1]].shape
    if [*weights[1:3]] != [1, 1]:
        return f"a {weights[1]}x{weights[2]} convolution after the first one"
    return "a 1x1 convolution with a stride" if (options.strideH, options.strideW) != (1, 1) else ""


def _depthwise(model: Any, operator: Any, pads: dict[int, list[list[int]]]) -> str:
    options, weights = operator.builtinOptions, model.subgraphs[0].tensors[operator.inputs[1]].shape
    side = int(weights[1])
    if side not in (3, 5) or weights[2] != side:
        return f"a depthwise convolution of {weights[1]}x{weights[2]}, neither 3x3 nor 5x5"
    if options.strideH != options.strideW or options.strideH > 2 or options.depthMultiplier > 1:
        return "a depthwise convolution with a stride other than 1 or 2, or with several outputs a channel"
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return "a depthwise convolution with gaps"
    return _padding(model, operator, pads, side // 2)


def _padding(model: Any, operator: Any, pads: dict[int, list[list[int]]], wanted: int) -> str:
    """SAME is symmetric only where the stride is 1."""
    same = operator.builtinOptions.padding == schema().Padding.SAME
    found = pads.get(int(operator.inputs[0]))
    if same and found is None and operator.builtinOptions.strideH == 1:
        return ""
    if not same and found is not None and found[1:3] == [[wanted, wanted]] * 2:
        return ""
    return f"its padding is not {wanted} on every side (model.padding = 'symmetric')"
