"""The convolutions and dense layers of a TFLite file as products of matrices, at places that are drawn at random.

N images, H height, W width, C channels in, P places, G groups of channels (as many as channels in a depthwise
layer), K weights of an output, M outputs of a group.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.dissect import Array, File, until
from edgekit.preprocess import Pixels

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
PLACES = 8192  # at most, of all images together
VALUES = 2**23  # of a layer's inputs at these places, at most: 32 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer and its geometry. *operator*: as the float file has it; *kernel* and the like: (down, across)."""

    name: str
    kind: str
    operator: Any
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    same: bool = False

    def matrices(self, weights: Array) -> Array:
        """Weights as they are stored, as (G, K, M)."""
        if self.kind == "DEPTHWISE_CONV_2D":  # (1, down, across, C * M)
            return weights.reshape(-1, self.groups, weights.shape[-1] // self.groups).transpose(1, 0, 2)
        return weights.reshape(self.groups, len(weights) // self.groups, -1).transpose(0, 2, 1)

    def stored(self, matrices_GKM: Array, shape: tuple[int, ...]) -> Array:
        """What `matrices` was made of."""
        axes = (1, 0, 2) if self.kind == "DEPTHWISE_CONV_2D" else (0, 2, 1)
        return matrices_GKM.transpose(axes).reshape(shape)

    def per_channel(self, values: Array) -> Array:
        """One value for each output, as (G, 1, M)."""
        return values.reshape(self.groups, 1, -1)

    def patches(self, image_HWC: Floats, rows: Ints, columns: Ints) -> Floats:
        """What the outputs at these rows and columns are made of, (P, G, K)."""
        pads = [self._pads(side, axis) for axis, side in enumerate(image_HWC.shape[:2])]
        padded = np.pad(image_HWC, (*pads, (0, 0)))
        down, across = (
            place[:, None] * stride + np.arange(size) * step
            for place, stride, size, step in zip(
                (rows, columns), self.stride, self.kernel, self.dilation, strict=True
            )
        )
        found = padded[down[:, :, None], across[:, None, :]]
        found = found.reshape(len(rows), -1, self.groups, image_HWC.shape[2] // self.groups)
        taken: Floats = found.transpose(0, 2, 1, 3).reshape(len(rows), self.groups, -1)
        return taken

    def _pads(self, side: int, axis: int) -> tuple[int, int]:
        """TFLite's SAME: to ceil(side / stride) outputs, the odd row or column last."""
        stride, reach = self.stride[axis], (self.kernel[axis] - 1) * self.dilation[axis] + 1
        total = max(0, (-(-side // stride) - 1) * stride + reach - side) if self.same else 0
        return total // 2, total - total // 2


def layers(file: File) -> Iterator[Layer]:
    """The layers of a float file whose weights are constants of their own, in the order in which they run."""
    graph = file.model.subgraphs[0]
    taken = [int(index) for operator in graph.operators for index in operator.inputs]
    for operator in graph.operators:
        name = file.names.get(int(operator.outputs[0]), "")
        kind = file.operators[name].kind if name in file.operators else ""
        if kind in KINDS and (weights := int(operator.inputs[1])) in file.constants and taken.count(weights) == 1:
            yield _layer(name, kind, operator, graph)


def _layer(name: str, kind: str, operator: Any, graph: Any) -> Layer:
    options, shape = operator.builtinOptions, [int(side) for side in graph.tensors[operator.inputs[1]].shape]
    if kind == "FULLY_CONNECTED":
        return Layer(name=name, kind=kind, operator=operator, groups=1, kernel=(1, 1))
    channels = int(graph.tensors[operator.inputs[0]].shape[3])
    return Layer(
        name=name,
        kind=kind,
        operator=operator,
        groups=channels if kind == "DEPTHWISE_CONV_2D" else channels // shape[3],
        kernel=(shape[1], shape[2]),
        stride=(options.strideH, options.strideW),
        dilation=(options.dilationHFactor, options.dilationWFactor),
        same=options.padding == 0,
    )


def draw(
    layer: Layer, wanted: File, given: File, pixels_NHWC: Pixels, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """What the quantized file *given* has for the layer, (P, G, K), and what the float file gives, (P, G, M).

    As many places of each image, drawn without repetition; the images in random order.
    """
    before, after = given.operators[layer.name].inputs[0], wanted.operators[layer.name].output
    weights, made = (wanted.tensors[index].shape for index in (layer.operator.inputs[1], after))
    channels, per_group = int(made[-1]), int(made[-1]) // layer.groups
    count = max(1, min(PLACES, VALUES * per_group // math.prod(map(int, weights))))
    sides: tuple[int, ...]
    out: tuple[int, ...]
    if layer.kind == "FULLY_CONNECTED":
        sides, out = (-1, 1, int(weights[1])), (-1, 1, channels)
    else:
        sides, out = tuple(map(int, given.tensors[before].shape[1:])), tuple(map(int, made[1:]))
    images = pixels_NHWC[generator.permutation(len(pixels_NHWC))[:count]]
    each, inputs, outputs = -(-count // len(images)), [], []
    for taken, value in zip(_values(given, before, images), _values(wanted, after, images), strict=True):
        taken_HWC, value_HWC = taken.reshape(sides), value.reshape(out)
        rows, columns = np.divmod(
            generator.permutation(len(value_HWC) * value_HWC.shape[1])[:each], value_HWC.shape[1]
        )
        inputs.append(layer.patches(taken_HWC, rows, columns))
        outputs.append(value_HWC[rows, columns].reshape(-1, layer.groups, per_group))
    return np.concatenate(inputs), np.concatenate(outputs)


def _values(file: File, index: int, pixels_NHWC: Pixels) -> Iterator[Floats]:
    """The tensor for each image, as floats."""
    interpreter = None if index == file.input else until(file, index)
    for image in pixels_NHWC:
        value = image[None].astype(np.float32)
        if interpreter is not None:
            interpreter.set_tensor(file.input, value)
            interpreter.invoke()
            value = file.floats(index, interpreter.get_tensor(index))
        yield value
