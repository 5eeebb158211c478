"""Whether each file pays on this device against the reference: what it gains, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit.report.rows import Row
from edgekit.report.speed import LEVEL
from edgekit.report.words import count, images_that_would_tell, size_words, speed_words

Verdict = Literal["pays", "trade", "does not pay", "no difference", "cannot tell"]
SAME_SIZE = 0.05  # as in the words for sizes
SLIGHT = 0.02  # of the latency: real or not, nobody ships another file for it


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """*text* is a clause with the file's name: ``tflite-dyn8 does not pay: 1.3x slower (1.2-1.4)``."""

    name: str
    verdict: Verdict
    text: str


def advise(rows: Sequence[Row]) -> tuple[Advice, ...]:
    """One for each measured file but the reference; none where the reference was not measured."""
    reference = next((row for row in rows if row.is_reference), None)
    if reference is None:
        return ()
    return tuple(_advice(row) for row in rows if row.result and not row.is_reference)


def _advice(row: Row) -> Advice:
    """Whether it pays. Only what the tests call real counts; the size of a file needs no test."""
    if row.broken:
        return _told(row, "does not pay", f"does not pay: it is broken ({row.broken})")
    gains, costs, same, unknown = list[str](), list[str](), list[str](), list[str]()
    _speed(row, gains, costs, same, unknown)
    _size(row, gains, costs, same)
    _accuracy(row, gains, costs, same, unknown)
    if unknown:
        known = ", ".join([*gains, *costs, *same])
        return _told(row, "cannot tell", f"cannot be judged yet: {known}; {'; '.join(unknown)}")
    rest = f"; {', '.join(same)}" if same else ""
    if gains and costs:
        return _told(row, "trade", f"is a trade: {', '.join(gains)}, but {' and '.join(costs)}{rest}")
    if costs:
        return _told(row, "does not pay", f"does not pay: {', '.join(costs)}{rest}")
    if gains:
        return _told(row, "pays", f"pays: {', '.join([*gains, *same])}")
    return _told(row, "no difference", f"makes no difference: {', '.join(same)}")


def _told(row: Row, verdict: Verdict, text: str) -> Advice:
    return Advice(name=row.name, verdict=verdict, text=f"{row.name} {text}")


def _speed(row: Row, gains: list[str], costs: list[str], same: list[str], unknown: list[str]) -> None:
    found = row.speed
    if found is None or row.speed_words.startswith("no claim"):
        unknown.append(f"its speed is not known ({row.speed_words.removeprefix('no claim: ')})")
    elif found.untested:
        unknown.append(f"its speed is not known (not tested: {found.untested})")
    elif not found.real:
        same.append("no real difference in speed")
    elif abs(found.ratio - 1) < SLIGHT:
        same.append(f"hardly a difference in speed ({speed_words(found).partition(' (')[0]})")
    else:
        # With --allow-invalid the words say which run is doubtful.
        (gains if found.ratio < 1 else costs).append(row.speed_words.replace("; ", ", though "))


def _size(row: Row, gains: list[str], costs: list[str], same: list[str]) -> None:
    ratio = row.size_ratio
    assert ratio is not None, "there is a reference"
    if abs(ratio - 1) < SAME_SIZE:
        same.append("the same size")
    elif 0.47 < ratio < 0.54:
        gains.append("halves the file")
    else:
        (gains if ratio < 1 else costs).append(size_words(ratio))


def _accuracy(row: Row, gains: list[str], costs: list[str], same: list[str], unknown: list[str]) -> None:
    pair = row.paired
    if pair is None:
        unknown.append(f"its accuracy is not known ({row.incomparable})")
    elif pair.flips and pair.p < LEVEL:
        (costs if pair.difference < 0 else gains).append(row.accuracy_words)
    elif images_that_would_tell(pair):
        same.append(f"no loss shown on {count(pair.count, 'image')}")
    else:
        same.append("no accuracy lost")
