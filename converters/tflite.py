"""TFLite through our own lowering and ai-edge-quantizer. Raw uint8 NHWC pixels in, float logits out."""

import json
import re
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import calibrate, flatbuffer
from edgekit.artifact import Artifact
from edgekit.calibrate import Chosen, Ranges
from edgekit.convert import Conversion, Inspection, converting
from edgekit.equalize import correct_biases, equalize
from edgekit.errors import ConversionError, MissingDependency, UsageError, nearest
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
    "int8-mixed": "int8 with the layers in float that cost most top-1, found on labelled images (0.26-0.6)",
    "int16x8": "int8 weights, int16 activations, calibrated (0.26-0.31); slow: XNNPACK has none of it",
}
CALIBRATED = ("int8", "int8-mixed", "int16x8")
extra = "tflite"
OUTPUT = "logits"
BIAS_IMAGES = 64  # each layer is measured on all of them, one layer after the other
PIXELS = {"min": np.array([0.0]), "max": np.array([255.0])}  # a range as ai-edge-quantizer has it


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
            if images:
                content, chosen = _calibrated(source, lowered.content, images, variant.precision)
                content = _quantize(content, variant.precision, chosen.ranges, variant.keep_float)
            else:
                content, chosen = _quantize(lowered.content, variant.precision, None), None
    out.write_bytes(_finish(content, json.dumps(embedded)))
    found = inspect(out)
    quantizer = () if variant.precision == "fp32" else ("ai-edge-quantizer",)
    return Conversion(
        input=found.input,
        output=found.output,
        tools={name: version(name) for name in (*lowered.tools, *quantizer, "ai-edge-litert")},
        calibration=chosen.recorded(images.record) if images and chosen else None,
        notes=(*lowered.notes, *(calibrate.doubts(images) if images else ()), *_kept(variant)),
    )


def _kept(variant: Variant) -> tuple[str, ...]:
    """What stays in float, the first few by name: a search's own record has them all."""
    names = variant.keep_float
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (f"kept in float: {', '.join(names[:8])}{more}",) if names else ()


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


def _quantize(lowered: bytes, precision: str, ranges: Ranges | None, keep_float: tuple[str, ...] = ()) -> bytes:
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
            _static_(tool, lowered, 16 if precision == "int16x8" else 8, keep_float)
    given = {name: {"min": np.array([r.low]), "max": np.array([r.high])} for name, r in (ranges or {}).items()}
    if ranges:  # the input is pixels whatever the images held
        given[flatbuffer.ends(flatbuffer.unpack(lowered))[0].name] = PIXELS
    return bytes(tool.quantize(given or None, enable_progress_report=False).quantized_model)


def _static_(tool: Any, lowered: bytes, activation_bits: int, keep_float: tuple[str, ...] = ()) -> None:
    """Everything in integers but *keep_float* and what is faster, and no less exact, in float."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation

    tool.add_static_config(".*", Operation.ALL_SUPPORTED, activation_bits, 8)
    keep = AlgorithmName.NO_QUANTIZE
    # XNNPACK has no int8 HARD_SWISH, but makes one look-up table of DEQUANTIZE, HARD_SWISH, QUANTIZE.
    for operation in (Operation.INPUT, Operation.OUTPUT, Operation.HARD_SWISH):
        tool.update_quantization_recipe(".*", operation, algorithm_key=keep)
    # Three channels fill no vector of bytes: the first convolution is faster in float, and its input exact.
    model = flatbuffer.unpack(lowered)
    for name in (*flatbuffer.stem(model), *_layers(model, keep_float)):
        tool.update_quantization_recipe(f"^{re.escape(name)};?$", Operation.ALL_SUPPORTED, algorithm_key=keep)


def _layers(model: Any, names: tuple[str, ...]) -> list[str]:
    """Layers under the names that they have before `_finish`. Raises UsageError for one that is none."""
    known = {found.name for found in flatbuffer.details(model)}
    last = flatbuffer.ends(model)[1].name
    found = [last if name == OUTPUT else name for name in names]
    if strange := [name for name in found if name not in known]:
        raise UsageError(
            f"keep_float: the model has no layer {strange[0]!r}{nearest(strange[0], known)}; "
            "`edgekit inspect FILE` names the layers of an fp32 file"
        )
    return found


def _calibrated(
    source: "ExportSource", lowered: bytes, images: "CalibrationImages", precision: str
) -> tuple[bytes, Chosen]:
    """The float file to quantize, repaired as asked, and the range of each tensor."""
    record, pixels = images.record, images.pixels_NHWC
    content = lowered
    if "equalize" in record.repairs:
        content = source.once(f"tflite equalized {record}", lambda: equalize(lowered, pixels)[0])
    equalized, chosen = content, _choose(source, content, images, precision)
    if "correct_biases" in record.repairs:
        content = source.once(
            f"tflite corrected {precision} {record}",
            lambda: correct_biases(
                equalized, pixels[:BIAS_IMAGES], lambda file: _quantize(file, precision, chosen.ranges)
            )[0],
        )
    return content, chosen


def _choose(source: "ExportSource", lowered: bytes, images: "CalibrationImages", precision: str) -> Chosen:
    """The range of each tensor. One pass over the images serves all precisions and methods."""
    record, bits = images.record, 16 if precision == "int16x8" else 8
    observed = source.once(
        f"tflite pass {replace(record, method='')}",
        lambda: calibrate.observe(lowered, images.pixels_NHWC, images.ids),
    )
    if bits == 8 and record.method == "auto":
        return source.once(
            f"tflite ranges {record}",
            lambda: calibrate.choose(
                observed, lowered, images.pixels_NHWC, lambda ranges: _quantize(lowered, "int8", ranges)
            ),
        )
    # Steps of 16 bits are so small that nothing is worth clipping.
    return calibrate.by_rule(observed, "min-max" if record.method == "auto" else record.method, bits)


def _finish(content: bytes, embedded: str) -> bytes:
    """The model with a uint8 input named ``pixels``, an output named ``logits`` and the metadata inside."""
    model = flatbuffer.unpack(content)
    flatbuffer.prepend_dequantize(model)
    flatbuffer.rename_ends(model, "pixels", OUTPUT)
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
