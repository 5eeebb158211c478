"""The latency of one result against another's, tested over the interleaved blocks of one visit.

Blocks of one visit are taken in turn (A B C A B C ...), so block *i* of two files ran in the same minute:
what heats up or slows down the whole device cancels in the ratio of the two block medians. The ratios of
the blocks are few (5) and close to log-normal (a median of some hundred samples is close to normal), so
their logs get a t-interval: a percentile bootstrap of 5 values covers far less than the 95 % that it claims.
What two processes of the *same* file would differ by (memory layout) is not in it: each file runs in one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, cos, pi, sin, sqrt

import numpy as np

from edgekit.result import Result

MIN_BLOCKS = 3  # of two blocks the t-interval (1 degree of freedom) says nothing
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How a file's latency stands to the reference's: *ratio* is its time over the reference's, below 1 faster.

    *low* to *high* is the 95 % interval of the ratio and *p_value* that of a ratio of 1; they are None when
    nothing could be tested, and *untested* says why.
    """

    ratio: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    blocks: int = 0
    untested: str = ""

    @property
    def real(self) -> bool:
        return self.p_value is not None and self.p_value < LEVEL


def block_medians_ms(result: Result) -> dict[int, float]:
    samples = np.asarray(result.measurement.samples_ns, np.float64) / 1e6
    blocks = np.asarray(result.measurement.blocks)
    return {int(block): float(np.median(samples[blocks == block])) for block in np.unique(blocks)}


def speed(reference: Result, other: Result) -> Speed:
    """The speed of *other* against *reference*; both have samples."""
    plain = float(np.median(other.measurement.samples_ns) / np.median(reference.measurement.samples_ns))
    if not other.visit or other.visit != reference.visit:
        return Speed(ratio=plain, untested="measured in another visit")
    first, second = block_medians_ms(reference), block_medians_ms(other)
    common = sorted(first.keys() & second.keys())
    if len(common) < MIN_BLOCKS:
        return Speed(ratio=plain, blocks=len(common), untested=f"{len(common)} common blocks, {MIN_BLOCKS} needed")
    return ratio_of_pairs([first[b] for b in common], [second[b] for b in common])


def ratio_of_pairs(first: Sequence[float], second: Sequence[float]) -> Speed:
    """The geometric mean of *second* / *first*, pair by pair, its 95 % t-interval on the logs and p-value."""
    logs = np.log(np.asarray(second, np.float64) / np.asarray(first, np.float64))
    count, mean = len(logs), float(logs.mean())
    error = float(logs.std(ddof=1) / np.sqrt(count))
    if error > 0:
        p_value = outside_t(abs(mean) / error, count - 1)
        reach = critical_t(count - 1) * error
    else:  # a clock coarser than the differences: every block gave the same
        p_value, reach = (1.0 if mean == 0 else 0.0), 0.0
    low, ratio, high = (float(np.exp(mean + side * reach)) for side in (-1, 0, 1))
    return Speed(ratio=ratio, low=low, high=high, p_value=p_value, blocks=count)


def outside_t(t: float, freedom: int) -> float:
    """P(|T| > t) of Student's t for a whole number of degrees of freedom.

    The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4: exact, and a board needs no SciPy for them.
    """
    angle = atan(t / sqrt(freedom))
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 if odd else 1, freedom, 2):
        total += term
        term *= k / (k + 1) * cos(angle) ** 2
    inside = 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
    return max(0.0, 1 - inside)


def critical_t(freedom: int) -> float:
    """The t that |T| exceeds with a probability of LEVEL, by bisection: 2.776 for 4 degrees of freedom."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if outside_t(middle, freedom) > LEVEL else (low, middle)
    return high
