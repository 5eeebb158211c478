"""A float TFLite file in another precision, through ai-edge-quantizer."""

import re
from typing import Any

import numpy as np

from edgekit import flatbuffer
from edgekit.biases import fitted
from edgekit.calibrate import Range, Ranges
from edgekit.errors import UsageError, nearest

OUTPUT = "logits"  # the name of the last tensor in the finished file
PIXELS = {"min": np.array([0.0]), "max": np.array([255.0])}  # a range as ai-edge-quantizer has it
LEAST = 1e-4  # between the ends of a range: the steps of a smaller one are refused by XNNPACK


def quantize(
    lowered: bytes, precision: str, ranges: Ranges | None, keep_float: tuple[str, ...] = (), io: str = "uint8"
) -> bytes:
    """The float file *lowered* in *precision*; *ranges* of its tensors where activations are integers, too.

    Raises UsageError for a layer in *keep_float* that it does not have.
    """
    if precision in ("fp32", "sparse"):
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
        case "int8" if io == "int8":  # a microcontroller has no float: all of it, be it slower elsewhere
            tool.add_static_config(".*", Operation.ALL_SUPPORTED, 8, 8)
        case _:
            _static_(tool, lowered, 16 if precision == "int16x8" else 8, keep_float)
    zeros = set(silent(ranges or {}))
    given = {name: _ends(found, name in zeros) for name, found in (ranges or {}).items()}
    if ranges:  # the input is pixels whatever the images held
        given[flatbuffer.ends(flatbuffer.unpack(lowered))[0].name] = PIXELS
    content = bytes(tool.quantize(given or None, enable_progress_report=False).quantized_model)
    return fitted(content, lowered) if ranges else content


def silent(ranges: Ranges) -> list[str]:
    """Tensors in which calibration saw nothing but zeros, or values too near to zero for integers."""
    return [name for name, found in ranges.items() if found.high - found.low < LEAST]


def _ends(found: Range, is_silent: bool) -> dict[str, Any]:
    """As ai-edge-quantizer has them. What is all zeros has any range, but for one that is too small."""
    return {"min": np.array([found.low]), "max": np.array([found.low + 1 if is_silent else found.high])}


def _static_(tool: Any, lowered: bytes, activation_bits: int, keep_float: tuple[str, ...] = ()) -> None:
    """Everything in integers but *keep_float* and what is faster, and no less exact, in float."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation

    tool.add_static_config(".*", Operation.ALL_SUPPORTED, activation_bits, 8)
    keep = AlgorithmName.NO_QUANTIZE
    # XNNPACK has no int8 HARD_SWISH, but makes one look-up table of DEQUANTIZE, HARD_SWISH, QUANTIZE.
    for operation in (Operation.INPUT, Operation.OUTPUT, Operation.HARD_SWISH):
        tool.update_quantization_recipe(".*", operation, algorithm_key=keep)
    # Three channels fill no vector of bytes: the first convolution is faster in float, and its input exact. What
    # h-swish or SiLU makes of it is what 8 bits serve worst, and one depthwise layer more costs little.
    model = flatbuffer.unpack(lowered)
    for name in (*flatbuffer.stem(model), *layers(model, keep_float)):
        tool.update_quantization_recipe(f"^{re.escape(name)};?$", Operation.ALL_SUPPORTED, algorithm_key=keep)


def layers(model: Any, names: tuple[str, ...]) -> list[str]:
    """Layers under the names that they have in that float file. Raises UsageError for one that is none."""
    known = {found.name for found in flatbuffer.details(model)}
    last = flatbuffer.ends(model)[1].name
    found = [last if name == OUTPUT else name for name in names]
    if strange := [name for name in found if name not in known]:
        raise UsageError(
            f"keep_float: the model has no layer {strange[0]!r}{nearest(strange[0], known)}; "
            "`edgekit inspect FILE --layers` names those of an fp32 file"
        )
    return found
