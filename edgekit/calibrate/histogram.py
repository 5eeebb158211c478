"""Where a tensor's values lie, in bounded memory: bins that double in width when a value falls outside.

The width is a power of two and every edge a multiple of it, so that two bins merge into one without loss.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
Counts = npt.NDArray[np.float64]
BINS = 4096  # sixteen for each step of 8 bits over the whole range: a range a quarter as wide still has four


def _empty() -> Counts:
    return np.zeros(BINS)


@dataclass(kw_only=True, slots=True)
class Histogram:
    """Bin *i* holds values from ``(first + i) * width`` on: how many, and their sum.

    With the sums each bin has its mean, so that what a network gives most often, such as the 0 and the 6 of ReLU6,
    stands exactly where it is.
    """

    width: float = 0.0
    first: int = 0
    counts: Counts = field(default_factory=_empty)
    sums: Counts = field(default_factory=_empty)

    def add_(self, values: Values) -> None:
        """Count *values*, all finite."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not self.width:
            self._start_(low, high)
        while not self._holds(low, high):
            self._double_(low)
        bins = np.floor(values * (1 / self.width)).astype(np.int64) - self.first
        self.counts += np.bincount(bins, minlength=BINS)
        self.sums += np.bincount(bins, weights=values, minlength=BINS)

    def _start_(self, low: float, high: float) -> None:
        """The smallest width whose bins hold both ends with room for as much again."""
        reach = max(abs(low), abs(high), 2.0**-60)
        self.width = float(2.0 ** np.ceil(np.log2(max(high - low, reach * 2.0**-20) * 2 / BINS)))
        self.first = int(np.floor(low / self.width)) - (BINS // 4 if low < 0 else 0)

    def _holds(self, low: float, high: float) -> bool:
        return self.first * self.width <= low and high < (self.first + BINS) * self.width

    def _double_(self, low: float) -> None:
        """Merge neighbours; the half that comes free lies on the side where it is needed."""
        at = self.first // 2  # of the bin that the first one goes to
        room = BINS - BINS // 2 - 1 if low < self.first * self.width else 0
        places = np.arange(self.first, self.first + BINS) // 2 - at + room
        for old in (self.counts, self.sums):
            old[:] = np.bincount(places, weights=old, minlength=BINS)
        self.width, self.first = self.width * 2, at - room

    def points(self) -> tuple[Counts, Counts]:
        """The means of the bins that hold anything, in rising order, and how many values each holds."""
        filled = self.counts > 0
        return self.sums[filled] / self.counts[filled], self.counts[filled]
