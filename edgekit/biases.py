"""Biases of int8 files that int32 does not hold.

A bias counts steps of input times weights. Where all weights of a channel are zero or tiny, as of one that died in
training, so are its steps: ai-edge-quantizer clips the bias to the largest int32, and the channel gives nearly
nothing where it should give its bias. Such a channel needs larger steps, which its weights do not feel.
"""

from typing import Any

import numpy as np

from edgekit import flatbuffer
from edgekit.dissect import constant, replace_constant_

LARGEST = 2**30  # of a bias: half of int32, the other half is for the products
STEPS = 127


def fit_biases_(model: Any, exact: Any) -> None:
    """Give the channels of *model* (int8) whose bias in *exact* (float) would be clipped a scale that holds it."""
    tensors, names = model.subgraphs[0].tensors, flatbuffer.operator_names(model)
    places = {flatbuffer.text(one.name): place for place, one in enumerate(exact.subgraphs[0].tensors)}
    for operator in model.subgraphs[0].operators:
        if names[operator.opcodeIndex] not in flatbuffer.WITH_BIAS or len(operator.inputs) < 3:
            continue
        source, weight, bias = (int(index) for index in operator.inputs[:3])
        if bias < 0 or tensors[bias].type != flatbuffer.schema().TensorType.INT32:
            continue
        named = [flatbuffer.text(tensors[index].name) for index in (weight, bias)]
        if not places.keys() >= set(named):  # the quantizer's copy of a constant that two layers share
            continue
        weights, biases = (constant(exact, places[name]) for name in named)
        held, step = tensors[weight].quantization, np.float32(tensors[source].quantization.scale[0])
        least = np.abs(biases) / (step * LARGEST)
        scales = np.asarray(held.scale, np.float32)
        fitting = np.maximum(scales, least if len(scales) == len(biases) else least.max()).astype(np.float32)
        if (fitting == scales).all():
            continue
        shape = [-1 if axis == held.quantizedDimension else 1 for axis in range(weights.ndim)]
        rounded = np.rint(weights / fitting.reshape(shape if len(scales) > 1 else [1] * weights.ndim))
        replace_constant_(model, weight, rounded.clip(-STEPS, STEPS))
        replace_constant_(model, bias, np.rint(biases / (step * fitting).astype(np.float64)))
        held.scale, tensors[bias].quantization.scale = fitting, step * fitting
