"""Whether each weight of an int8 file is rounded up or down, learned layer by layer: AdaRound.

The nearest integer is best for the weight and not for the layer: what counts is what the layer gives. So each
layer, in the order in which they run, learns its roundings by gradient descent to give what the float file gives,
its activation included, from what the quantized layers before it give
(https://arxiv.org/abs/2004.10568, section 3; equations 21 to 25).

It learns at random places of the images: so memory is bounded, and a step costs the same for images of 32 pixels
and of 224. The scales of the weights stay as the quantizer sets them, since the largest weight of each channel
keeps its value; a weight of zero stays zero. The float file that comes out has its weights on their grid:
quantized again, it gives what was learned.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit import flatbuffer
from edgekit.dissect import Array, File, constant, replace_constant_
from edgekit.patches import Layer, draw, layers
from edgekit.preprocess import Pixels

CHECKED = 0.2  # of the places: they tell whether a channel's roundings are better than the nearest
STEPS = 300  # more were no better on a network trained on CIFAR-10
PLACES = (64, 512)  # of a step: fewer where the layer is large
PRODUCTS = 2**25  # of a step, forwards
ONE_BY_ONE = 16  # a product of a depthwise layer takes as long as so many of a matrix
RATE = 0.05
WARM = 0.2  # of the steps: without the pressure towards up or down
PRESSURE = 3.0  # all weights of a channel half up cost thrice the error of the nearest rounding
SHARPNESS = (20.0, 2.0)  # of the pressure, from first to last
STRETCH = (-0.1, 1.1)  # of the sigmoid, so that it reaches 0 and 1
LIMIT = 127

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "NONE": lambda x: x,
    "RELU": F.relu,
    "RELU6": F.relu6,
    "RELU_N1_TO_1": F.hardtanh,
    "HARD_SWISH": F.hardswish,
    "LOGISTIC": torch.sigmoid,
    "TANH": torch.tanh,
    "SILU": F.silu,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """How many of a layer's weights are not at the nearest integer, and what is left of the nearest one's error.

    ``error``: squared, of what the layer gives at places that it did not learn from, 1 being that of the nearest.
    """

    moved: int
    error: float


def adaround(
    content: bytes, pixels_NHWC: Pixels, quantize: Callable[[bytes], bytes], seed: int = 0
) -> tuple[bytes, dict[str, Learned]]:
    """The float file with the weights that its int8 file shall have, and what each layer learned.

    *quantize* makes the int8 file. Layers that it leaves in float stay as they are.
    """
    wanted, rounded = File(flatbuffer.unpack(content)), flatbuffer.unpack(content)
    given = File(flatbuffer.unpack(quantize(content)), wanted.names.values())
    generator, found = np.random.default_rng(seed), dict[str, Learned]()
    for layer in layers(wanted):
        stored, activation = _stored(layer, given), _activation(layer, wanted)
        if stored is None or activation is None:
            continue
        inputs_PGK, outputs_PGM = draw(layer, wanted, given, pixels_NHWC, generator)
        weights, scales = constant(rounded, layer.operator.inputs[1]), _scales(given, stored)
        learner = _Learner(
            inputs=torch.from_numpy(inputs_PGK),
            wanted=ACTIVATIONS[activation](torch.from_numpy(outputs_PGM)),
            weights=torch.from_numpy(layer.matrices(weights) / layer.per_channel(scales)),
            scales=torch.from_numpy(layer.per_channel(scales).copy()),
            bias=torch.from_numpy(layer.per_channel(_bias(wanted, layer, len(scales))).copy()),
            activation=ACTIVATIONS[activation],
        )
        with _one_thread():
            learned, found[layer.name] = learner.learn(seed)
        integers_GKM = learned.numpy()
        replace_constant_(given.model, stored, layer.stored(integers_GKM, weights.shape))
        replace_constant_(rounded, layer.operator.inputs[1], _on_grid(layer, weights, integers_GKM, scales))
    return flatbuffer.pack(rounded), found


@contextmanager
def _one_thread() -> Iterator[None]:
    """A step is so short that threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _stored(layer: Layer, given: File) -> int | None:
    """The tensor of the layer's weights in the quantized file; None where they are no integers there."""
    if layer.name not in given.operators:
        return None
    output = given.operators[layer.name].output
    tensor = next(taken[1] for _, taken, made in given.steps if made == output)
    return tensor if given.scale(tensor) and tensor in given.constants else None


def _scales(given: File, tensor: int) -> Array:
    """One for each output."""
    return np.asarray(given.tensors[tensor].quantization.scale, np.float32)


def _bias(wanted: File, layer: Layer, count: int) -> Array:
    places = [int(index) for index in layer.operator.inputs[2:] if index >= 0]
    return constant(wanted.model, places[0]) if places else np.zeros(count, np.float32)


def _on_grid(layer: Layer, weights: Array, integers_GKM: Array, scales: Array) -> Array:
    """The integers as floats, as they are stored.

    The largest weights, which set the scales, stay as they are to the last bit.
    """
    largest = np.abs(layer.matrices(weights)).max(1, keepdims=True)
    values = integers_GKM * layer.per_channel(scales)
    values = np.where(np.abs(integers_GKM) == LIMIT, np.copysign(largest, integers_GKM), values)
    return layer.stored(values, weights.shape)


def _activation(layer: Layer, wanted: File) -> str | None:
    """What is applied to what the layer gives before anybody else reads it; None for what cannot be followed."""
    graph = wanted.model.subgraphs[0]
    names = {value: name for name, value in vars(flatbuffer.schema().ActivationFunctionType).items()}
    if (fused := names[layer.operator.builtinOptions.fusedActivationFunction]) != "NONE":
        return fused if fused in ACTIVATIONS else None
    output = int(layer.operator.outputs[0])
    users = [step for step in wanted.steps if output in step[1]]
    kinds = sorted(found.kind for found, _, _ in users)
    if kinds == ["LOGISTIC", "MUL"] and output not in graph.outputs:
        [gate] = [made for found, _, made in users if found.kind == "LOGISTIC"]
        [taken] = [taken for found, taken, _ in users if found.kind == "MUL"]
        return "SILU" if set(taken) == {output, gate} else "NONE"
    if len(kinds) == 1 and kinds[0] in ACTIVATIONS and output not in graph.outputs:
        return kinds[0]
    return "NONE"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Learner:
    """One layer.

    Its inputs (P, G, K), what it shall give (P, G, M), weights in steps (G, K, M), scales and bias (G, 1, M).
    """

    inputs: Tensor
    wanted: Tensor
    weights: Tensor
    scales: Tensor
    bias: Tensor
    activation: Callable[[Tensor], Tensor]

    def learn(self, seed: int) -> tuple[Tensor, Learned]:
        """Integers (G, K, M). A channel whose learned ones are no better at checked places keeps the nearest."""
        nearest = self.weights.round().clamp(-LIMIT, LIMIT)
        count = len(self.inputs)
        split = count - int(count * CHECKED)
        check = slice(split, None) if split < count else slice(None)
        up = self._up(slice(split), nearest, seed)
        learned = (self.weights.floor() + (up >= 0.5)).clamp(-LIMIT, LIMIT)
        learned = torch.where(nearest.abs() == LIMIT, nearest, learned)  # the largest set the scale
        before, after = (self._errors(integers, check) for integers in (nearest, learned))
        integers = torch.where(after < before, learned, nearest)
        error = torch.minimum(after, before).sum() / before.sum().clamp_min(1e-30)
        return integers, Learned(moved=int((integers != nearest).sum()), error=float(error))

    def _errors(self, steps: Tensor, places: slice | Tensor) -> Tensor:
        """The mean squared error of each output, (G, 1, M)."""
        product = _product(self.inputs[places], steps * self.scales)
        errors = (self.activation(product + self.bias[:, 0]) - self.wanted[places]).square()
        return errors.mean(0)[:, None]

    def _up(self, places: slice, nearest: Tensor, seed: int) -> Tensor:
        """How far up each weight goes, 0 to 1, mostly one of the two: equations 21 to 25."""
        floor = self.weights.floor()
        usual = self._errors(nearest, places).clamp_min(1e-12 * self.wanted.square().mean() + 1e-30)
        groups, weights, outputs = self.weights.shape
        count, dearer = len(self.inputs[places]), ONE_BY_ONE if outputs == 1 else 1
        size = min(count, max(PLACES[0], min(PLACES[1], PRODUCTS // (groups * weights * outputs * dearer))))
        low, high = STRETCH
        start = torch.logit((self.weights - floor - low) / (high - low))
        value = start.clone().requires_grad_()
        free = self.weights != 0  # a sparse network keeps its zeros

        def shares() -> Tensor:
            return (torch.sigmoid(value) * (high - low) + low).clamp(0, 1) * free

        optimizer = torch.optim.Adam([value], lr=RATE)
        generator = torch.Generator().manual_seed(seed)
        for step in range(STEPS):
            up = shares()
            chosen = torch.randint(count, (size,), generator=generator)
            loss = (self._errors(floor + up, chosen) / usual).sum()
            if (progress := (step / STEPS - WARM) / (1 - WARM)) > 0:
                sharp = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * progress
                loss = loss + PRESSURE / weights * (1 - (2 * up - 1).abs().pow(sharp)).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            return shares()


def _product(inputs_PGK: Tensor, weights_GKM: Tensor) -> Tensor:
    """What the layer gives without bias, (P, G, M)."""
    groups, _, outputs = weights_GKM.shape
    if groups == 1:
        return (inputs_PGK[:, 0] @ weights_GKM[0])[:, None]
    if outputs == 1:  # many matrices of one column: products one by one are faster
        return (inputs_PGK * weights_GKM[:, :, 0]).sum(2, keepdim=True)
    return torch.einsum("pgk,gkm->pgm", inputs_PGK, weights_GKM)
