"""TFLite's float operators in torch, differentiable, with the axes as TFLite has them: images are (N, H, W, C).

Each takes its inputs and the operator's options as the flatbuffer has them, and gives the output before a fused
activation. N may be any number where the file says 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit import flatbuffer
from edgekit.errors import ConversionError

Kernel = Callable[[Sequence[Any], Any], Tensor]
# What these give are values that they took, so that their integers have one scale: that of what they take, and for
# the latter that of what they give.
PASSING = (
    *("PAD", "MIRROR_PAD", "RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "SLICE"),
    *(BY_OUTPUT := ("CONCATENATION", "PADV2", "MAXIMUM", "MINIMUM")),
)
ONE_SCALE = (*PASSING, "AVERAGE_POOL_2D")  # it rounds again


def kernel(kind: str) -> Kernel:
    """Raises ConversionError for an operator that has none here."""
    if kind not in _KERNELS:
        raise ConversionError(
            f"quantization-aware training does not know the operator {kind}; it knows "
            f"{', '.join(sorted(_KERNELS))}"
        )
    return _KERNELS[kind]


def fused(options: Any) -> Callable[[Tensor], Tensor] | None:
    """The activation that the operator applies to its output; None where there is none."""
    number = getattr(options, "fusedActivationFunction", 0)
    if not number:
        return None
    names = {value: name for name, value in vars(flatbuffer.schema().ActivationFunctionType).items()}
    return _ACTIVATIONS[names[number]]


def _conv(inputs: Sequence[Any], options: Any) -> Tensor:
    x, weight, *bias = inputs
    return _windows(x, weight.permute(0, 3, 1, 2), bias, options, x.shape[3] // weight.shape[3])


def _depthwise(inputs: Sequence[Any], options: Any) -> Tensor:
    x, weight, *bias = inputs
    return _windows(x, weight.permute(3, 0, 1, 2), bias, options, x.shape[3])


def _windows(x_NHWC: Tensor, weight_OIHW: Tensor, bias: Sequence[Tensor], options: Any, groups: int) -> Tensor:
    x, padding = x_NHWC.permute(0, 3, 1, 2), (0, 0)
    strides = (options.strideH, options.strideW)
    dilation = (options.dilationHFactor, options.dilationWFactor)
    if _same(options):
        left, right, top, bottom = pads = _same_pads(x, weight_OIHW.shape[2:], strides, dilation)
        if (left, top) == (right, bottom):
            padding = (top, left)  # a padded copy costs time
        else:
            x = F.pad(x, pads)
    y = F.conv2d(x, weight_OIHW, bias[0] if bias else None, strides, padding, dilation, groups)
    return y.permute(0, 2, 3, 1)


def _dense(inputs: Sequence[Any], options: Any) -> Tensor:
    x, weight, *bias = inputs
    if not options.keepNumDims:
        x = x.reshape(-1, weight.shape[1])
    return F.linear(x, weight, bias[0] if bias else None)


def _same(options: Any) -> bool:
    return bool(options.padding == flatbuffer.schema().Padding.SAME)


def _same_pads(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of TFLite's SAME: the odd row and column last."""
    found = []
    for side, k, s, d in zip(x.shape[2:], kernel, strides, dilation, strict=True):
        total = max(0, (-(-side // s) - 1) * s + (k - 1) * d + 1 - side)
        found.append((total // 2, total - total // 2))
    return (*found[1], *found[0])


def _average_pool(inputs: Sequence[Any], options: Any) -> Tensor:
    x, window = inputs[0].permute(0, 3, 1, 2), (options.filterHeight, options.filterWidth)
    strides = (options.strideH, options.strideW)
    if not _same(options):
        return F.avg_pool2d(x, window, strides).permute(0, 2, 3, 1)
    pads = _same_pads(x, window, strides)
    ones = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), pads), window, strides)  # padding is not counted
    return (F.avg_pool2d(F.pad(x, pads), window, strides) / ones).permute(0, 2, 3, 1)


def _max_pool(inputs: Sequence[Any], options: Any) -> Tensor:
    x, window = inputs[0].permute(0, 3, 1, 2), (options.filterHeight, options.filterWidth)
    strides = (options.strideH, options.strideW)
    if _same(options):
        x = F.pad(x, _same_pads(x, window, strides), value=float("-inf"))
    return F.max_pool2d(x, window, strides).permute(0, 2, 3, 1)


def _mean(inputs: Sequence[Any], options: Any) -> Tensor:
    x: Tensor = inputs[0]
    return x.mean([int(axis) for axis in inputs[1].reshape(-1)], keepdim=bool(options.keepDims))


def _pad(inputs: Sequence[Any], options: Any) -> Tensor:
    value = float(inputs[2]) if len(inputs) > 2 else 0.0
    return F.pad(inputs[0], _pads(inputs[1]), value=value)


def _mirror_pad(inputs: Sequence[Any], options: Any) -> Tensor:
    x, pads = inputs[0].permute(0, 3, 1, 2), _pads(inputs[1])
    if options.mode != flatbuffer.schema().MirrorPadMode.REFLECT:
        raise ConversionError("quantization-aware training does not know MIRROR_PAD of mode SYMMETRIC")
    return F.pad(x, pads[2:6], mode="reflect").permute(0, 2, 3, 1)


def _pads(table: Tensor) -> list[int]:
    """As torch wants them: the last axis first."""
    return [int(value) for row in reversed(table.tolist()) for value in row]


def _reshape(inputs: Sequence[Any], options: Any) -> Tensor:
    x: Tensor = inputs[0]
    shape = inputs[1].tolist() if len(inputs) > 1 else list(options.newShape)
    return x.reshape([len(x) if place == 0 and side == 1 else int(side) for place, side in enumerate(shape)])


def _slice(inputs: Sequence[Any], options: Any) -> Tensor:
    x: Tensor = inputs[0]
    begin, size = inputs[1].tolist(), inputs[2].tolist()
    for axis, (start, length) in enumerate(zip(begin, size, strict=True)):
        if axis and (start or length not in (-1, x.shape[axis])):
            x = x.narrow(axis, start, length if length != -1 else x.shape[axis] - start)
    return x


def _concatenation(inputs: Sequence[Any], options: Any) -> Tensor:
    return torch.cat(list(inputs), options.axis)


def _one(function: Callable[[Tensor], Tensor]) -> Kernel:
    return lambda inputs, options: function(inputs[0])


def _two(function: Callable[[Any, Any], Tensor]) -> Kernel:
    return lambda inputs, options: function(inputs[0], inputs[1])


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "RELU": F.relu,
    "RELU6": F.relu6,
    "RELU_N1_TO_1": F.hardtanh,
    "TANH": torch.tanh,
}
_KERNELS: dict[str, Kernel] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "AVERAGE_POOL_2D": _average_pool,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _mirror_pad,
    "RESHAPE": _reshape,
    "SLICE": _slice,
    "CONCATENATION": _concatenation,
    "TRANSPOSE": lambda inputs, options: inputs[0].permute(inputs[1].tolist()),
    "ADD": _two(torch.add),
    "SUB": _two(torch.sub),
    "MUL": _two(torch.mul),
    "DIV": _two(torch.div),
    "MAXIMUM": _two(torch.maximum),
    "MINIMUM": _two(torch.minimum),
    "HARD_SWISH": _one(F.hardswish),
    "LOGISTIC": _one(torch.sigmoid),
    "ELU": _one(F.elu),
    "GELU": lambda inputs, options: F.gelu(inputs[0], approximate="tanh" if options.approximate else "none"),
    "LEAKY_RELU": lambda inputs, options: F.leaky_relu(inputs[0], options.alpha),
    "SOFTMAX": lambda inputs, options: (inputs[0] * options.beta).softmax(-1),
    "LOG_SOFTMAX": _one(lambda x: x.log_softmax(-1)),
    **{name: _one(function) for name, function in _ACTIVATIONS.items()},
}
