"""A model with what trains it: one step, one evaluation, and its state.

Shapes: N images, H height, W width; NCHW.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import TrainingError, UsageError
from edgekit.group import ALONE, Group
from edgekit.models import layers
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Preprocess
from edgekit.train import norms
from edgekit.train.accelerator import Accelerator
from edgekit.train.average import Average
from edgekit.train.optimizer import optimizer
from edgekit.train.start import Teacher
from edgekit.train.zeros import Zeros
from edgekit.trainspec import TrainSpec


def silent(_: str) -> None:
    """Tells nobody."""


class Learner:
    """Trains *model* in place. ``best_model`` is what is validated and saved: the average where there is one.

    *group*: the processes that train together, each on its part of every batch. *class_weights* (K). *steps*: how
    many the whole training has.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        spec: TrainSpec,
        where: Accelerator,
        *,
        group: Group = ALONE,
        teacher: Teacher | None = None,
        class_weights: Tensor | None = None,
        steps: int = 10_000,
        say: Callable[[str], None] = silent,
    ) -> None:
        self.spec, self.where, self.group, self.teacher, self.say = spec, where, group, teacher, say
        if group.size > 1 and where.device.type == "cuda":  # torch has it for GPUs only
            model = norms.synchronised(model, say)
        # Channels-last is what GPUs want, and gave 1.6 times the speed on the CPU as well.
        self.model = model.to(where.device).to(memory_format=torch.channels_last)
        norms.look_back(self.model, steps)
        self.normalize = Normalize(preprocess).to(where.device)
        self.class_weights = None if class_weights is None else class_weights.to(where.device)
        self.optimizer = optimizer(self.model, spec)
        self.scaler = torch.amp.GradScaler(where.device.type, enabled=where.autocast == torch.float16)
        self.average = Average(self.model, spec.ema) if spec.ema else None
        self.zeros = Zeros(self.model, spec.sparsify, steps)
        self.parts = 1  # in how many a batch is cut because it does not fit into memory
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._forward: nn.Module | None = None
        self.frozen = False

    @property
    def best_model(self) -> nn.Module:
        return self.average.module if self.average else self.model

    def begin_epoch(self, *, frozen: bool) -> None:
        """Make ready to train: all of the model, or its last layer alone."""
        if self._forward is None or frozen != self.frozen:
            last = self.model.get_submodule(layers.last_layer(self.model))
            learning = {id(parameter) for parameter in (last.parameters() if frozen else self._trained)}
            for parameter in self._trained:
                parameter.requires_grad_(id(parameter) in learning)
            self.frozen, self._forward = frozen, self._wrapped()
        self.model.train()
        if frozen:  # what does not learn keeps its statistics, too
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _wrapped(self) -> nn.Module:
        """The model as it is called in training."""
        forward = self.model
        if self.group.size > 1:
            devices = [self.where.device.index or 0] if self.where.device.type == "cuda" else None
            forward = nn.parallel.DistributedDataParallel(forward, device_ids=devices)
        return torch.compile(forward) if self.spec.compile else forward  # type: ignore[return-value]

    def step(
        self, pixels_NCHW: Tensor, targets: Tensor, learning_rate: float, total: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Train on one batch, of which *total* images are in all processes together.

        *targets*: labels (N) or shares of each class (N, K). Returns the sum of the images' losses and the
        number of right answers, still on the device. Raises TrainingError when memory does not suffice.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        # Gradients are averaged over the processes: each brings its share of the mean over the whole batch.
        weight = self.group.size / (total or len(pixels_NCHW))
        try:
            return self._step(pixels_NCHW, targets, weight)
        except torch.OutOfMemoryError as error:
            if self.parts > 1 or len(targets) < 4 or self.group.size > 1:
                raise self._too_large(len(targets)) from error
        self.parts = 2  # outside of the except block, whose traceback holds on to the tensors
        self.optimizer.zero_grad()
        if self.where.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say(
            f"a batch of {len(targets)} images does not fit into the memory of {self.where.name}: from here on it "
            f"is trained in 2 parts of {-(-len(targets) // 2)} whose gradients are added; the effective batch "
            f"stays {len(targets)}"
        )
        return self.step(pixels_NCHW, targets, learning_rate, total)

    def _step(self, pixels_NCHW: Tensor, targets: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        assert self._forward is not None
        self.optimizer.zero_grad()
        loss_sum, right = torch.zeros((), device=self.where.device), torch.zeros((), device=self.where.device)
        parts = self.parts if len(targets) >= 2 * self.parts else 1
        for x, target in zip(pixels_NCHW.chunk(parts), targets.chunk(parts), strict=True):
            logits = self._logits(self._forward, x)
            loss = self._losses(logits, target, x).sum()
            self.scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            labels = target if target.ndim == 1 else target.argmax(1)
            right += (logits.detach().argmax(1) == labels).sum()
        if self.spec.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._trained, self.spec.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.zeros.after_step_(self.model)
        if self.average:
            self.average.update(self.model)
            self.zeros.keep_(self.average.module)
        return loss_sum, right

    def _losses(self, logits: Tensor, targets: Tensor, pixels_NCHW: Tensor) -> Tensor:
        """The loss of each image (N)."""
        own = nn.functional.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=self.spec.label_smoothing,
            reduction="none",
        )
        if self.teacher is None or self.spec.distill is None:
            return own
        # Times the temperature squared: the gradients of soft targets shrink by it.
        t, share = self.spec.distill.temperature, self.spec.distill.weight
        with self._autocast():
            wanted = self.teacher(pixels_NCHW)
        soft = nn.functional.kl_div(
            (logits / t).log_softmax(1), (wanted.float() / t).log_softmax(1), reduction="none", log_target=True
        )
        return (1 - share) * own + share * t * t * soft.sum(1)

    def _too_large(self, count: int) -> TrainingError:
        at_once, fits = -(-count // self.parts), count * self.group.size // (2 * self.parts)
        if fits < 2 * self.group.size:
            cure = "take a smaller model or smaller images (data.preprocess)"
        else:
            cure = f"set train.batch_size to {fits} or less, and train.learning_rate lower in proportion"
        what = "1 image" if at_once == 1 else f"{at_once} images"
        return TrainingError(f"{self.where.name} has too little memory for {what} at a time: {cure}")

    @torch.inference_mode()
    def predictions(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The model's answers and the labels, (N) each, on the device."""
        model = self.best_model.eval()
        pairs = [(self._answers(model, pixels_NCHW), labels) for pixels_NCHW, labels in batches]
        if not pairs:  # more processes than batches
            return (torch.zeros(0, dtype=torch.long, device=self.where.device),) * 2
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])

    def _answers(self, model: nn.Module, pixels_NCHW: Tensor) -> Tensor:
        """(N), in as many parts as memory needs."""
        try:
            return self._logits(model, pixels_NCHW).argmax(1)
        except torch.OutOfMemoryError as error:
            if len(pixels_NCHW) < 2:
                raise self._too_large(1) from error
        if self.where.device.type == "cuda":
            torch.cuda.empty_cache()
        return torch.cat([self._answers(model, part) for part in pixels_NCHW.chunk(2)])

    def top1(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """The share of images, of all processes, that the model gets right."""
        found, labels = self.predictions(batches)
        counts = self.group.total(torch.stack([(found == labels).sum(), torch.tensor(len(labels)).to(found)]))
        return float(counts[0]) / float(counts[1])

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
            "parts": self.parts,
            "zeros": self.zeros.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the precision needs none
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.parts = state["parts"]
        if "zeros" in state:  # a training of before there were any
            self.zeros.load_state_dict(state["zeros"], self.where.device)

    def _logits(self, model: nn.Module, pixels_NCHW: Tensor) -> Tensor:
        x = self.normalize(pixels_NCHW).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            logits = model(x)
        if not isinstance(logits, Tensor):
            raise UsageError(f"the model returns {type(logits).__name__}; edgekit trains one tensor of logits")
        return logits.float()

    def _autocast(self) -> torch.autocast:
        half = self.where.autocast
        return torch.autocast(self.where.device.type, dtype=half, enabled=half is not None)


def probe(model: nn.Module, height: int, width: int, classes: int, name: str) -> None:
    """Raise UsageError at once when *model* does not turn such images into *classes* logits."""
    images = torch.zeros(2, 3, height, width)
    try:
        with torch.inference_mode():
            logits = model.eval()(images)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise UsageError(f"{name} does not take images of {width}x{height}: {str(error).strip()}") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, classes):
        raise UsageError(f"{name} gives {found} for 2 images; with {classes} classes it must give (2, {classes})")
