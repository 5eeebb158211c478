"""A sustained run told: what minutes without a pause did to latency, clock and temperature. It is never ranked."""

from dataclasses import dataclass

import numpy as np

from edgekit.measure import Telemetry
from edgekit.report.words import figure
from edgekit.result import Result

MINUTE_S, PIECE_S = 60.0, 10.0
LESS_CLOCK = 0.10  # than in the first minute: turbo clocks wander by some per cent all the time


@dataclass(frozen=True, kw_only=True, slots=True)
class Sustained:
    """Minutes count from the first inference. *window_s*: how much of the begin and of the end is compared.

    *slowest*: the median of the slowest piece over the first median, minus 1; it begins at *slowest_min*.
    *throttled_min*: when the device first said that it throttles, *clock_min*: when its clock first lay a tenth
    below the first; None for never. *tells*: whether it tells of throttling at all.
    """

    minutes: float
    count: int
    window_s: float
    piece_s: float
    first_ms: float
    last_ms: float
    slowest: float
    slowest_min: float
    throttled_min: float | None
    clock_min: float | None
    tells: bool
    first_mhz: float | None
    last_mhz: float | None
    first_c: float | None
    highest_c: float | None


def sustained(result: Result) -> Sustained:
    """The figures of a run with at least one inference."""
    at_s, ms = seconds_and_ms(result)
    total_s = float(at_s[-1]) + float(ms[-1]) / 1e3
    window_s = min(MINUTE_S, total_s / 2)
    first = float(np.median(ms[at_s <= window_s]))
    piece_s = min(PIECE_S, total_s / 6)
    pieces = (at_s // piece_s).astype(int)
    medians = {int(piece): float(np.median(ms[pieces == piece])) for piece in np.unique(pieces)}
    slowest = max(medians, key=lambda piece: medians[piece])
    clocks = readings(result, "clock_mhz")
    usual = float(np.median([value for minute, value in clocks if 60 * minute <= window_s] or [0.0]))
    heat = readings(result, "temperature_c")
    throttled = readings(result, "throttled")
    return Sustained(
        minutes=total_s / 60,
        count=len(ms),
        window_s=window_s,
        piece_s=piece_s,
        first_ms=first,
        last_ms=float(np.median(ms[at_s >= total_s - window_s])),
        slowest=medians[slowest] / first - 1,
        slowest_min=slowest * piece_s / 60,
        throttled_min=next((minute for minute, value in throttled if value), None),
        clock_min=next((minute for minute, value in clocks if value < (1 - LESS_CLOCK) * usual), None),
        tells=bool(throttled),
        first_mhz=clocks[0][1] if clocks else None,
        last_mhz=clocks[-1][1] if clocks else None,
        first_c=heat[0][1] if heat else None,
        highest_c=max(value for _, value in heat) if heat else None,
    )


def seconds_and_ms(result: Result) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
    """When each inference began, in seconds from the first, and how long it took."""
    starts_ns = np.asarray(result.measurement.starts_ns, np.float64)
    return (starts_ns - starts_ns[0]) / 1e9, np.asarray(result.measurement.samples_ns, np.float64) / 1e6


def readings(result: Result, name: str) -> list[tuple[float, float]]:
    """Minute and value of what the telemetry tells of a field, from the first inference on."""
    begin = result.measurement.begin_ns
    points: tuple[Telemetry, ...] = result.telemetry
    found = ((max(0.0, (point.time_ns - begin) / 6e10), getattr(point, name)) for point in points)
    return [(minute, float(value)) for minute, value in found if value is not None]


def title(result: Result) -> str:
    threads = "1 thread" if result.settings.threads == 1 else f"{result.settings.threads} threads"
    minutes = result.settings.sustained_min
    return f"{result.name} on {result.device.model}, {threads}, {minutes:g} min without a pause"


def facts(result: Result) -> list[tuple[str, str]]:
    """Name and text of what there is to say, doubts last."""
    found = sustained(result)
    window = "minute" if found.window_s == MINUTE_S else f"{found.window_s:.0f} s"
    change = 100 * (found.last_ms / found.first_ms - 1)
    first, last = figure(found.first_ms), figure(found.last_ms)
    piece = f"{found.piece_s:.0f} s"
    rows = [
        ("p50", f"{first} ms in the first {window}, {last} ms in the last ({change:+.1f} %)"),
        (
            "slowest",
            f"{100 * found.slowest:+.0f} % against the first {window}, {piece} at minute {found.slowest_min:.1f}",
        ),
        ("throttled", _throttled(found)),
    ]
    if found.first_mhz is not None and found.last_mhz is not None:
        rows.append(("clock", f"{found.first_mhz:.0f} MHz at first, {found.last_mhz:.0f} MHz at last"))
    if found.first_c is not None and found.highest_c is not None:
        rows.append(("temperature", f"{found.first_c:.0f} C at first, {found.highest_c:.0f} C at most"))
    return [*rows, *(("doubt", reason) for reason in result.validity.reasons)]


def _throttled(found: Sustained) -> str:
    if found.throttled_min is not None:
        return f"from minute {found.throttled_min:.1f} on"
    if found.clock_min is not None:
        return f"it does not say so, but its clock fell at minute {found.clock_min:.1f}"
    return "no" if found.tells else "it does not tell"
