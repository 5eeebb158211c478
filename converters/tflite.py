"""TFLite through our own lowering and ai-edge-quantizer. Raw uint8 NHWC pixels in, float logits out."""

import copy
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import flatbuffer
from edgekit.artifact import Artifact
from edgekit.convert import Conversion, Inspection, converting
from edgekit.errors import ConversionError, MissingDependency, UsageError
from edgekit.preprocess import Pixels
from edgekit.recipe import Variant
from edgekit.requires import require
from edgekit.schema import encode

if TYPE_CHECKING:
    from edgekit.export import CalibrationImages, ExportSource, Logits
    from edgekit.lower import UnknownOperator

target = "tflite"
suffix = ".tflite"
# Each with its usual size, fp32 being 1, and what it does not cover.
precisions = {
    "fp32": "32-bit floating point (size 1)",
    "fp16": "weights stored as 16-bit floats, computed in fp32 (0.50)",
    "w8": "int8 weights per channel, computed in fp32 (0.26-0.28); biases stay fp32",
    "w4": "int4 weights per channel, computed in fp32 (0.14-0.19); depthwise ones int8; slow: XNNPACK has no int4",
    "dyn8": "int8 weights, activations quantized at run time (0.26-0.30); depthwise convolutions stay fp32",
    "int8": "int8 weights and activations, ranges set by calibration images (0.26-0.30); first convolution fp32",
    "int16x8": "int8 weights, int16 activations, calibrated (0.26-0.31); slow: XNNPACK has none of it",
}
CALIBRATED = ("int8", "int16x8")
extra = "tflite"
ENOUGH_IMAGES = 200
SIGNATURE = "serving_default"
Ranges = dict[str, Any]  # by tensor name, as ai-edge-quantizer has them


@dataclass(frozen=True, kw_only=True, slots=True)
class Lowered:
    """A float32 TFLite model of the pixels as floats, 0 to 255, NHWC; what wrote it; what to tell of it."""

    content: bytes
    tools: tuple[str, ...] = ("torch",)
    notes: tuple[str, ...] = ()


def check() -> None:
    for module in ("torch", "flatbuffers", "ai_edge_litert", "ai_edge_quantizer"):
        require(module, feature="Converting to tflite", extra=extra)


def convert(source: "ExportSource", variant: Variant, out: Path) -> Conversion:
    from edgekit.quiet import quiet

    images = _calibration_images(source, variant) if variant.precision in CALIBRATED else None
    embedded = {"labels": source.labels, "preprocess": encode(source.preprocess)}
    with quiet():
        lowered: Lowered = source.once("tflite float", lambda: _lower(source))
        with converting("ai-edge-quantizer"):
            ranges = None
            if images:  # the precisions of one calibration share its pass over the images
                ranges = source.once(f"tflite {images.record}", lambda: _ranges(lowered.content, images))
            content = _quantize(lowered.content, variant.precision, ranges)
    out.write_bytes(_finish(content, json.dumps(embedded)))
    found = inspect(out)
    quantizer = () if variant.precision == "fp32" else ("ai-edge-quantizer",)
    return Conversion(
        input=found.input,
        output=found.output,
        tools={name: version(name) for name in (*lowered.tools, *quantizer, "ai-edge-litert")},
        calibration=images.record if images else None,
        notes=(*lowered.notes, *_doubts(images)),
    )


def _doubts(images: "CalibrationImages | None") -> tuple[str, ...]:
    if images is None or images.record.count >= ENOUGH_IMAGES:
        return ()
    return (
        f"calibrated on {images.record.count} images only: with fewer than {ENOUGH_IMAGES} ranges are uncertain",
    )


def _calibration_images(source: "ExportSource", variant: Variant) -> "CalibrationImages":
    if source.calibrate is None:
        raise UsageError(
            f"{variant.precision} needs calibration images: give --calibrate DIR, or --data for a recipe's own"
        )
    return source.calibrate(variant.calibration)


def _lower(source: "ExportSource") -> Lowered:
    """The model as we write it; as litert-torch writes it where it holds an operator that we do not know."""
    from edgekit.lower import UnknownOperator, lower

    try:
        with converting("torch.export"):
            return Lowered(content=lower(source.model, source.shape_NHWC))
    except UnknownOperator as unknown:
        return _lower_with_litert_torch(source, unknown)


def _lower_with_litert_torch(source: "ExportSource", unknown: "UnknownOperator") -> Lowered:
    import torch

    if find_spec("litert_torch") is None:
        raise MissingDependency(f"{unknown}; litert-torch may: pip install 'edgekit[tflite-full]'") from unknown
    litert_torch = require("litert_torch", feature="Converting to tflite", extra="tflite-full")
    try:
        with converting("litert-torch"), tempfile.TemporaryDirectory() as folder:
            channels_last = litert_torch.to_channel_last_io(source.model, args=[0]).eval()
            path = Path(folder) / "lowered.tflite"
            litert_torch.convert(channels_last, (torch.zeros(source.shape_NHWC),)).export(str(path))
            return Lowered(
                content=path.read_bytes(),
                tools=("torch", "litert-torch"),
                notes=(f"lowered by litert-torch, because {unknown}",),
            )
    except ConversionError as error:
        raise ConversionError(f"{error}; and {unknown}: replace it in the model by what it is made of") from error


def _quantize(lowered: bytes, precision: str, ranges: Ranges | None) -> bytes:
    if precision == "fp32":
        return lowered
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation

    tool = quantizer.Quantizer(lowered)
    dense = (Operation.CONV_2D, Operation.FULLY_CONNECTED)
    match precision:
        case "fp16":
            cast = AlgorithmName.FLOAT_CASTING
            tool.add_weight_only_config(".*", Operation.ALL_SUPPORTED, 16, algorithm_key=cast)
        case "w8" | "w4":
            for operation in (*dense, Operation.DEPTHWISE_CONV_2D):
                # No kernel anywhere takes int4 weights of depthwise convolutions; they are few.
                bits = 4 if precision == "w4" and operation in dense else 8
                tool.add_weight_only_config(".*", operation, bits)
        case "dyn8":
            # A dynamically quantized depthwise layer leaves XNNPACK: twice the latency for 3 % of the size.
            for operation in dense:
                tool.add_dynamic_config(".*", operation, 8)
        case _:
            _static_(tool, lowered, 16 if precision == "int16x8" else 8)
    return bytes(tool.quantize(copy.deepcopy(ranges), enable_progress_report=False).quantized_model)


def _static_(tool: Any, lowered: bytes, activation_bits: int) -> None:
    """Everything in integers but what is faster, and no less exact, in float."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation

    tool.add_static_config(".*", Operation.ALL_SUPPORTED, activation_bits, 8)
    keep = AlgorithmName.NO_QUANTIZE
    # XNNPACK has no int8 HARD_SWISH, but makes one look-up table of DEQUANTIZE, HARD_SWISH, QUANTIZE.
    for operation in (Operation.INPUT, Operation.OUTPUT, Operation.HARD_SWISH):
        tool.update_quantization_recipe(".*", operation, algorithm_key=keep)
    # Three channels fill no vector of bytes: the first convolution is faster in float, and its input exact.
    for name in flatbuffer.stem(flatbuffer.unpack(lowered)):
        tool.update_quantization_recipe(f"^{re.escape(name)};?$", Operation.ALL_SUPPORTED, algorithm_key=keep)


def _ranges(lowered: bytes, images: "CalibrationImages") -> Ranges:
    """Per tensor its smallest and largest value over the images, by the rule that was asked for."""
    from ai_edge_quantizer import calibrator, quantizer
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
    tool = quantizer.Quantizer(lowered)
    _static_(tool, lowered, 8)
    name, argument = _signature_input(lowered)
    samples = [{argument: image[None].astype(np.float32)} for image in images.pixels_NHWC]
    collector.calibrate({SIGNATURE: samples}, tool._recipe_manager)
    ranges: Ranges = collector.get_model_qsvs()
    # The input is pixels whatever the images held.
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
    flatbuffer.prepend_dequantize(model)
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
            details=flatbuffer.details(model),
            weights=flatbuffer.weights(model),
            labels=tuple(embedded.get("labels", ())),
            metadata={name: json.dumps(value) for name, value in embedded.items()},
        )
