"""An exponential moving average of a model's weights."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn


class Average:
    """``module`` is the averaged model, in evaluation mode, batch norm's statistics averaged like weights.

    The decay starts low and grows to *decay*, min(decay, (1 + t) / (10 + t)) after t updates, so that the
    random start is forgotten. Source: TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        floats = [(mine, new.detach()) for mine, new in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floats], [new for _, new in floats], 1 - decay)
        for mine, new in pairs:
            if not mine.is_floating_point():  # a counter
                mine.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        return {"module": dict(self.module.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
