"""The chart of a sustained run: latency, clock and temperature over the minutes, as an SVG."""

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
LATENCY, CLOCK, HEAT, SLOWED = "#3b6fd4", "#2f9e6e", "#d9822b", "#d64545"  # legible on light and on dark

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    label: str
    height: int
    colour: str
    line: Points
    low: Points = ()  # the ends of a band around the line
    high: Points = ()


def write_chart(result: Result, path: Path) -> None:
    """Write the chart of a sustained run to *path*."""
    files.write_text(path, chart(result, alone=True))


def chart(result: Result, *, alone: bool = False) -> str:
    """The SVG. *alone*: as a file, with a ground and a title of its own."""
    panels = [_latency(result)]
    if clock := readings(result, "clock_mhz"):
        panels.append(Panel(label="Clock, MHz", height=90, colour=CLOCK, line=clock))
    if heat := readings(result, "temperature_c"):
        panels.append(Panel(label="Temperature, °C", height=90, colour=HEAT, line=heat))
    minutes = max(panels[0].line[-1][0], result.settings.sustained_min)
    top = TOP if alone else 18
    height = top + sum(panel.height + GAP for panel in panels) + 12
    name = escape(title(result))
    size = f'width="{WIDTH}" height="{height}"' if alone else 'width="100%"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {size} role="img" font-size="12" '
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
    at_s, ms = seconds_and_ms(result)
    total_s = float(at_s[-1]) + float(ms[-1]) / 1e3
    column = np.minimum((at_s / total_s * BINS).astype(int), BINS - 1)
    middle, low, high = [], [], []
    for one in np.unique(column):
        minute = float((one + 0.5) * total_s / BINS / 60)
        p5, p50, p95 = (float(value) for value in np.percentile(ms[column == one], (5, 50, 95)))
        middle.append((minute, p50))
        low.append((minute, p5))
        high.append((minute, p95))
    return Panel(
        label="Latency, ms: the median, and where 90 % of the inferences lie",
        height=200,
        colour=LATENCY,
        line=middle,
        low=low,
        high=high,
    )


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
    values = [value for _, value in [*panel.line, *panel.low, *panel.high]]
    pad = max((max(values) - min(values)) * 0.08, abs(max(values)) * 0.02, 1e-9)
    least, most = max(0.0, min(values) - pad), max(values) + pad
    if panel.high:  # a lone outlier must not flatten the line
        most = min(most, TALLEST * max(value for _, value in panel.line))
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
    if panel.low:
        band = f"{path(panel.high)} {path(list(panel.low)[::-1])}"
        parts.append(f'<polygon points="{band}" fill="{panel.colour}" fill-opacity="0.22"/>')
    parts.append(
        f'<polyline points="{path(panel.line)}" fill="none" stroke="{panel.colour}" stroke-width="1.75" '
        'stroke-linejoin="round"/>'
    )
    parts.append(f'<path d="M{LEFT} {bottom}H{right}" stroke="currentColor" stroke-opacity="0.6"/>')
    for tick in _ticks(0.0, minutes, 8):
        parts.append(f'<path d="M{x(tick):.1f} {bottom}v4" stroke="currentColor" stroke-opacity="0.6"/>')
        if axis:
            parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    if axis:
        parts.append(f'<text x="{right}" y="{bottom + 34}" text-anchor="end">Minutes</text>')
    return parts


def _ticks(least: float, most: float, about: int) -> list[float]:
    """Round numbers between the two, about so many."""
    rough = (most - least) / about
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    count = floor(most / step + 1e-9)
    return [float(f"{number * step:.6g}") for number in range(-floor(-least / step + 1e-9), count + 1)]
