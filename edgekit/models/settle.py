"""Batch norm statistics for a network of random weights: its numbers become as large as a trained one's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def settle_(model: nn.Module, images_NCHW: Tensor) -> None:
    """Set the variance of every batch norm to the mean square that these images give there; no more is changed.

    As it is made, a deep network's signal shrinks from layer to layer, down to logits of 1e-9, which fp16 holds
    as 0. All channels of a layer get one number: where faint ones were made as loud as the others, rounding errors
    would grow from layer to layer, as they do not in a trained network.
    """

    def measure(norm: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        (x,) = given
        if norm.running_var is not None:
            norm.running_var.fill_(x.square().mean())

    norms = [one for one in model.modules() if isinstance(one, _BatchNorm)]
    hooks = [one.register_forward_pre_hook(measure) for one in norms]
    try:
        if norms:
            model(images_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
