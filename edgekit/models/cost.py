"""What a model costs: its parameters and its multiply-accumulates."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """*macs*: multiply-accumulates of the convolutions and linear layers for one image, as papers count."""

    parameters: int
    macs: int


def cost(model: nn.Module, height: int, width: int) -> Cost:
    """The cost of *model* for one image (1, 3, height, width). The model is left as it was."""
    macs = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            # weight (out, in / groups, kh, kw): every output value takes one product per weight of its channel
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    training, weight = model.training, next(model.parameters())
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Cost(parameters=sum(p.numel() for p in model.parameters()), macs=macs)
