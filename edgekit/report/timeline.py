"""The chart of a run over time: latency (of each block a line), clock and temperature, as an SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from pathlib import Path

import numpy as np

from edgekit import files
from edgekit.report.sustained import readings, seconds_and_ms, title
from edgekit.result import Result

WIDTH, LEFT, RIGHT, TOP, GAP = 760, 62, 16, 40, 34
TALLEST = 2.5  # how far over the line its panel goes at most
BINS = 160  # columns of the chart: enough for the eye
FEWEST = 8  # inferences a column
IN_SECONDS = 3  # minutes below which the axis counts seconds
LATENCY, CLOCK, HEAT, SLOWED = "#3b6fd4", "#2f9e6e", "#d9822b", "#d64545"  # legible on light and on dark

Points = Sequence[tuple[float, float]]
Times = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """*points* in minutes and the panel's unit; *low* and *high*: the ends of a band around them."""

    points: Points
    low: Points = ()
    high: Points = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    label: str
    height: int
    colour: str
    lines: Sequence[Line]


def write_chart(result: Result, path: Path) -> None:
    """Write the chart of a sustained run to *path*."""
    files.write_text(path, chart(result, alone=True))


def chart(result: Result, *, alone: bool = False) -> str:
    """The SVG of a run that was timed. *alone*: as a file, with a ground and a title of its own."""
    panels = [_latency(result)]
    if clock := readings(result, "clock_mhz"):
        panels.append(Panel(label="Clock, MHz", height=90, colour=CLOCK, lines=[Line(points=clock)]))
    if heat := readings(result, "temperature_c"):
        panels.append(Panel(label="Temperature, °C", height=90, colour=HEAT, lines=[Line(points=heat)]))
    minutes = max(max(line.points[-1][0] for line in panels[0].lines), result.settings.sustained_min, 1e-3)
    top = TOP if alone else 18
    height = top + sum(panel.height + GAP for panel in panels) + 12
    name = escape(title(result) if result.settings.sustained_min else f"{result.name} over time")
    size = 'width="100%"'  # a page needs no namespace
    if alone:
        size = f'xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" {size} role="img" font-size="12" '
        'font-family="system-ui, sans-serif" fill="currentColor">',
        f"<title>{name}</title>",
    ]
    if alone:
        parts.append(f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>')
        parts.append(f'<text x="{LEFT}" y="18" font-size="14" font-weight="600">{name}</text>')
    slowed = _slowed(result, minutes)
    y = top
    for number, panel in enumerate(panels):
        parts += _draw(panel, y, minutes, slowed, axis=number == len(panels) - 1)
        y += panel.height + GAP
    return "\n".join([*parts, "</svg>", ""])


def _latency(result: Result) -> Panel:
    lines = _summarized(result) if result.measurement.summaries else _sampled(result)
    what = "Latency, ms: the median, and where 90 % of the inferences lie"
    return Panel(label=what, height=200, colour=LATENCY, lines=lines)


def _sampled(result: Result) -> list[Line]:
    """A line for each block."""
    at_s, ms = seconds_and_ms(result)
    blocks = np.asarray(result.measurement.blocks)
    numbers = np.unique(blocks)
    return [
        _line(at_s[of], ms[of], max(1, BINS // 2 // len(numbers)))
        for of in (blocks == number for number in numbers)
    ]


def _line(at_s: Times, ms: Times, bins: int) -> Line:
    begin, total_s = float(at_s[0]), float(at_s[-1] - at_s[0]) + float(ms[-1]) / 1e3
    bins = max(1, min(bins, len(ms) // FEWEST))
    column = np.minimum(((at_s - begin) / total_s * bins).astype(int), bins - 1)
    middle, low, high = [], [], []
    for one in np.unique(column):
        minute = float((begin + (one + 0.5) * total_s / bins) / 60)
        p5, p50, p95 = (float(value) for value in np.percentile(ms[column == one], (5, 50, 95)))
        middle.append((minute, p50))
        low.append((minute, p5))
        high.append((minute, p95))
    if len(middle) == 1:  # too few for a line: the block as a whole
        ends = (begin / 60, (begin + total_s) / 60)
        middle, low, high = ([(end, found[0][1]) for end in ends] for found in (middle, low, high))
    return Line(points=middle, low=low, high=high)


def _summarized(result: Result) -> list[Line]:
    """A level for each block, where the device gives no single times."""
    first, lines = result.measurement.summaries[0].start_ns, []
    for one in result.measurement.summaries:
        begin = (one.start_ns - first) / 6e10
        ends = (begin, begin + one.count * one.mean_ns / 6e10)
        low, middle, high = ([(end, ns / 1e6) for end in ends] for ns in (one.p5_ns, one.median_ns, one.p95_ns))
        lines.append(Line(points=middle, low=low, high=high))
    return lines


def _slowed(result: Result, minutes: float) -> list[tuple[float, float]]:
    """From when to when the device said that it throttles."""
    points, spans = readings(result, "throttled"), list[tuple[float, float]]()
    for (begin, value), (end, _) in zip(points, [*points[1:], (minutes, 0.0)], strict=False):
        if not value:
            continue
        if spans and spans[-1][1] == begin:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return spans


def _draw(panel: Panel, top: int, minutes: float, slowed: Points, *, axis: bool) -> list[str]:
    values = [value for line in panel.lines for _, value in [*line.points, *line.low, *line.high]]
    pad = max((max(values) - min(values)) * 0.08, abs(max(values)) * 0.02, 1e-9)
    least, most = max(0.0, min(values) - pad), max(values) + pad
    if panel.lines[0].high:  # a lone outlier must not flatten the line
        most = min(most, TALLEST * max(value for line in panel.lines for _, value in line.points))
    most = max(most, least + pad)
    bottom, right = top + panel.height, WIDTH - RIGHT

    def x(minute: float) -> float:
        return LEFT + min(max(minute / minutes, 0.0), 1.0) * (right - LEFT)

    def y(value: float) -> float:
        return bottom - (min(value, most) - least) / (most - least) * panel.height

    def path(points: Points) -> str:
        return " ".join(f"{x(minute):.1f},{y(value):.1f}" for minute, value in points)

    parts = [f'<text x="{LEFT}" y="{top - 7}" fill="{panel.colour}" font-weight="600">{panel.label}</text>']
    for begin, end in slowed:
        wide = max(1.0, x(end) - x(begin))
        parts.append(
            f'<rect x="{x(begin):.1f}" y="{top}" width="{wide:.1f}" height="{panel.height}" fill="{SLOWED}" '
            'fill-opacity="0.14"><title>the device throttled</title></rect>'
        )
    for tick in _ticks(least, most, 5):
        parts.append(
            f'<path d="M{LEFT} {y(tick):.1f}H{right}" stroke="currentColor" stroke-opacity="0.15"/>'
            f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for line in panel.lines:
        if line.low:
            band = f"{path(line.high)} {path(list(line.low)[::-1])}"
            parts.append(f'<polygon points="{band}" fill="{panel.colour}" fill-opacity="0.3"/>')
        parts.append(
            f'<polyline points="{path(line.points)}" fill="none" stroke="{panel.colour}" stroke-width="1.75" '
            'stroke-linejoin="round"/>'
        )
    parts.append(f'<path d="M{LEFT} {bottom}H{right}" stroke="currentColor" stroke-opacity="0.6"/>')
    unit, scale = ("Seconds", 60) if minutes < IN_SECONDS else ("Minutes", 1)
    for tick in _ticks(0.0, minutes * scale, 8):
        at = x(tick / scale)
        parts.append(f'<path d="M{at:.1f} {bottom}v4" stroke="currentColor" stroke-opacity="0.6"/>')
        if axis:
            parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    if axis:
        parts.append(f'<text x="{right}" y="{bottom + 34}" text-anchor="end">{unit}</text>')
    return parts


def _ticks(least: float, most: float, about: int) -> list[float]:
    """Round numbers between the two, about so many."""
    rough = (most - least) / about
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    count = floor(most / step + 1e-9)
    return [float(f"{number * step:.6g}") for number in range(-floor(-least / step + 1e-9), count + 1)]
