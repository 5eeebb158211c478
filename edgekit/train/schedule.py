"""The learning rate by step."""

import math


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """The rate for *step* (from 0) of *steps*: linear up over *warmup* steps, then half a cosine down to zero.

    Source: https://arxiv.org/abs/1608.03983 (without restarts), https://arxiv.org/abs/1706.02677 (warm-up).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
