"""Two cheap repairs of a float TFLite file before it becomes int8. A variant's calibration asks for them.

`equalize` makes the channels of a tensor equally large: what a layer gives is divided by a factor for each
channel, and the weights of the one layer that takes it are multiplied by it. In int8 one scale serves all channels
of a tensor, so that one a hundredth as large as the largest has two or three steps to itself. After section 4.1 of
https://arxiv.org/abs/1906.04721, but by the ranges of activations where the paper takes those of the first layer's
weights: TFLite's weights have a scale for each channel already. With ReLU or no activation between them the two
layers compute what they did before. ReLU6 cuts at 6 whatever the factor: a channel that reaches 6 on the images
keeps its own, and no other is made to reach it; on other images one may.

`correct_biases` takes from each layer without an activation the mean error that int8 makes in each of its channels
(section 4.2 there, measured on images).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import flatbuffer
from edgekit.calibrate.observe import loaded
from edgekit.dissect import constant, replace_constant_
from edgekit.preprocess import Pixels

Array = npt.NDArray[np.floating[Any]]
# Of the largest contribution, which is a channel times the weights that take it: one that gives less on these
# images may give more on others, and is not worth the accuracy of its neighbours.
SMALLEST = 1 / 64
CUT = 6.0
# The axis of the weights that counts what comes out, and what goes in.
AXES = {"CONV_2D": (0, 3), "DEPTHWISE_CONV_2D": (3, 3), "FULLY_CONNECTED": (0, 1)}
ACTIVATIONS = ("NONE", "RELU", "RELU6")
BETWEEN = ("PAD", "MEAN")  # linear in each channel, and zero stays zero


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two layers, as (operator, its kind), and the name of what the first gives to the second alone."""

    first: tuple[Any, str]
    second: tuple[Any, str]
    tensor: str
    activation: str


def equalize(content: bytes, pixels_NHWC: Pixels) -> tuple[bytes, dict[str, Array]]:
    """The file with equalized channels, and the factors by tensor name; images tell how large each channel is."""
    model = flatbuffer.unpack(content)
    found = list(pairs(model))
    peaks = _peaks(content, pixels_NHWC, [pair.tensor for pair in found])
    factors = {}
    for pair in found:
        (first, kind), (second, next_kind) = pair.first, pair.second
        (given, _), (_, taken) = AXES[kind], AXES[next_kind]
        weights = np.abs(constant(model, second.inputs[1]))
        sizes = weights.max(tuple(axis for axis in range(weights.ndim) if axis != taken))
        factors[pair.tensor] = factor = _factors(peaks[pair.tensor], sizes, pair)
        _scale_(model, first.inputs[1], given, 1 / factor)
        for bias in _bias(first):
            _scale_(model, bias, 0, 1 / factor)
        _scale_(model, second.inputs[1], taken, factor)
    return flatbuffer.pack(model), factors


def _factors(peaks: Array, sizes: Array, pair: Pair) -> Array:
    """By what each channel is divided: 1 for the largest one, mostly less for the others."""
    if not peaks.max():
        return np.ones_like(peaks)
    cut = peaks >= CUT * 0.999 if pair.activation == "RELU6" else np.zeros(peaks.shape, bool)
    largest, sizes = peaks.max(), np.maximum(sizes, sizes.max() * 1e-9 + 1e-30)
    # A channel may be any number of times smaller than the largest where its weights make up for that.
    peaks = np.maximum(peaks, np.maximum((peaks * sizes).max() * SMALLEST / sizes, largest * 1e-9))
    # Weights of a depthwise layer have a scale for each channel, and lose nothing. Others lose what activations
    # gain: they meet half way.
    depthwise = pair.second[1] == "DEPTHWISE_CONV_2D"
    factor = peaks if depthwise else np.sqrt(peaks / sizes)
    factor = factor * ((peaks / factor)[~cut].max(initial=0) / largest)  # no channel outgrows the largest
    return np.where(cut, np.float32(1), factor)


def pairs(model: Any) -> Iterator[Pair]:
    """Layers whose output, through a ReLU at most, is the input of one other layer and of nothing else."""
    graph, kinds = model.subgraphs[0], [operator.kind for operator in flatbuffer.details(model)]
    fused = {value: name for name, value in vars(flatbuffer.schema().ActivationFunctionType).items()}
    for first, kind in zip(graph.operators, kinds, strict=True):
        if kind not in AXES or fused[first.builtinOptions.fusedActivationFunction] not in ACTIVATIONS:
            continue
        current = first.outputs[0]
        while (user := _only_user(graph, current)) is not None and kinds[user] in BETWEEN:
            current = graph.operators[user].outputs[0]
        if user is None or kinds[user] not in AXES:
            continue
        second, channels = graph.operators[user], graph.tensors[first.outputs[0]].shape[-1]
        weights = graph.tensors[second.inputs[1]]
        # Groups and multiplied channels have other axes; what several layers share cannot change for one of them.
        plain = second.inputs[0] == current and weights.shape[AXES[kinds[user]][1]] == channels
        constants = [second.inputs[1], *(place for place in first.inputs[1:] if place >= 0)]
        if plain and all(_only_user(graph, tensor) is not None for tensor in constants):
            yield Pair(
                first=(first, kind),
                second=(second, kinds[user]),
                tensor=flatbuffer.text(graph.tensors[first.outputs[0]].name),
                activation=fused[first.builtinOptions.fusedActivationFunction],
            )


def _only_user(graph: Any, tensor: int) -> int | None:
    """The place of the only operator that takes the tensor; None where there are others, or it is the output."""
    users = [place for place, operator in enumerate(graph.operators) if tensor in operator.inputs]
    return users[0] if len(users) == 1 and tensor not in graph.outputs else None


def correct_biases(
    content: bytes, pixels_NHWC: Pixels, quantize: Callable[[bytes], bytes], wanted: bytes | None = None
) -> tuple[bytes, dict[str, Array]]:
    """The float file with biases that make up for the mean errors of its int8 file, and the changes by layer.

    *wanted* is the float file whose means are right, where the weights of *content* have changed. Layers are
    corrected in the order in which they run, since each sees what those before it leave: *quantize* is called once
    for each, with the corrected float file.
    """
    model = flatbuffer.unpack(content)
    layers = list(_linear(model))
    right, changes = _means(wanted or content, pixels_NHWC, [name for name, _ in layers]), dict[str, Array]()
    for name, layer in layers:
        found = _means(quantize(flatbuffer.pack(model)), pixels_NHWC, [name])
        changes[name] = change = right[name] - found[name]
        replace_constant_(model, layer.inputs[2], constant(model, layer.inputs[2]) + change)
    return flatbuffer.pack(model), changes


def restored(content: bytes, original: bytes, names: Sequence[str]) -> bytes:
    """The file with the constants that these layers have in the one that it was made of."""
    model, before = flatbuffer.unpack(content), flatbuffer.unpack(original)
    for operator, detail in zip(model.subgraphs[0].operators, flatbuffer.details(model), strict=True):
        if detail.name in names and detail.kind in AXES:
            for tensor in (operator.inputs[1], *_bias(operator)):
                replace_constant_(model, tensor, constant(before, tensor))
    return flatbuffer.pack(model)


def _linear(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers with a bias of their own and no activation, with the names of what they give."""
    graph, none = model.subgraphs[0], flatbuffer.schema().ActivationFunctionType.NONE
    for operator, detail in zip(graph.operators, flatbuffer.details(model), strict=True):
        if detail.kind not in AXES or operator.builtinOptions.fusedActivationFunction != none:
            continue
        if any(_only_user(graph, bias) is not None for bias in _bias(operator)):
            yield detail.name, operator


def _bias(layer: Any) -> list[int]:
    """The tensor of the layer's bias, where it has one."""
    return [tensor for tensor in layer.inputs[2:] if tensor >= 0]


def _peaks(content: bytes, pixels_NHWC: Pixels, names: Sequence[str]) -> dict[str, Array]:
    """The largest absolute value of each channel over the images, by tensor name."""
    found: dict[str, Array] = {}
    for name, values in _values(content, pixels_NHWC, names):
        peak = np.abs(values).reshape(-1, values.shape[-1]).max(0)
        found[name] = np.maximum(found[name], peak) if name in found else peak
    return found


def _means(content: bytes, pixels_NHWC: Pixels, names: Sequence[str]) -> dict[str, Array]:
    """The mean of each channel over the images, by tensor name."""
    sums: dict[str, Array] = {}
    for name, values in _values(content, pixels_NHWC, names):
        mean = values.reshape(-1, values.shape[-1]).mean(0)
        sums[name] = sums[name] + mean if name in sums else mean
    return {name: total / np.float32(len(pixels_NHWC)) for name, total in sums.items()}


def _values(content: bytes, pixels_NHWC: Pixels, names: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Each named tensor of each image, as floats."""
    interpreter = loaded(content, keep=True)
    [entry] = interpreter.get_input_details()
    known = {detail["name"]: detail for detail in interpreter.get_tensor_details()}
    for image in pixels_NHWC:
        interpreter.set_tensor(entry["index"], image[None].astype(entry["dtype"]))
        interpreter.invoke()
        for name in names:
            values, (scale, zero) = interpreter.get_tensor(known[name]["index"]), known[name]["quantization"]
            yield name, (values.astype(np.float32) - zero) * scale if scale else values


def _scale_(model: Any, tensor: int, axis: int, factor: Array) -> None:
    """Multiply a constant by a factor for each place of *axis*."""
    values = constant(model, tensor)
    shape = [-1 if place == axis else 1 for place in range(values.ndim)]
    replace_constant_(model, tensor, values * factor.reshape(shape))
