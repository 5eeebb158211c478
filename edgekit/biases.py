"""Biases of int8 files that int32 does not hold.

A bias counts steps of input times weights. Where all weights of a channel are zero or tiny, as of one that died in
training, so are its steps: ai-edge-quantizer clips the bias to the largest int32, and the channel gives nearly
nothing where it should give its bias. Such a channel needs larger steps, which its weights do not feel.
"""

from typing import Any

import numpy as np

from edgekit import flatbuffer
from edgekit.dissect import constant, replace_constant_
from edgekit.errors import ConversionError

LARGEST = 2**30  # of a bias: half of int32, the other half is for the products
STEPS = 127  # of a weight


def fitted(content: bytes, lowered: bytes) -> bytes:
    """The int8 file with scales that hold the biases of *lowered*, the float file that it was made of.

    Raises ConversionError where a bias is clipped and *lowered* has it under no name.
    """
    model = flatbuffer.unpack(content)
    tensors, names = model.subgraphs[0].tensors, flatbuffer.operator_names(model)
    clipped = {}
    for operator in model.subgraphs[0].operators:
        inputs = [int(index) for index in operator.inputs]
        if names[operator.opcodeIndex] not in flatbuffer.WITH_BIAS or len(inputs) < 3 or inputs[2] < 0:
            continue
        if tensors[inputs[2]].type == flatbuffer.schema().TensorType.INT32:
            stored = constant(model, inputs[2]).astype(np.int64)
            if np.abs(stored).max() > LARGEST:
                clipped[inputs[2]] = inputs
    if not clipped:
        return content
    exact = flatbuffer.unpack(lowered)
    places = {flatbuffer.text(one.name): place for place, one in enumerate(exact.subgraphs[0].tensors)}

    def before(index: int) -> Any:
        if (name := flatbuffer.text(tensors[index].name)) not in places:
            raise ConversionError(
                f"the bias of a channel of {name} does not fit into int32: convert to fp16 or w8"
            )
        return constant(exact, places[name])

    for source, weight, bias in clipped.values():
        _fit_(model, source, weight, bias, before(weight), before(bias))
    return flatbuffer.pack(model)


def _fit_(model: Any, source: int, weight: int, bias: int, weights: Any, biases: Any) -> None:
    """Quantize *weights* and *biases* anew, by scales of the channels of which none is too small."""
    step, held, other = (model.subgraphs[0].tensors[index].quantization for index in (source, weight, bias))
    least = np.abs(biases) / (np.float32(step.scale[0]) * LARGEST)
    scales = np.asarray(held.scale, np.float32)
    scales = np.maximum(scales, least if len(scales) == len(biases) else least.max()).astype(np.float32)
    units = np.float32(step.scale[0]) * scales
    shape = [-1 if axis == held.quantizedDimension else 1 for axis in range(weights.ndim)]
    rounded = np.rint(weights / (scales.reshape(shape) if len(scales) > 1 else scales))
    replace_constant_(model, weight, rounded.clip(-STEPS, STEPS))
    replace_constant_(model, bias, np.rint(biases / units.astype(np.float64)))
    held.scale, other.scale = scales, units
