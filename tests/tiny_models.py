"""Tiny real model files, written without torch: one dense layer over raw pixels (1, S, S, 3)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import files
from edgekit.artifact import Artifact, TensorSpec
from edgekit.preprocess import Preprocess

SIDE, CLASSES = 8, 4
LABELS = ("ant", "bee", "cat", "dog")


def weights(seed: int = 0, side: int = SIDE) -> npt.NDArray[np.float32]:
    """(classes, side * side * 3)"""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((CLASSES, side * side * 3)) / 100).astype(np.float32)


def tflite(path: Path, *, dtype: str = "uint8", seed: int = 0, side: int = SIDE) -> Artifact:
    """CAST (for uint8 input), RESHAPE, FULLY_CONNECTED."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    values = weights(seed, side)
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [], [schema.BufferT()]
    graph.name, graph.tensors, graph.operators = b"main", [], []

    def tensor(name: str, shape: tuple[int, ...], kind: int, constant: npt.NDArray[Any] | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), list(shape), kind, 0
        if constant is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(constant.tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(name: str, ins: list[int], outs: list[int], options: Any) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version = 1
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes), ins, outs
        made.builtinOptions = options
        made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        model.operatorCodes.append(code)
        graph.operators.append(made)

    float32, picture, flat = schema.TensorType.FLOAT32, (1, side, side, 3), side * side * 3
    kind = {"uint8": schema.TensorType.UINT8, "float32": float32}[dtype]
    current = tensor("input", picture, kind)
    graph.inputs = [current]
    if dtype == "uint8":
        cast = schema.CastOptionsT()
        cast.inDataType, cast.outDataType = kind, float32
        floats = tensor("floats", picture, float32)
        operator("CAST", [current], [floats], cast)
        current = floats
    shape = tensor("shape", (2,), schema.TensorType.INT32, np.array([1, flat], np.int32))
    row = tensor("row", (1, flat), float32)
    operator("RESHAPE", [current, shape], [row], schema.ReshapeOptionsT())
    matrix = tensor("weights", (CLASSES, flat), float32, values)
    logits = tensor("logits", (1, CLASSES), float32)
    operator("FULLY_CONNECTED", [row, matrix, -1], [logits], schema.FullyConnectedOptionsT())
    graph.outputs = [logits]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return artifact_of(path, "tflite", dtype=dtype, shape=picture)


def onnx(path: Path, *, seed: int = 0) -> Artifact:
    """Flatten, Cast, MatMul on uint8 pixels."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("Cast", ["input"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["logits"]),
    ]
    picture = (1, SIDE, SIDE, 3)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, picture)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, CLASSES))],
        [numpy_helper.from_array(np.ascontiguousarray(weights(seed).T), "weights")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return artifact_of(path, "onnx", dtype="uint8", shape=picture)


def artifact_of(path: Path, target: str, *, dtype: str, shape: tuple[int, ...]) -> Artifact:
    return Artifact(
        file=path.name,
        target=target,
        precision="fp32",
        input=TensorSpec(name="input", shape=shape, dtype=dtype),
        output=TensorSpec(name="logits", shape=(1, CLASSES), dtype="float32"),
        input_is="pixels" if dtype == "uint8" else "normalized",
        labels=LABELS,
        preprocess=Preprocess(height=shape[1], width=shape[2]),
        size_bytes=files.size_bytes(path),
        sha256=files.sha256(path),
        path=path,
    )


def corrupt(path: Path) -> Artifact:
    """A file that no runtime loads, described as if it were sound."""
    whole = tflite(path)
    path.write_bytes(path.read_bytes()[:100] + b"nonsense" * 20)
    return replace(whole, sha256=files.sha256(path), size_bytes=files.size_bytes(path))


def strange(path: Path, kind: str) -> Artifact:
    """A sound file whose last operator no runtime has: a ``newer`` version of it, or a ``custom`` one, Magic."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    artifact = tflite(path)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    code = model.operatorCodes[-1]
    if kind == "newer":
        code.version = 99
    else:
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = b"Magic"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return replace(artifact, sha256=files.sha256(path), size_bytes=files.size_bytes(path))


def pixels(count: int, *, side: int = SIDE, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(count, side, side, 3)"""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
