"""The range of a tensor that its integers shall cover, by one of several rules, and the error that each leaves."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.calibrate.histogram import Counts
from edgekit.calibrate.observe import Observed

PERCENTILE = 99.99  # between both ends
SHRINK = 0.93 ** np.arange(
    56, dtype=np.float64
)  # parts of the whole range that are tried for the least error: 1 to 0.018


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Holds zero, which padding and ReLU need exactly."""

    low: float
    high: float


def min_max(seen: Observed, bits: int) -> Range:
    return _with_zero(seen.low, seen.high)


def moving_average(seen: Observed, bits: int) -> Range:
    """Of each image's ends: what Google's quantizer does by default."""
    return _with_zero(seen.average_low, seen.average_high)


def percentile(seen: Observed, bits: int) -> Range:
    """All but the outermost 0.01 % of the values, half of them at each end."""
    points, counts = seen.histogram.points()
    share = np.cumsum(counts) / counts.sum()
    tail = (1 - PERCENTILE / 100) / 2
    low, high = points[np.searchsorted(share, tail)], points[np.searchsorted(share, 1 - tail)]
    # Where next to nothing is cut, the ends are the true ones and not the means of the outermost bins.
    low = seen.low if low == points[0] else low
    high = seen.high if high == points[-1] else high
    return _with_zero(float(low), float(high))


def mse(seen: Observed, bits: int) -> Range:
    """The range of least mean squared error, each end searched in turn."""
    whole = _with_zero(seen.low, seen.high)
    points, counts = seen.histogram.points()
    low, high = whole.low, whole.high
    for _ in range(2):
        if whole.high > 0:
            ends = whole.high * SHRINK
            high = float(ends[np.argmin(_errors(points, counts, np.full_like(ends, low), ends, bits))])
        if whole.low < 0:
            ends = whole.low * SHRINK
            low = float(ends[np.argmin(_errors(points, counts, ends, np.full_like(ends, high), bits))])
    return Range(low=low, high=high)


RULES: dict[str, Callable[[Observed, int], Range]] = {
    "min-max": min_max,
    "moving-average": moving_average,
    "percentile": percentile,
    "mse": mse,
}


def _with_zero(low: float, high: float) -> Range:
    return Range(low=min(low, 0.0), high=max(high, 0.0))


def error(seen: Observed, found: Range, bits: int) -> float:
    """The mean squared error of the tensor's values when integers of *bits* cover the range."""
    points, counts = seen.histogram.points()
    return float(_errors(points, counts, np.array([found.low]), np.array([found.high]), bits)[0])


def _errors(
    points: Counts, counts: Counts, lows: npt.NDArray[np.float64], highs: npt.NDArray[np.float64], bits: int
) -> npt.NDArray[np.float64]:
    """The same for several ranges at once, (R,), of points (P,)."""
    steps = np.maximum(highs - lows, 1e-30)[:, None] / (2**bits - 1)
    zero_points = np.round(-lows[:, None] / steps)
    stored = np.clip(np.round(points / steps) + zero_points, 0, 2**bits - 1)
    wrong = (stored - zero_points) * steps - points
    means: npt.NDArray[np.float64] = (wrong**2 @ counts) / counts.sum()
    return means
