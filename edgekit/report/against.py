"""How each result stands to the reference: accuracy and speed, their tests corrected for being many."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.report.accuracy import compare_accuracy
from edgekit.report.speed import Speed, speed
from edgekit.result import Result
from edgekit.stats import Paired, holm


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """*incomparable* says why *paired* is None; *speed* is None where one of the two was not timed."""

    paired: Paired | None = None
    incomparable: str = ""
    speed: Speed | None = None


def against(reference: Result | None, results: Sequence[Result]) -> list[Against]:
    """One for each result. The tests of accuracy are one family, those of speed another (Holm 1979)."""
    if reference is None:
        return [Against(incomparable="there is no reference") for _ in results]
    found = [_one(reference, result) for result in results]
    pairs = iter(holm([one.paired.p_value for one in found if one.paired]))
    speeds = iter(holm([one.speed.p_value for one in found if one.speed and one.speed.p_value is not None]))
    return [
        replace(
            one,
            paired=one.paired and replace(one.paired, p_corrected=next(pairs)),
            speed=replace(one.speed, p_corrected=next(speeds))
            if one.speed and one.speed.p_value is not None
            else one.speed,
        )
        for one in found
    ]


def _one(reference: Result, result: Result) -> Against:
    pair, why = compare_accuracy(reference, result)
    if result is reference:
        return Against(incomparable="" if pair else why)
    timed = reference.measurement.count and result.measurement.count
    return Against(paired=pair, incomparable=why, speed=speed(reference, result) if timed else None)
