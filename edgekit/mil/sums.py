"""Operators that add up over axes: products of matrices, means, norms, softmax."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import ConversionError
from edgekit.mil.arguments import Operator, ints


def _batch_norm(a: dict[str, Any]) -> Tensor:
    return F.batch_norm(a["x"], a["mean"], a["variance"], a.get("gamma"), a.get("beta"), eps=float(a["epsilon"]))


def _layer_norm(a: dict[str, Any]) -> Tensor:
    axes = sorted(axis % a["x"].dim() for axis in ints(a["axes"]))
    if axes != list(range(axes[0], a["x"].dim())):
        raise ConversionError(f"the reference knows the Core ML operator 'layer_norm' over last axes, not {axes}")
    shape = a["x"].shape[axes[0] :]
    return F.layer_norm(a["x"], shape, a.get("gamma"), a.get("beta"), eps=float(a["epsilon"]))


def _matmul(a: dict[str, Any]) -> Tensor:
    x = a["x"].mT if a["transpose_x"] else a["x"]
    product: Tensor = x @ (a["y"].mT if a["transpose_y"] else a["y"])
    return product


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduce(a: dict[str, Any]) -> Tensor:
        axes = ints(a["axes"]) if "axes" in a else list(range(a["x"].dim()))
        return function(a["x"], dim=axes, keepdim=bool(a["keep_dims"]))

    return reduce


def _norm(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.square().sum(dim=dim, keepdim=keepdim).sqrt()


SUMS: dict[str, Operator] = {
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "linear": lambda a: F.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "reduce_l2_norm": _reduce(_norm),
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_min": _reduce(torch.amin),
    "reduce_sum": _reduce(torch.sum),
    "softmax": lambda a: a["x"].softmax(int(a["axis"])),
}
