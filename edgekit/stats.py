"""The statistics behind every claim: intervals and paired tests, by SciPy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
    """Two classifiers on the same images: how many each alone got right, and the exact McNemar p-value.

    *p_corrected*: the same where this is one of several tests.
    """

    count: int
    only_first: int
    only_second: int
    flips: int  # images on which the two predictions differ at all
    p_value: float
    p_corrected: float | None = None

    @property
    def p(self) -> float:
        return self.p_value if self.p_corrected is None else self.p_corrected

    @property
    def difference(self) -> float:
        """Second minus first, as a share of the images."""
        return (self.only_second - self.only_first) / self.count

    @property
    def flip_rate(self) -> float:
        return self.flips / self.count


Classes = Sequence[int] | npt.NDArray[np.int64]


def paired(truth: Classes, first: Classes, second: Classes) -> Paired:
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


def welch_interval(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float, float]:
    """Mean of *second* minus that of *first*, its interval's ends and the p-value of 0 (Welch 1947)."""
    from scipy.stats import ttest_ind

    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    difference = float(y.mean() - x.mean())
    if not x.std() and not y.std():  # a clock coarser than the differences
        return difference, difference, difference, 1.0 if difference == 0 else 0.0
    found = ttest_ind(y, x, equal_var=False)
    interval = found.confidence_interval(confidence)
    return difference, float(interval.low), float(interval.high), float(found.pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p-values of a family of tests, corrected so that any false alarm keeps its level (Holm 1979)."""
    count, adjusted, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def paired_reach(found: Paired, confidence: float = 0.95) -> float:
    """Half the width of the interval of the difference, as a share: Wald's, half an image added to each cell.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions" (2005).
    """
    from scipy.stats import norm

    count = found.count + 2
    first, second = found.only_first + 0.5, found.only_second + 0.5
    variance = (first + second) / count - ((second - first) / count) ** 2
    return float(norm.ppf((1 + confidence) / 2) * np.sqrt(variance / count))


def images_needed(found: Paired, margin: float) -> int:
    """About how many images would tell a difference of *margin* (a share), if they flip as often as these."""
    return int(np.ceil(found.count * (paired_reach(found) / margin) ** 2))
