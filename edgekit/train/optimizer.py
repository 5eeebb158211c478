"""Which parameter learns how fast, and by which rule."""

from typing import Any

import torch
from torch import nn

from edgekit.models import layers
from edgekit.trainspec import TrainSpec


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, each with its share of the learning rate as ``scale``.

    Norms and biases, all that has one dimension, are not decayed (https://arxiv.org/abs/1812.01187, section
    3.1). Each layer has *layer_decay* times the rate of the one above it.
    """
    depths = layers.depths(model)
    top = max(depths.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = layer_decay ** (top - depths[name])
            groups.setdefault((scale, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "scale": scale}
        for (scale, decay), parameters in groups.items()
    ]


def optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    groups = parameter_groups(model, spec.weight_decay, spec.finetune.layer_decay if spec.finetune else 1.0)
    match spec.optimizer:
        case "sgd":
            nesterov = spec.momentum > 0
            sgd = torch.optim.SGD(
                groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=nesterov, fused=True
            )
            if spec.momentum:  # the fused form takes no group of which a part was frozen, and so has none, and
                for group in groups:  # leaves numbers of chance in it where fp16 overflows in the first step
                    for parameter in group["params"]:
                        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return sgd
        case (
            "rmsprop"
        ):  # decay and epsilon as https://arxiv.org/abs/1905.11946, section 5.2, has them in torch's form
            return torch.optim.RMSprop(
                groups, lr=spec.learning_rate, alpha=0.9, eps=0.001**0.5, momentum=spec.momentum, foreach=True
            )
        case "adamw":
            return torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)
