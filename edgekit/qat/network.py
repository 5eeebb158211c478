"""The network of an int8 TFLite file in torch, computing what the file computes, with weights that can learn.

It is built from two flatbuffers: the float file, whose weights it takes, and the int8 file, which tells which
tensors are integers. So both have the same tensors under the same names, batch norm is folded with its statistics
as they were, and what was trained goes back into the float file, from which the ordinary quantizer makes int8.

Each integer tensor is rounded in training as the file rounds it (https://arxiv.org/abs/1712.05877, section 3):
weights symmetrically per channel, activations asymmetrically per tensor, biases in steps of input times weights.
Gradients pass through the rounding; the ranges of activations learn by those of
https://arxiv.org/abs/1902.08153 (section 2), with a zero point that learns as well where the range is not
anchored at zero (https://arxiv.org/abs/2004.09576).
"""

import hashlib
import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from edgekit import flatbuffer
from edgekit.calibrate import Range
from edgekit.dissect import BORDERS, File, replace_constant_
from edgekit.errors import ConversionError
from edgekit.qat.kernels import Kernel, fused, kernel
from edgekit.qat.steps import Step, constants, named, same_ranges, steps

LOWEST, HIGHEST = -128, 127  # of activations; weights have no -128
FIXED = ("LOGISTIC", "TANH", "SOFTMAX", "LOG_SOFTMAX")  # TFLite prescribes the scale of what they give
LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
AVERAGES = ("AVERAGE_POOL_2D",)  # of integers, of which many lie half way between two
TIE = 1e-4  # of a step
SMALL = 1e-12


class Network(nn.Module):
    """Logits (N, K) of pixels (N, H, W, C), floats 0 to 255. *float_file* and *int8_file* are flatbuffers.

    Weights learn in units of their channel's largest: folding has made channels of very different sizes, and all
    shall move at one rate. Raises ConversionError for an operator that is not known.
    """

    def __init__(self, float_file: bytes, int8_file: bytes) -> None:
        super().__init__()
        self.float_file, self.int8_file = float_file, int8_file
        exact = flatbuffer.unpack(float_file)
        stored = constants(exact)
        known = {flatbuffer.text(tensor.name) for tensor in exact.subgraphs[0].tensors}
        file = File(flatbuffer.unpack(int8_file), known)
        graph = file.model.subgraphs[0]
        self._input, self._output = int(graph.inputs[0]), int(graph.outputs[0])
        self._names = {index: flatbuffer.text(graph.tensors[index].name) for index in file.constants}
        self._axes: dict[int, int | None] = {}  # the channels' one of weights, None where they stay in float
        self._trained: dict[int, str] = {}  # constants that learn, and their names in the float file
        self._fixed: dict[int, Any] = {}
        self._roots = same_ranges(file)
        self._tensor_names = named(file, self._roots)
        self._steps = list(steps(file, self._roots))
        self._kernels: list[Kernel | None] = [
            None if step.kind in BORDERS else kernel(step.kind) for step in self._steps
        ]
        self._activations = [fused(step.options) for step in self._steps]
        last = next(step for step in reversed(self._steps) if step.kind not in BORDERS)
        self._softmax = last.output if last.kind == "SOFTMAX" else None
        self._add_constants(file, stored)
        self._add_ranges(file)

    def _add_constants(self, file: File, stored: dict[str, Any]) -> None:
        users = {index: step for step in self._steps for index in step.inputs}
        for index in sorted(file.constants & users.keys()):
            step, name = users[index], self._names[index]
            if name not in stored:
                raise ConversionError(f"quantization-aware training finds no {name} in the float file")
            value = stored[name]
            if step.kind not in LINEAR or index == step.inputs[0]:
                fixed = torch.from_numpy(value.copy())
                self._fixed[index] = fixed if value.dtype.kind == "i" else None
                if value.dtype.kind == "f":
                    rounded = torch.from_numpy(np.array(file.floats(index, file.stored(index, value))))
                    self.register_buffer(f"fixed{index}", fixed, persistent=False)
                    self.register_buffer(f"stored{index}", rounded, persistent=False)
                continue
            weight = torch.from_numpy(value.copy())
            self._trained[index] = name
            if index == step.inputs[1]:
                axis = 3 if step.kind == "DEPTHWISE_CONV_2D" else 0
                self._axes[index] = axis if file.scale(index) else None
                unit = weight.abs().amax([place for place in range(weight.ndim) if place != axis], keepdim=True)
            else:
                unit = torch.full((1,), float(weight.abs().mean()) or 1.0)
            unit = unit.clamp(min=SMALL)
            self.register_buffer(f"unit{index}", unit, persistent=False)
            self.register_parameter(f"weight{index}", nn.Parameter(weight / unit))

    def _add_ranges(self, file: File) -> None:
        """One for all tensors of a root. What is anchored at zero, as after ReLU, stays so; so do pixels."""
        fixed = {
            self._roots[step.output]
            for step in self._steps
            if step.round is not None and (step.kind in FIXED or step.inputs[0] == self._input)
        }
        for root in sorted({root for index, root in self._roots.items()}):
            found = file.scale(root)
            assert found is not None, "only tensors of integers have a range"
            self.register_buffer(f"step{root}", torch.tensor([float(found[0])]), persistent=False)
            growth, zero_point = torch.zeros(1), torch.tensor([float(found[1])])
            learns = root not in fixed
            self.register_parameter(f"scale{root}", nn.Parameter(growth, requires_grad=learns))
            anchored = not learns or found[1] in (LOWEST, HIGHEST)
            self.register_parameter(f"zero{root}", nn.Parameter(zero_point, requires_grad=not anchored))

    @property
    def sha256(self) -> str:
        """Of what it was built from."""
        return hashlib.sha256(self.float_file + self.int8_file).hexdigest()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """What learns: weights, scales (the logarithms of what they grow by) and zero points."""
        found: dict[str, list[nn.Parameter]] = {"weight": [], "scale": [], "zero": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                found[name.rstrip("0123456789")].append(parameter)
        return found

    def forward(self, pixels_NHWC: Tensor, rounding: bool = True, logits: bool = False) -> Tensor:
        """*rounding* off: the float network with the weights as they are. *logits*: before a last softmax."""
        values: dict[int, Any] = {self._input: pixels_NHWC}
        for place, step in enumerate(self._steps):
            if logits and step.output == self._softmax:
                return cast(Tensor, values[step.inputs[0]])
            values[step.output] = self._result(
                place, [self._value(i, values, rounding) for i in step.inputs], rounding
            )
            for index in step.last_use:
                values.pop(index, None)
        return cast(Tensor, values[self._output])

    def _result(self, place: int, inputs: list[Any], rounding: bool = True) -> Tensor:
        """What the operator gives of its inputs."""
        step, run, activation = self._steps[place], self._kernels[place], self._activations[place]
        if rounding and step.kind in LINEAR:
            inputs[1:] = self._rounded_weights(step, inputs[1:])
        x: Tensor
        if rounding and not torch.is_grad_enabled() and self._in_integers(step):
            x = self._counted(place, inputs)
        else:
            x = inputs[0] if run is None else run(inputs, step.options)
        x = x if activation is None else activation(x)
        if not rounding or step.round is None:
            return x
        if step.kind in AVERAGES:
            x = x + self._outwards(x, step.round)
        elif (before := self._roots.get(step.inputs[0])) is not None and step.kind == "QUANTIZE":
            factor, little = self._inexact(before, step.round)
            x = x * factor + little
        return self._rounded(x, step.round)

    def _in_integers(self, step: Step) -> bool:
        """Whether it is a linear layer that takes and gives integers."""
        return (
            step.kind in LINEAR
            and step.round is not None
            and step.inputs[0] in self._roots
            and self._axes.get(step.inputs[1]) is not None
        )

    def _counted(self, place: int, inputs: list[Tensor]) -> Tensor:
        """A linear layer as the file computes it: sums of integers, which floats hold up to 2^24, times one float.

        Rounded weights come in, and a rounded output goes out. Sums of floats err by more than XNNPACK does, and
        some lie so near half a step that they would be rounded the other way.
        """
        step, run = self._steps[place], self._kernels[place]
        assert run is not None
        assert step.round is not None
        axis = self._axes[step.inputs[1]]
        assert axis is not None
        before, after = self._scale(self._roots[step.inputs[0]]), self._scale(step.round)
        x, weight, *bias = inputs
        scale = _weight_scale(weight, axis)
        steps = weight / scale.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
        units = before * scale
        counted: Tensor = run(
            [(x / before).round(), steps.round(), *((one / units).round() for one in bias)], step.options
        )
        return (counted * (units / after)).round() * after

    def _value(self, index: int, values: dict[int, Any], rounding: bool = True) -> Any:
        if index in self._trained:
            return self.get_parameter(f"weight{index}") * self.get_buffer(f"unit{index}")
        if index in self._fixed:
            found = self._fixed[index]
            return self.get_buffer(f"{'stored' if rounding else 'fixed'}{index}") if found is None else found
        return values[index]

    def _scale(self, root: int) -> Tensor:
        return self.get_buffer(f"step{root}") * self.get_parameter(f"scale{root}").exp()

    @torch.no_grad()
    def _inexact(self, before: int, after: int) -> tuple[Tensor, Tensor]:
        """XNNPACK's factor for integers that get another scale, over the right one, and what rounds ties up."""
        scale = self._scale(after)
        ratio = self._scale(before) / scale
        return (256 * ratio).round() / 256 / ratio, scale * TIE

    @torch.no_grad()
    def _outwards(self, x: Tensor, root: int) -> Tensor:
        """What makes half a step be rounded away from zero, and not to even."""
        scale, zero_point = self._scale(root), self.get_parameter(f"zero{root}").clamp(LOWEST, HIGHEST)
        return (x / scale + zero_point.round()).sign() * scale * TIE

    def _rounded(self, x: Tensor, root: int) -> Tensor:
        scale, zero_point = self._scale(root), self.get_parameter(f"zero{root}").clamp(LOWEST, HIGHEST)
        if not (scale.requires_grad and torch.is_grad_enabled()):
            return torch.fake_quantize_per_tensor_affine(x, scale, zero_point.round().int(), LOWEST, HIGHEST)
        factor = 1 / math.sqrt(x.numel() / len(x) * HIGHEST)
        rounded: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x, scale, zero_point, LOWEST, HIGHEST, factor
        )
        return rounded

    def _rounded_weights(self, step: Step, values: list[Tensor]) -> list[Tensor]:
        axis = self._axes.get(step.inputs[1])
        if axis is None:  # a layer that stays in float
            return values
        weight, *bias = values
        scale = _weight_scale(weight.detach(), axis)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -HIGHEST, HIGHEST)
        root = self._roots.get(step.inputs[0])
        if not bias or root is None:
            return [rounded, *bias]
        unit = scale * self._scale(root).detach()
        return [rounded, bias[0] + ((bias[0] / unit).round() * unit - bias[0]).detach()]

    def ranges(self) -> dict[str, Range]:
        """The range of each integer activation by its name in the float file, exactly as it is in training."""
        found = {}
        for index, root in self._roots.items():
            if name := self._tensor_names.get(index):
                scale = float(self._scale(root).detach())
                zero_point = round(float(self.get_parameter(f"zero{root}").detach().clamp(LOWEST, HIGHEST)))
                found[name] = Range(low=(LOWEST - zero_point) * scale, high=(HIGHEST - zero_point) * scale)
        return found

    def trained_file(self) -> bytes:
        """The float file with the weights as they are now, and biases as they are rounded.

        They count small steps: the quantizer, with more digits, would round some of them the other way.
        """
        values = {index: self._value(index, {}).detach() for index in self._trained}
        for step in self._steps:
            if step.kind in LINEAR and set(step.inputs[2:]) & values.keys():
                _, values[step.inputs[2]] = self._rounded_weights(step, [values[i] for i in step.inputs[1:]])
        model = flatbuffer.unpack(self.float_file)
        places = {flatbuffer.text(tensor.name): place for place, tensor in enumerate(model.subgraphs[0].tensors)}
        for index, name in self._trained.items():
            replace_constant_(model, places[name], values[index].cpu().numpy())
        return flatbuffer.pack(model)


def _weight_scale(weight: Tensor, axis: int) -> Tensor:
    """Of each channel (C,)."""
    others = [place for place in range(weight.ndim) if place != axis]
    return weight.abs().amax(others).clamp(min=SMALL) / HIGHEST
