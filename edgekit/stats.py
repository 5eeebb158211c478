"""The statistics behind every claim: intervals and paired tests, by SciPy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927), both ends in 0 to 1."""
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} successes of {count} trials")
    from scipy.stats import binomtest

    interval = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    # Rounding must not move the ends of 0 of n and n of n.
    return (float(interval.low) if successes else 0.0), (float(interval.high) if successes < count else 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """Two classifiers on the same images: how many each alone got right, and the exact McNemar p-value."""

    count: int
    only_first: int
    only_second: int
    flips: int  # images on which the two predictions differ at all
    p_value: float

    @property
    def difference(self) -> float:
        """Second minus first, as a share of the images."""
        return (self.only_second - self.only_first) / self.count

    @property
    def flip_rate(self) -> float:
        return self.flips / self.count


def paired(truth: Sequence[int], first: Sequence[int], second: Sequence[int]) -> Paired:
    """The paired comparison of two top-1 predictions (N,) by the exact McNemar test (McNemar 1947)."""
    t, a, b = np.asarray(truth), np.asarray(first), np.asarray(second)
    if not len(t) == len(a) == len(b) or not len(t):
        raise ValueError(f"{len(t)} true classes, {len(a)} first and {len(b)} second predictions")
    only_first = int(((a == t) & (b != t)).sum())
    only_second = int(((b == t) & (a != t)).sum())
    return Paired(
        count=len(t),
        only_first=only_first,
        only_second=only_second,
        flips=int((a != b).sum()),
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value. Under no difference each image that only one got right is a fair coin."""
    from scipy.stats import binomtest

    count = only_first + only_second
    return float(binomtest(only_first, count, 0.5).pvalue) if count else 1.0


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The ends of the mean's interval and the p-value of a mean of 0 (Student's t), from two values or more."""
    from scipy.stats import t

    x = np.asarray(values, np.float64)
    mean, error, freedom = float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))), len(x) - 1
    if error == 0:  # a clock coarser than the differences: every value is the same
        return mean, mean, 1.0 if mean == 0 else 0.0
    reach = float(t.ppf((1 + confidence) / 2, freedom)) * error
    return mean - reach, mean + reach, float(2 * t.sf(abs(mean) / error, freedom))
