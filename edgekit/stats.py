"""The statistics behind every claim: intervals, paired tests, percentiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927), both ends in 0 to 1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


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
    """The paired comparison of two top-1 predictions (N,) by the exact McNemar test (McNemar 1947).

    Under no difference each image that only one got right is a fair coin: a binomial test.
    """
    from scipy.stats import binomtest

    t, a, b = np.asarray(truth), np.asarray(first), np.asarray(second)
    only_first = int(((a == t) & (b != t)).sum())
    only_second = int(((b == t) & (a != t)).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return Paired(
        count=len(t),
        only_first=only_first,
        only_second=only_second,
        flips=int((a != b).sum()),
        p_value=p_value,
    )
