"""TFLite through litert-torch and ai-edge-quantizer. Raw uint8 NHWC pixels in, float logits out."""

import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import flatbuffer
from edgekit.artifact import Artifact
from edgekit.convert import Conversion, Inspection, converting
from edgekit.errors import UsageError
from edgekit.preprocess import Pixels
from edgekit.recipe import Variant
from edgekit.requires import require
from edgekit.schema import encode

if TYPE_CHECKING:
    from edgekit.export import CalibrationImages, ExportSource, Logits

target = "tflite"
suffix = ".tflite"
precisions = {
    "fp32": "32-bit floating point",
    "fp16": "weights stored as 16-bit floats, computed in fp32: half the size",
    "dyn8": "int8 weights of convolutions and dense layers, activations quantized at run time",
    "int8": "int8 weights (per channel) and activations, ranges set by calibration images",
}
extra = "tflite"
ENOUGH_IMAGES = 200
SIGNATURE = "serving_default"


def check() -> None:
    for module in ("torch", "ai_edge_litert", "ai_edge_quantizer"):
        require(module, feature="Converting to tflite", extra=extra)
    from importlib.util import find_spec

    if find_spec("litert_torch") is None:  # importing it takes seconds
        require("litert_torch", feature="Converting to tflite", extra=extra)


def convert(source: "ExportSource", variant: Variant, out: Path) -> Conversion:
    from edgekit.quiet import quiet

    images = _calibration_images(source, variant) if variant.precision == "int8" else None
    embedded = {"labels": source.labels, "preprocess": encode(source.preprocess)}
    with quiet():
        with converting("litert-torch"):
            lowered = source.once("tflite float", lambda: _lower(source))
        with converting("ai-edge-quantizer"):
            content = _quantize(lowered, variant, images)
    out.write_bytes(_finish(content, json.dumps(embedded)))
    found = inspect(out)
    tools = ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")
    return Conversion(
        input=found.input,
        output=found.output,
        tools={name: version(name) for name in tools},
        calibration=images.record if images else None,
        notes=_doubts(images),
    )


def _doubts(images: "CalibrationImages | None") -> tuple[str, ...]:
    if images is None or images.record.count >= ENOUGH_IMAGES:
        return ()
    return (
        f"calibrated on {images.record.count} images only: with fewer than {ENOUGH_IMAGES} ranges are uncertain",
    )


def _calibration_images(source: "ExportSource", variant: Variant) -> "CalibrationImages":
    if source.calibrate is None:
        raise UsageError("int8 needs calibration images: give --calibrate DIR, or --data for a recipe's own")
    return source.calibrate(variant.calibration)


def _lower(source: "ExportSource") -> bytes:
    """A float32 TFLite model of the pixels as floats, 0 to 255, NHWC."""
    import torch

    litert_torch = require("litert_torch", feature="Converting to tflite", extra=extra)
    channels_last = litert_torch.to_channel_last_io(source.model, args=[0]).eval()
    model = litert_torch.convert(channels_last, (torch.zeros(source.shape_NHWC),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lowered.tflite"
        model.export(str(path))
        return path.read_bytes()


def _quantize(lowered: bytes, variant: Variant, images: "CalibrationImages | None") -> bytes:
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation

    if variant.precision == "fp32":
        return lowered
    if variant.precision == "fp16":
        tool = quantizer.Quantizer(lowered)
        tool.add_weight_only_config(".*", Operation.ALL_SUPPORTED, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
        return bytes(tool.quantize(enable_progress_report=False).quantized_model)
    if variant.precision == "dyn8":
        # A dynamically quantized depthwise layer leaves XNNPACK: twice the latency for 3 % of the size.
        tool = quantizer.Quantizer(lowered)
        for operation in (Operation.CONV_2D, Operation.FULLY_CONNECTED):
            tool.add_dynamic_config(".*", operation, 8)
        return bytes(tool.quantize(enable_progress_report=False).quantized_model)
    assert images is not None
    tool = quantizer.Quantizer(lowered, recipe.static_wi8_ai8())
    tool.update_quantization_recipe(".*", Operation.INPUT, op_config=_uint8_input())
    tool.update_quantization_recipe(".*", Operation.OUTPUT, algorithm_key=AlgorithmName.NO_QUANTIZE)
    ranges = _ranges(lowered, tool, images)
    return bytes(tool.quantize(ranges, enable_progress_report=False).quantized_model)


def _uint8_input() -> Any:
    from ai_edge_quantizer import qtyping

    return qtyping.OpQuantizationConfig(
        activation_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=False, dtype=qtyping.TensorDataType.UINT
        ),
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
        ),
        compute_precision=qtyping.ComputePrecision.INTEGER,
    )


def _ranges(lowered: bytes, tool: Any, images: "CalibrationImages") -> dict[str, Any]:
    """Per tensor its smallest and largest value over the images, by the rule that was asked for."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    rules: dict[str, Callable[..., Any]] = {
        "min-max": qsv_utils.min_max_update,
        "moving-average": qsv_utils.moving_average_update,
    }
    collector = calibrator.Calibrator(
        lowered,
        num_threads=2,
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
        qsv_update_func=rules[images.record.method],
    )
    name, argument = _signature_input(lowered)
    samples = [{argument: image[None].astype(np.float32)} for image in images.pixels_NHWC]
    collector.calibrate({SIGNATURE: samples}, tool._recipe_manager)
    ranges: dict[str, Any] = collector.get_model_qsvs()
    # The input is pixels whatever the images held: scale 1, zero point 0.
    ranges[name] = {"min": np.array([0.0]), "max": np.array([255.0])}
    return ranges


def _signature_input(content: bytes) -> tuple[str, str]:
    """The input's tensor name and its name in the signature."""
    model = flatbuffer.unpack(content)
    entry = model.signatureDefs[0].inputs[0]
    return flatbuffer.text(model.subgraphs[0].tensors[entry.tensorIndex].name), flatbuffer.text(entry.name)


def _finish(content: bytes, embedded: str) -> bytes:
    """The model with a uint8 input named ``pixels``, an output named ``logits`` and the metadata inside."""
    model = flatbuffer.unpack(content)
    if flatbuffer.ends(model)[0].dtype != "uint8":
        flatbuffer.prepend_cast(model)
    flatbuffer.rename_ends(model, "pixels", "logits")
    flatbuffer.embed(model, embedded)
    return flatbuffer.pack(model)


def predict(artifact: Artifact, pixels_NHWC: Pixels) -> "Logits":
    interpreter = _interpreter(artifact.path)
    before, after = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for image in pixels_NHWC:
        interpreter.set_tensor(before["index"], image[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(after["index"]).copy())
    logits: Logits = np.concatenate(rows)
    return logits


def _interpreter(path: Path) -> Any:
    from edgekit.quiet import quiet

    runtime = require("ai_edge_litert.interpreter", feature="Running tflite files", extra=extra)
    with quiet():
        interpreter = runtime.Interpreter(model_path=str(path), num_threads=2)
        interpreter.allocate_tensors()
    return interpreter


def inspect(path: Path) -> Inspection:
    with flatbuffer.reading(path) as model:
        before, after = flatbuffer.ends(model)
        embedded = flatbuffer.embedded(model)
        return Inspection(
            input=before,
            output=after,
            operators=flatbuffer.operators(model),
            weights=flatbuffer.weights(model),
            labels=tuple(embedded.get("labels", ())),
            metadata={name: json.dumps(value) for name, value in embedded.items()},
        )
