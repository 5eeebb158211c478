"""Batch norm in training: over all processes, with statistics that keep up."""

from collections.abc import Callable

from torch import nn


def synchronised(model: nn.Module, say: Callable[[str], None]) -> nn.Module:
    """The model with batch norm over all processes. torch's own way would cut what else a subclass of it does."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if any(type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) for norm in norms):
        say("batch norm counts in each process alone: this model has a form of its own")
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return, no-untyped-call]


def look_back(model: nn.Module, steps: int) -> None:
    """Let batch norm's statistics look back over at most a hundredth of the training, but over 10 steps.

    MobileNetV3's and EfficientNet's momentum of 0.01 is made for a hundred thousand steps: in one of 500 it leaves
    statistics of weights long gone. A momentum that is larger already stays.
    """
    least = min(0.1, 100 / max(1, steps))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = max(module.momentum, least)
