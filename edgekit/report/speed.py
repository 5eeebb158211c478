"""The latency of one result against another's, tested over the interleaved blocks of one visit.

Blocks of one visit are taken in turn (A B C A B C ...), so block *i* of two files ran in the same minute:
what heats up or slows down the whole device cancels in the ratio of the two block medians. The ratios of
the blocks are few (5) and close to log-normal (a median of some hundred samples is close to normal), so
their logs get a t-interval: a percentile bootstrap of 5 values covers far less than the 95 % that it claims.
What two processes of the *same* file would differ by (memory layout) is not in it: each file runs in one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.measure import block_medians_ms, latency
from edgekit.result import Result
from edgekit.stats import t_interval

MIN_BLOCKS = 3  # of two blocks the t-interval (1 degree of freedom) says nothing
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How a file's latency stands to the reference's: *ratio* is its time over the reference's, below 1 faster.

    *low* to *high* is the 95 % interval of the ratio and *p_value* that of a ratio of 1; they are None when
    nothing could be tested, and *untested* says why. *p_corrected*: p where this is one of several tests.
    """

    ratio: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_corrected: float | None = None
    blocks: int = 0
    untested: str = ""

    @property
    def real(self) -> bool:
        p = self.p_value if self.p_corrected is None else self.p_corrected
        return p is not None and p < LEVEL


def speed(reference: Result, other: Result) -> Speed:
    """The speed of *other* against *reference*; both were timed."""
    plain = latency(other.measurement).p50_ms / latency(reference.measurement).p50_ms
    if not other.visit or other.visit != reference.visit:
        return Speed(ratio=plain, untested="measured in another visit")
    first, second = block_medians_ms(reference.measurement), block_medians_ms(other.measurement)
    common = sorted(first.keys() & second.keys())
    if len(common) < MIN_BLOCKS:
        return Speed(ratio=plain, blocks=len(common), untested=f"{len(common)} common blocks, {MIN_BLOCKS} needed")
    return ratio_of_pairs([first[b] for b in common], [second[b] for b in common])


def ratio_of_pairs(first: Sequence[float], second: Sequence[float]) -> Speed:
    """The geometric mean of *second* / *first*, pair by pair, its 95 % t-interval on the logs and p-value."""
    logs = np.log(np.asarray(second, np.float64) / np.asarray(first, np.float64))
    low, high, p_value = t_interval(logs.tolist())
    low, ratio, high = (float(np.exp(end)) for end in (low, logs.mean(), high))
    return Speed(ratio=ratio, low=low, high=high, p_value=p_value, blocks=len(logs))
