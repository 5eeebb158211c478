"""Reading and editing TFLite flatbuffers: tensors, operators, embedded metadata."""

import json
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import TensorSpec
from edgekit.errors import ArtifactError
from edgekit.requires import require

METADATA = "edgekit"  # the metadata entry that holds labels and preprocess as JSON
IDENTIFIER = b"TFL3"
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


def prepend_cast(model: Any) -> None:
    """Make the model take uint8 where it took float32: a CAST before its first operator."""
    kinds = schema()
    graph = model.subgraphs[0]
    floats, pixels = graph.inputs[0], len(graph.tensors)

    code = kinds.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kinds.BuiltinOperator.CAST
    code.version = 1
    model.operatorCodes.append(code)

    tensor = kinds.TensorT()
    tensor.shape, tensor.hasRank = list(graph.tensors[floats].shape), True
    tensor.type = kinds.TensorType.UINT8
    graph.tensors.append(tensor)

    cast, options = kinds.OperatorT(), kinds.CastOptionsT()
    options.inDataType, options.outDataType = kinds.TensorType.UINT8, kinds.TensorType.FLOAT32
    cast.opcodeIndex, cast.inputs, cast.outputs = len(model.operatorCodes) - 1, [pixels], [floats]
    cast.builtinOptionsType, cast.builtinOptions = kinds.BuiltinOptions.CastOptions, options
    graph.operators.insert(0, cast)

    graph.tensors[floats].name = "pixels_as_float"
    graph.inputs = [pixels]
    for signature in model.signatureDefs or []:
        signature.inputs[0].tensorIndex = pixels


def rename_ends(model: Any, before: str, after: str) -> None:
    """Name the input and the output, in the graph and in its signature."""
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].name = before
    graph.tensors[graph.outputs[0]].name = after
    for signature in model.signatureDefs or []:
        signature.inputs[0].name, signature.outputs[0].name = before, after


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
    names = {value: name for name, value in vars(schema().BuiltinOperator).items() if name.isupper()}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    found = Counter(names[codes[operator.opcodeIndex]] for operator in model.subgraphs[0].operators)
    return tuple(found.most_common())


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
