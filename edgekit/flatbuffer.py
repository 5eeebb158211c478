"""Reading and editing TFLite flatbuffers: tensors, operators, embedded metadata."""

import copy
import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import TensorSpec
from edgekit.errors import ArtifactError
from edgekit.requires import require

METADATA = "edgekit"  # the metadata entry that holds labels and preprocess as JSON
IDENTIFIER = b"TFL3"
WITH_BIAS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# A damaged file's offsets lead nowhere, or to what they should not.
DAMAGED = (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError)


def schema() -> Any:
    return require("ai_edge_litert.schema_py_generated", feature="Reading tflite files", extra="tflite")


def unpack(content: bytes) -> Any:
    """The model as a tree of objects (``ModelT``). Raises ArtifactError, or one of DAMAGED for a damaged one."""
    if content[4:8] != IDENTIFIER:
        raise ArtifactError("not a TFLite model: it lacks the identifier TFL3")
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:  # some writers put weights behind the flatbuffer; a plain unpack loses them
        if (buffer.offset or 0) > 1:
            buffer.data = np.frombuffer(content, np.uint8, count=buffer.size, offset=buffer.offset)
            buffer.offset = buffer.size = 0
    if not model.subgraphs or not len(model.subgraphs[0].inputs) or not len(model.subgraphs[0].outputs):
        raise ArtifactError("a TFLite model without an input or an output")
    return model


def pack(model: Any) -> bytes:
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        """Puts vectors of bytes, such as weights, at multiples of 16, as TFLite's schema demands."""

        def StartVector(self, element: int, count: int, alignment: int) -> int:
            at: int = super().StartVector(element, count, 16 if element == 1 else alignment)
            return at

    builder = Aligned(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def prepend_dequantize(model: Any) -> None:
    """Make the model take uint8 where it took float32: a DEQUANTIZE of scale 1 before its first operator.

    A CAST would do the same, but XNNPACK does not take it.
    """
    kinds = schema()
    graph = model.subgraphs[0]
    floats, pixels = graph.inputs[0], len(graph.tensors)

    code = kinds.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kinds.BuiltinOperator.DEQUANTIZE
    code.version = 1
    model.operatorCodes.append(code)

    tensor, quantization = kinds.TensorT(), kinds.QuantizationParametersT()
    tensor.shape, tensor.hasRank = list(graph.tensors[floats].shape), True
    tensor.type = kinds.TensorType.UINT8
    quantization.scale, quantization.zeroPoint = [1.0], [0]
    tensor.quantization = quantization
    graph.tensors.append(tensor)

    dequantize = kinds.OperatorT()
    dequantize.opcodeIndex, dequantize.inputs, dequantize.outputs = (
        len(model.operatorCodes) - 1,
        [pixels],
        [floats],
    )
    graph.operators.insert(0, dequantize)

    graph.tensors[floats].name = "pixels_as_float"
    graph.inputs = [pixels]
    for signature in model.signatureDefs or []:
        signature.inputs[0].tensorIndex = pixels


def stem(model: Any) -> tuple[str, ...]:
    """The names of what the operators give from the input to the first convolution; none where it comes later.

    Where h-swish or SiLU and depthwise convolutions follow, those are of it, too.
    """
    graph, names = model.subgraphs[0], operator_names(model)

    def users(index: int) -> list[tuple[str, Any]]:
        found = [(names[one.opcodeIndex], one) for one in graph.operators if index in one.inputs]
        return sorted(found, key=lambda pair: pair[0])

    def gives(operator: Any) -> int:
        return int(operator.outputs[0])

    current, kind, found = int(graph.inputs[0]), "", list[Any]()
    while kind != "CONV_2D":
        match users(current):
            case [("ADD" | "SUB" | "MUL" | "PAD" | "CONV_2D" as kind, one)]:
                found.append(one)
                current = gives(one)
            case _:
                return ()
    match users(current):
        case [("HARD_SWISH", swish)]:
            soft = [swish]
        case [("LOGISTIC", gate), ("MUL", swish)] if gives(gate) in swish.inputs:
            soft = [gate, swish]
        case _:
            soft = []
    layers = []
    for kind, one in users(gives(soft[-1])) if soft else ():
        padded = kind == "PAD"
        readers = users(gives(one)) if padded else [(kind, one)]
        deep = [reader for kind, reader in readers if kind == "DEPTHWISE_CONV_2D"]
        layers += [one, *deep] if padded and deep else deep
    found += [*soft, *layers] if layers else []
    return tuple(text(graph.tensors[gives(one)].name) for one in found)


def rename_ends(model: Any, before: str, after: str) -> None:
    """Name the input and the output, in the graph and in its signature."""
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].name = before
    graph.tensors[graph.outputs[0]].name = after
    for signature in model.signatureDefs or []:
        signature.inputs[0].name, signature.outputs[0].name = before, after


def unshare_biases_(model: Any) -> None:
    """Give each layer a bias of its own. TFLite's converters store equal ones once, such as those of all zeros.

    In int8 each has a scale of its own, and the quantizer makes copies under names that nobody knows.
    """
    graph, taken = model.subgraphs[0], set[int]()
    for operator in graph.operators:
        if operator_names(model)[operator.opcodeIndex] not in WITH_BIAS:
            continue
        operator.inputs = inputs = [int(index) for index in operator.inputs]
        for place, index in enumerate(inputs[2:], 2):
            if index in taken:
                graph.tensors.append(tensor := copy.copy(graph.tensors[index]))
                model.buffers.append(copy.copy(model.buffers[tensor.buffer]))
                tensor.buffer, inputs[place] = len(model.buffers) - 1, len(graph.tensors) - 1
                tensor.name = f"{text(tensor.name)} {inputs[place]}"
            elif index >= 0:
                taken.add(index)


def embed(model: Any, content: str) -> None:
    """Put *content* into the file as the metadata entry ``edgekit``."""
    buffer, entry = schema().BufferT(), schema().MetadataT()
    buffer.data = np.frombuffer(content.encode(), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]


def embedded(model: Any) -> dict[str, Any]:
    """What `embed` put into the file, or an empty dict."""
    for entry in model.metadata or []:
        if text(entry.name) == METADATA:
            value: dict[str, Any] = json.loads(bytes(model.buffers[entry.buffer].data))
            return value
    return {}


def operators(model: Any) -> tuple[tuple[str, int], ...]:
    """Operator names and their counts, most frequent first."""
    names = operator_names(model)
    found = Counter(names[operator.opcodeIndex] for operator in model.subgraphs[0].operators)
    return tuple(found.most_common())


def operator_names(model: Any) -> list[str]:
    """By the index that operators have of them."""
    names = {value: name for name, value in vars(schema().BuiltinOperator).items() if name.isupper()}
    return [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """One operator of a file. *name*: of what it gives; *dtype*: of that; *weights*: of its largest constant.

    *macs*: multiply-accumulates of convolutions and dense layers; *size_bytes*: of all its constants.
    """

    kind: str
    name: str
    dtype: str
    weights: str = ""
    macs: int = 0
    size_bytes: int = 0


def details(model: Any) -> tuple[Operator, ...]:
    """All operators in the order in which they run."""
    graph, names = model.subgraphs[0], operator_names(model)
    found: list[Operator] = []
    seen: set[int] = set()
    for operator in graph.operators:
        kind, inputs = names[operator.opcodeIndex], [graph.tensors[i] for i in operator.inputs if i >= 0]
        output = graph.tensors[operator.outputs[0]]
        sizes = {tensor.buffer: _size_bytes(model, tensor) for tensor in inputs}
        largest = max(inputs, key=lambda tensor: sizes[tensor.buffer])
        found.append(
            Operator(
                kind=kind,
                name=text(output.name),
                dtype=_type_name(output.type),
                weights=_type_name(largest.type) if sizes[largest.buffer] else "",
                macs=_macs(kind, inputs, output),
                size_bytes=sum(size for buffer, size in sizes.items() if buffer not in seen),
            )
        )
        seen |= sizes.keys()
    return tuple(found)


def _size_bytes(model: Any, tensor: Any) -> int:
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)


def _macs(kind: str, inputs: list[Any], output: Any) -> int:
    """A product for each value of the output and each weight of its channel."""
    if kind not in WITH_BIAS:
        return 0
    weights = [int(side) for side in inputs[1].shape]
    per_value = weights[1] * weights[2] if kind == "DEPTHWISE_CONV_2D" else math.prod(weights[1:])
    return math.prod(int(side) for side in output.shape) * per_value


def in_float(model: Any) -> tuple[str, ...]:
    """The kinds of the operators that take or give floating point, each once."""
    graph, kinds = model.subgraphs[0], schema().TensorType
    floating = (kinds.FLOAT32, kinds.FLOAT16, kinds.FLOAT64)
    return tuple(
        dict.fromkeys(
            found.kind
            for found, operator in zip(details(model), graph.operators, strict=True)
            if any(graph.tensors[i].type in floating for i in (*operator.inputs, *operator.outputs) if i >= 0)
        )
    )


def dequantized(values: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[np.float32]:
    """What stored values of the tensor stand for: themselves where it has no scale."""
    found = values.astype(np.float32, copy=False)
    return found if spec.scale is None else (found - (spec.zero_point or 0)) * np.float32(spec.scale)


def weights(model: Any) -> tuple[tuple[str, int], ...]:
    """Types of the stored constants and their bytes, largest first. A buffer that several share counts once."""
    stored: dict[int, tuple[str, int]] = {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            stored[tensor.buffer] = (_type_name(tensor.type), len(data))
    found: Counter[str] = Counter()
    for kind, count in stored.values():
        found[kind] += count
    return tuple(found.most_common())


def ends(model: Any) -> tuple[TensorSpec, TensorSpec]:
    """The specification of the first input and the first output."""
    graph = model.subgraphs[0]
    return _spec(graph.tensors[graph.inputs[0]]), _spec(graph.tensors[graph.outputs[0]])


def _spec(tensor: Any) -> TensorSpec:
    quantization = tensor.quantization
    scale = zero_point = None
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        scale, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    shape = [int(side) for side in tensor.shape]
    if tensor.shapeSignature is not None:  # the file was made for any size where this says -1
        shape[1:] = [max(0, int(side)) for side in tensor.shapeSignature][1:]
    return TensorSpec(
        name=text(tensor.name),
        shape=tuple(shape),
        dtype=_type_name(tensor.type),
        scale=scale,
        zero_point=zero_point,
    )


def _type_name(value: int) -> str:
    kinds = {code: name for name, code in vars(schema().TensorType).items()}
    return str(kinds[value]).lower()


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """Gives the model in *path*. What goes wrong with it inside becomes an ArtifactError that names the file."""
    try:
        yield unpack(path.read_bytes())
    except ArtifactError as error:
        raise ArtifactError(f"{path} is {error}") from error
    except DAMAGED as error:
        raise ArtifactError(f"{path} is a damaged TFLite model: {error}") from error
