"""ONNX through torch.onnx's exporter; run by ONNX Runtime. Raw uint8 NHWC pixels in, float logits out."""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import Artifact, TensorSpec
from edgekit.convert import Conversion, Inspection, Part, Precision, converting, labels_in
from edgekit.errors import ArtifactError
from edgekit.preprocess import Pixels
from edgekit.recipe import Variant
from edgekit.requires import require
from edgekit.schema import encode

if TYPE_CHECKING:
    from edgekit.export import Logits, Source

target = "onnx"
suffix = ".onnx"
precisions = {"fp32": Precision(does="32-bit floating point", size="1", lacks="nothing")}
extra = "onnx"
OPSET = 18


def check() -> None:
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(module, feature="Converting to onnx", extra=extra)


def convert(source: "Source", variant: Variant, out: Path) -> Conversion:
    import onnx
    import torch

    from edgekit.quiet import quiet

    class Nhwc(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = source.torch_model(target)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.classifier(pixels.permute(0, 3, 1, 2).float())
            return logits

    example = torch.zeros(source.shape_NHWC, dtype=torch.uint8)
    with quiet(), converting("torch.onnx"):
        program = torch.onnx.export(
            Nhwc().eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(
        model,
        {"labels": json.dumps(source.labels), "preprocess": json.dumps(encode(source.preprocess))},
    )
    onnx.save(model, str(out))
    return Conversion(
        input=TensorSpec(name="pixels", shape=source.shape_NHWC, dtype="uint8"),
        output=TensorSpec(name="logits", shape=(1, len(source.labels)), dtype="float32"),
        tools={name: version(name) for name in ("torch", "onnx", "onnxscript")},
    )


def predict(artifact: Artifact, pixels_NHWC: Pixels) -> "Logits":
    runtime = require("onnxruntime", feature="Running onnx files", extra=extra)
    session = runtime.InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    rows = [session.run(None, {artifact.input.name: image[None]})[0] for image in pixels_NHWC]
    logits: Logits = np.concatenate(rows)
    return logits


def inspect(path: Path) -> Inspection:
    onnx = require("onnx", feature="Inspecting onnx files", extra=extra)
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ArtifactError(f"{path} is not an ONNX model: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ArtifactError(
            f"{path} keeps its weights in other files: save it whole (onnx.save of what onnx.load gives)"
        )
    takers = {name: node.op_type for node in reversed(model.graph.node) for name in node.input}
    weights: Counter[str] = Counter()
    parts = list[Part]()
    for tensor in model.graph.initializer:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        size_bytes = int(np.prod(tensor.dims)) * kind.itemsize
        weights[str(kind)] += size_bytes
        taker = takers.get(tensor.name, "")
        parts.append(Part(layer=tensor.name, kind=taker, dtype=str(kind), size_bytes=size_bytes))
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if not inputs or not model.graph.output:
        raise ArtifactError(f"{path} is not an ONNX model: it has no input or no output")
    metadata = {item.key: item.value for item in model.metadata_props}
    return Inspection(
        input=_spec(onnx, inputs[0]),
        output=_spec(onnx, model.graph.output[0]),
        operators=tuple(Counter(node.op_type for node in model.graph.node).most_common()),
        weights=tuple(weights.most_common()),
        parts=tuple(parts),
        labels=labels_in(metadata),
        metadata=metadata,
    )


def _spec(onnx: Any, value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value or int(axis == 0) for axis, dim in enumerate(tensor.shape.dim)
    )  # a free batch is 1
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorSpec(name=value.name, shape=shape, dtype=dtype)
