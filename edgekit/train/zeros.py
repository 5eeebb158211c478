"""Weights of 1x1 convolutions that become zero in training, and that stay zero in all training after it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.trainspec import SparsifySpec

HELD = 0.2  # of a layer's weights that are exactly zero: it was made sparse, and stays so


def pointwise(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The 1x1 convolutions by name, those of squeeze-excites too."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    }


def share(model: nn.Module) -> float:
    """The share of the weights of 1x1 convolutions that are zero."""
    weights = [layer.weight for layer in pointwise(model).values()]
    return sum(int((one == 0).sum()) for one in weights) / max(1, sum(one.numel() for one in weights))


def left_out(model: nn.Module, spec: SparsifySpec) -> dict[str, str]:
    """The 1x1 convolutions that keep their weights, with reasons. Raises UsageError where none is left."""
    layers = pointwise(model)
    reasons = dict.fromkeys((n for n in layers if any(f"{n}.".startswith(f"{s}.") for s in spec.spare)), "spared")
    if spec.pattern == "2:4":
        narrow = [name for name, layer in layers.items() if layer.in_channels % 4]
        reasons |= dict.fromkeys(narrow, "its input channels are no multiple of 4")
    if not layers.keys() - reasons.keys():
        raise UsageError("sparsity is of 1x1 convolutions, and this network has none that may become sparse")
    return reasons


class Zeros:
    """The masks of a network. *spec* is None where it only stays as sparse as it is; *steps*: of the training.

    The share of zeros grows as in https://arxiv.org/abs/1710.01878, section 2: quickly at first, the smallest
    weights of each layer first; what is zero gets no updates.
    """

    def __init__(self, model: nn.Module, spec: SparsifySpec | None, steps: int) -> None:
        self.spec, self.done = spec, 0
        self.until = math.ceil(spec.ramp * steps) if spec else 0
        layers = pointwise(model)
        gone = left_out(model, spec) if spec else {}
        self.growing = [f"{name}.weight" for name in layers if spec and name not in gone]
        self.masks = {
            f"{name}.weight": mask
            for name, layer in layers.items()
            if (mask := layer.weight.detach() != 0).float().mean() <= 1 - HELD
        }

    @property
    def grown(self) -> bool:
        """Whether the network is as sparse as it is to be."""
        return self.spec is None or self.done >= self.until

    @torch.no_grad()
    def after_step_(self, model: nn.Module) -> None:
        """Make more weights zero where it is time, and keep what is zero."""
        self.done += 1
        if self.spec and self.done <= self.until and (self.done % self.spec.every == 0 or self.done == self.until):
            wanted = self.spec.share * (1 - (1 - self.done / self.until) ** 3)
            parameters = dict(model.named_parameters())
            for name in self.growing:
                choose = _two_of_four if self.spec.pattern == "2:4" else _smallest
                self.masks[name] = choose(parameters[name].detach(), wanted)
        self.keep_(model)

    @torch.no_grad()
    def keep_(self, model: nn.Module) -> None:
        """Make zero what is to be."""
        if self.masks:
            parameters = dict(model.named_parameters())
            for name, mask in self.masks.items():
                parameters[name].mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "masks": self.masks}

    def load_state_dict(self, state: dict[str, Any], where: torch.device) -> None:
        self.done = state["done"]
        self.masks = {name: mask.to(where) for name, mask in state["masks"].items()}


def _smallest(weight: Tensor, share: float) -> Tensor:
    """All but that share of the weights, rounded up."""
    count = math.ceil(share * weight.numel())
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[torch.argsort(weight.abs().flatten(), stable=True)[:count]] = False
    return mask.view_as(weight)


def _two_of_four(weight: Tensor, share: float) -> Tensor:
    """All but two of four neighbours along the input channels, in as many fours as the share needs."""
    fours = weight.abs().flatten(1).reshape(-1, 4)
    order = torch.argsort(fours, dim=1, stable=True)
    mask = torch.ones_like(fours, dtype=torch.bool).scatter_(1, order[:, :2], False)
    cost = fours.gather(1, order[:, :2]).sum(1)
    count = math.ceil(min(1.0, 2 * share) * len(fours))
    later = torch.argsort(cost, stable=True)[count:]
    mask[later] = True
    mask &= fours != 0
    return mask.reshape(weight.shape)
