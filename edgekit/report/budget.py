"""What the user can give up or has room for, and which rows fit it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit import units
from edgekit.errors import UsageError
from edgekit.report.accuracy import compare_accuracy
from edgekit.report.rows import Row
from edgekit.report.speed import LEVEL
from edgekit.report.words import figure

TIMES_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
SIZES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """*max_drop*: points of top-1 below the reference. None: no limit of that kind was given."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: float | None = None

    @property
    def text(self) -> str:
        """As in a sentence: ``at most 0.5 points lost, p50 at most 20.0 ms``."""
        parts = []
        if self.max_drop is not None:
            parts.append(f"at most {self.max_drop:g} points lost")
        if self.max_latency_ms is not None:
            parts.append(f"p50 at most {figure(self.max_latency_ms)} ms")
        if self.max_size_bytes is not None:
            parts.append(f"at most {units.size(round(self.max_size_bytes))}")
        return ", ".join(parts)

    @property
    def room_only(self) -> bool:
        """Whether nothing is said of accuracy: then the best that fits is wanted, not the fastest."""
        return self.max_drop is None and bool(self.text)

    def admits(self, row: Row) -> bool:
        """Whether a row with latency and accuracy fits."""
        drop = -100 * row.paired.difference if row.paired else 0.0
        return (
            (self.max_drop is None or drop <= self.max_drop)
            and (self.max_latency_ms is None or row.p50_ms <= self.max_latency_ms)
            and (self.max_size_bytes is None or row.artifact.size_bytes <= self.max_size_bytes)
        )

    def nearest(self, rows: Sequence[Row]) -> str:
        """How near the rows come, for a budget that none of them meets."""
        parts = []
        if self.max_latency_ms is not None:
            fastest = min(rows, key=lambda row: row.p50_ms)
            parts.append(f"the fastest is {fastest.name} at {figure(fastest.p50_ms)} ms")
        if self.max_size_bytes is not None:
            least = min(rows, key=lambda row: row.artifact.size_bytes)
            parts.append(f"the smallest is {least.name} with {units.size(least.artifact.size_bytes)}")
        if self.max_drop is not None:
            pairs = [(row.paired.difference if row.paired else 0.0, row.name) for row in rows]
            difference, name = max(pairs)
            parts.append(f"the most accurate is {name} at {units.points(difference)} points")
        return ", ".join(parts)


def most_accurate(rows: Sequence[Row]) -> list[Row]:
    """The row with the highest top-1, and those that the test does not tell from it."""
    best = max(rows, key=lambda row: (row.top1.correct if row.top1 else -1, -row.p50_ms))
    assert best.result is not None
    found = [best]
    for row in rows:
        if row is not best and row.result is not None:
            pair, _ = compare_accuracy(best.result, row.result)
            if pair and pair.p_value >= LEVEL:
                found.append(row)
    return found


def milliseconds(text: str) -> float:
    """The time in ``20ms``, ``350us`` or ``0.02 s``. Raises UsageError."""
    return _quantity(text, "--max-latency", TIMES_MS, "20ms")


def size_bytes(text: str) -> float:
    """The size in ``4MB`` or ``800 kB``. Raises UsageError."""
    return _quantity(text, "--max-size", SIZES, "4MB")


def _quantity(text: str, option: str, scale: dict[str, float], example: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    if not found or found[2] not in scale or float(found[1]) == 0:
        raise UsageError(f"{option} is {text!r}: a number and a unit ({', '.join(scale)}), as {example}")
    return float(found[1]) * scale[found[2]]
