"""Operators that look through windows: convolutions and pools, with MIL's kinds of padding."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.mil.arguments import Operator, ints


def _spatial_padding(a: dict[str, Any], rank: int) -> list[int]:
    """MIL pads (top, bottom, left, right); torch wants the last axis first. ``same`` puts the odd one last."""
    kind = a["pad_type"]
    if kind == "valid":
        return [0] * (2 * rank)
    if kind == "custom":
        pairs = np.array(ints(a["pad"])).reshape(rank, 2)
    else:
        sizes = a["weight"].shape[2:] if "weight" in a else ints(a["kernel_sizes"])
        strides, dilations = ints(a["strides"]), ints(a.get("dilations", torch.ones(rank)))
        pairs = np.zeros((rank, 2), int)
        for axis in range(rank):
            length = a["x"].shape[2 + axis]
            reach = (sizes[axis] - 1) * dilations[axis] + 1
            total = max(0, (-(-length // strides[axis]) - 1) * strides[axis] + reach - length)
            pairs[axis] = (
                (total - total // 2, total // 2) if kind == "same_lower" else (total // 2, total - total // 2)
            )
    return [int(side) for pair in pairs[::-1] for side in pair]


def _conv(a: dict[str, Any]) -> Tensor:
    rank = a["x"].dim() - 2
    padding = _spatial_padding(a, rank)
    even = padding[::2] == padding[1::2]  # torch pads alike on both sides by itself, without a copy
    convolution = {1: F.conv1d, 2: F.conv2d}[rank]
    return convolution(
        a["x"] if even else F.pad(a["x"], padding),
        a["weight"],
        a.get("bias"),
        stride=ints(a["strides"]),
        padding=padding[::2][::-1] if even else 0,
        dilation=ints(a["dilations"]),
        groups=int(a["groups"]),
    )


def _last_window(a: dict[str, Any], padding: list[int]) -> list[int]:
    """What ceil_mode adds after the padding, so that the last window is whole. It must not start in there."""
    extra = [0] * len(padding)
    if not a["ceil_mode"]:
        return extra
    for i, (size, stride) in enumerate(zip(ints(a["kernel_sizes"])[::-1], ints(a["strides"])[::-1], strict=True)):
        before, after, length = padding[2 * i], padding[2 * i + 1], a["x"].shape[-1 - i]
        span = before + length + after - size
        steps = -(-span // stride)
        if steps * stride >= before + length:
            steps -= 1
        extra[2 * i + 1] = max(0, steps * stride - span)
    return extra


def _max_pool(a: dict[str, Any]) -> Tensor:
    padding = _spatial_padding(a, 2)
    x = F.pad(F.pad(a["x"], padding, value=-torch.inf), _last_window(a, padding), value=-torch.inf)
    return F.max_pool2d(x, ints(a["kernel_sizes"]), ints(a["strides"]))


def _avg_pool(a: dict[str, Any]) -> Tensor:
    """Zeros of the padding count unless they are excluded; those that only complete the last window never do."""
    padding = _spatial_padding(a, 2)
    extra, counts = _last_window(a, padding), not a["exclude_padding_from_average"]

    def summed(x: Tensor, value: float) -> Tensor:
        padded = F.pad(F.pad(x, padding, value=value), extra)
        return F.avg_pool2d(padded, ints(a["kernel_sizes"]), ints(a["strides"]), divisor_override=1)

    return summed(a["x"], 0.0) / summed(torch.ones_like(a["x"]), float(counts))


WINDOWS: dict[str, Operator] = {"avg_pool": _avg_pool, "conv": _conv, "max_pool": _max_pool}
