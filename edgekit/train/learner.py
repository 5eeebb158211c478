"""A model with what trains it: one step, one evaluation, and its state.

Shapes: N images, H height, W width; NCHW.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Preprocess
from edgekit.recipe import TrainSpec
from edgekit.train.accelerator import Accelerator
from edgekit.train.average import Average


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: norms and biases, all that has one dimension, are not decayed.

    Source: https://arxiv.org/abs/1812.01187, section 3.1.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    groups = [group for group in decay_groups(model, spec.weight_decay) if group["params"]]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=spec.momentum > 0, fused=True
        )
    return torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)


class Learner:
    """Trains *model* in place. ``best_model`` is what is validated and saved: the average where there is one."""

    def __init__(self, model: nn.Module, preprocess: Preprocess, spec: TrainSpec, where: Accelerator) -> None:
        self.spec, self.where = spec, where
        # Channels-last is what GPUs want, and gave 1.6 times the speed on the CPU as well.
        self.model = model.to(where.device).to(memory_format=torch.channels_last)
        self.normalize = Normalize(preprocess).to(where.device)
        self.optimizer = optimizer(self.model, spec)
        self.scaler = torch.amp.GradScaler(where.device.type, enabled=where.autocast == torch.float16)
        self.average = Average(self.model, spec.ema) if spec.ema else None

    @property
    def best_model(self) -> nn.Module:
        return self.average.module if self.average else self.model

    def step(self, pixels_NCHW: Tensor, labels: Tensor, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Train on one batch. Returns the loss and the number of right answers, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        logits = self._logits(self.model, pixels_NCHW)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.spec.label_smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.model)
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    @torch.inference_mode()
    def top1(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """The share of images that the model gets right."""
        model = self.best_model.eval()
        right, count = torch.zeros((), dtype=torch.long, device=self.where.device), 0
        for pixels_NCHW, labels in batches:
            right += (self._logits(model, pixels_NCHW).argmax(1) == labels).sum()
            count += len(labels)
        return float(right) / count

    def finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """A copy, on the CPU, of what is saved as the model."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.best_model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])

    def _logits(self, model: nn.Module, pixels_NCHW: Tensor) -> Tensor:
        x = self.normalize(pixels_NCHW).contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            self.where.device.type, dtype=self.where.autocast, enabled=self.where.autocast is not None
        ):
            logits = model(x)
        if not isinstance(logits, Tensor):
            raise UsageError(f"the model returns {type(logits).__name__}; edgekit trains one tensor of logits")
        return logits.float()


def probe(model: nn.Module, preprocess: Preprocess, classes: int, name: str) -> None:
    """Raise UsageError at once when *model* does not turn such images into *classes* logits."""
    images = torch.zeros(2, 3, preprocess.height, preprocess.width)
    try:
        with torch.inference_mode():
            logits = model.eval()(images)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise UsageError(
            f"{name} does not take images of {preprocess.width}x{preprocess.height}: {str(error).strip()}"
        ) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, classes):
        raise UsageError(f"{name} gives {found} for 2 images; with {classes} classes it must give (2, {classes})")
