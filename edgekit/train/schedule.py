"""The learning rate by step, and the size of the images by epoch."""

import math
from collections.abc import Callable

from edgekit.trainspec import ProgressiveSpec, TrainSpec


def learning_rate(spec: TrainSpec, steps_an_epoch: int) -> Callable[[int], float]:
    """The rate of each step (from 0 on): linear up while warming up, then the schedule.

    Sources: https://arxiv.org/abs/1608.03983 (cosine, without restarts), https://arxiv.org/abs/1706.02677
    (warm-up). A step schedule counts its epochs from the start, as https://arxiv.org/abs/1905.11946 does.
    """
    steps = spec.epochs * steps_an_epoch
    warmup = min(round(spec.warmup_epochs * steps_an_epoch), steps)

    def rate(step: int) -> float:
        if step < warmup:
            return spec.learning_rate * (step + 1) / warmup
        if spec.schedule == "step":
            return spec.learning_rate * spec.step_factor ** math.floor(step / steps_an_epoch / spec.step_epochs)
        return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return rate


def side(full: int, progressive: ProgressiveSpec | None, epoch: int, epochs: int) -> int:
    """The images' side in *epoch* (from 1 on): a multiple of 8 (of 4 below 64 pixels) up to *full*."""
    if progressive is None:
        return full
    grown = min(1.0, (epoch - 1) / max(1.0, progressive.until * epochs - 1))
    step = 8 if full >= 64 else 4
    wanted = full * (progressive.start + (1 - progressive.start) * grown)
    return full if grown == 1 else min(full, max(step, round(wanted / step) * step))
