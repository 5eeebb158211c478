"""The statistics behind every claim: intervals and paired tests, exact and without SciPy (boards lack it)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927), both ends in 0 to 1."""
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} successes of {count} trials")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = successes / count, z * z / count
    centre = share + weight / 2
    half = z * sqrt(share * (1 - share) / count + weight / (4 * count))
    # Rounding must not move the ends of 0 of n and n of n.
    low = 0.0 if successes == 0 else (centre - half) / (1 + weight)
    high = 1.0 if successes == count else (centre + half) / (1 + weight)
    return low, high


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
    count = only_first + only_second
    tail = ways = 1  # ways to draw i of count, summed up to the smaller of the two
    for i in range(min(only_first, only_second)):
        ways = ways * (count - i) // (i + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**count))
