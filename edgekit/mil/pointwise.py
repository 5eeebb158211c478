"""Operators on each number by itself: arithmetic, activations, casts and the rounding of activations to 8 bits."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.mil.arguments import DTYPES, Operator


def _gelu(a: dict[str, Any]) -> Tensor:
    if a["mode"] == "SIGMOID_APPROXIMATION":
        return a["x"] * (1.702 * a["x"]).sigmoid()  # type: ignore[no-any-return]
    return F.gelu(a["x"], approximate="tanh" if a["mode"] == "TANH_APPROXIMATION" else "none")


def _prelu(a: dict[str, Any]) -> Tensor:
    """One slope a channel, the second axis."""
    x, slopes = a["x"], a["alpha"].reshape(-1, *[1] * (a["x"].dim() - 2))
    return torch.where(x >= 0, x, slopes * x)


def _along(a: dict[str, Any], name: str) -> Tensor:
    """A scale or zero point as broad as the input: one number, or one for each place along the axis."""
    value, rank = a[name], a["input"].dim()
    if value.dim() == 0:
        return value  # type: ignore[no-any-return]
    axis = int(a["axis"]) % rank
    return value.reshape([-1 if place == axis else 1 for place in range(rank)])  # type: ignore[no-any-return]


def _zero_point(a: dict[str, Any]) -> Tensor:
    return _along(a, "zero_point").float() if "zero_point" in a else torch.zeros(())


def _quantize(a: dict[str, Any]) -> Tensor:
    """clip(round(input / scale) + zero_point), halves to the even one."""
    dtype = DTYPES[a["output_dtype"]]
    ends = torch.iinfo(dtype)
    stored: Tensor = (a["input"] / _along(a, "scale")).round() + _zero_point(a)
    return stored.clamp(ends.min, ends.max).to(dtype)


def _dequantize(a: dict[str, Any]) -> Tensor:
    shifted: Tensor = a["input"].float() - _zero_point(a)
    return _along(a, "scale") * shifted


def _each(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda a: function(a["x"])


def _both(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda a: function(a["x"], a["y"])


POINTWISE: dict[str, Operator] = {
    "abs": _each(torch.abs),
    "add": _both(torch.add),
    "cast": lambda a: a["x"].to(DTYPES[a["dtype"]]),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "dequantize": _dequantize,
    "elu": lambda a: F.elu(a["x"], alpha=float(a["alpha"])),
    "erf": _each(torch.erf),
    "exp": _each(torch.exp),
    "gelu": _gelu,
    "identity": lambda a: a["x"].clone(),
    "inverse": lambda a: 1 / (a["x"] + float(a["epsilon"])),
    "leaky_relu": lambda a: F.leaky_relu(a["x"], float(a["alpha"])),
    "log": lambda a: (a["x"] + float(a["epsilon"])).log(),
    "maximum": _both(torch.maximum),
    "minimum": _both(torch.minimum),
    "mul": _both(torch.mul),
    "pow": _both(torch.pow),
    "prelu": _prelu,
    "quantize": _quantize,
    "real_div": _both(torch.div),
    "relu": _each(torch.relu),
    "relu6": lambda a: a["x"].clamp(0, 6),
    "rsqrt": lambda a: (a["x"] + float(a["epsilon"])).rsqrt(),
    "scaled_tanh": lambda a: float(a["alpha"]) * (float(a["beta"]) * a["x"]).tanh(),
    "sigmoid": _each(torch.sigmoid),
    "sigmoid_hard": lambda a: (a["x"] * float(a["alpha"]) + float(a["beta"])).clamp(0, 1),
    "silu": _each(F.silu),
    "softplus": lambda a: F.softplus(a["x"], threshold=math.inf),  # exact: torch's default is the line from 20 on
    "softsign": _each(F.softsign),
    "sqrt": _each(torch.sqrt),
    "square": _each(torch.square),
    "sub": _both(torch.sub),
    "tanh": _each(torch.tanh),
    "threshold": lambda a: a["x"].clamp(min=float(a["alpha"])),
    "thresholded_relu": lambda a: a["x"] * (a["x"] >= a["alpha"]),
}
