"""Latency against accuracy as a picture for a README or a paper: PNG or SVG, a panel a device and thread count."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import drawing
from edgekit.drawing import ACCENT, INK, LINE, MUTED
from edgekit.errors import ResultError
from edgekit.report.compare import Comparison, Group
from edgekit.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 7.5, 4.6  # inches, of a panel
NOTE = "Vertical bars: 95 % interval of top-1. Horizontal: range of the block medians. Hollow: not ranked."
# Where a label may stand, in points from its dot, with its alignment; the first free one is taken.
PLACES = tuple(
    (dx * far, dy * far, {-1: "right", 0: "center", 1: "left"}[dx])
    for far in (8, 16, 28, 42, 58)
    for dx, dy in ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
)
Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


def draw(comparison: Comparison, path: Path, kind: str) -> None:
    """Write the picture; *kind* is png or svg. Raises ResultError where no row has latency and accuracy."""
    groups = [group for group in comparison.groups if _drawn(group)]
    if not groups:
        raise ResultError("nothing to draw: no file has both a latency and an accuracy; give --data to bench")
    figure = drawing.figure(WIDTH, HEIGHT * len(groups))
    for axes, group in zip(figure.subplots(len(groups), squeeze=False)[:, 0], groups, strict=True):
        _panel(axes, group)
    figure.supxlabel(NOTE, fontsize=7.5, color=MUTED)
    figure.draw_without_rendering()  # the labels need to know where the dots are
    for axes, group in zip(figure.axes, groups, strict=True):
        _labels(axes, group)
    drawing.save(figure, path, kind)


def _drawn(group: Group) -> list[Row]:
    return [row for row in group.rows if row.latency and row.top1]


def _panel(axes: "Axes", group: Group) -> None:
    rows = _drawn(group)
    drawing.plain(axes, drawing.drawable([group.title])[0][0])
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    line = sorted((row.p50_ms, _top1(row)) for row in rows if row.name in group.choice.pareto)
    if line:
        axes.step(*zip(*line, strict=True), where="post", color=ACCENT, alpha=0.5, linewidth=1.2)
    for row in rows:
        assert row.latency is not None
        assert row.top1 is not None
        x, y, colour = row.p50_ms, _top1(row), _colour(row, group)
        medians = row.latency.block_medians_ms
        axes.errorbar(
            x,
            y,
            xerr=[[max(0.0, x - min(medians))], [max(0.0, max(medians) - x)]],
            yerr=[[y - 100 * row.top1.low], [100 * row.top1.high - y]],
            color=colour,
            alpha=0.5,
            linewidth=1.2,
            fmt="none",
        )
        axes.plot(x, y, "o", color=colour, markersize=6, markerfacecolor="white" if row.left_out else colour)
    slowest, fastest = max(row.p50_ms for row in rows), min(row.p50_ms for row in rows)
    if slowest > 10 * fastest:
        axes.set_xscale("log")
        ticker = drawing.module("ticker")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("latency, ms (median)", color=MUTED)
    axes.set_ylabel("top-1, %", color=MUTED)


def _top1(row: Row) -> float:
    assert row.top1 is not None
    return 100 * row.top1.share


def _colour(row: Row, group: Group) -> str:
    return ACCENT if row.name == group.choice.pick else MUTED if row.left_out else INK


def _labels(axes: "Axes", group: Group) -> None:
    """A name at each dot, the pick's first, where it hides no dot and no other name, if there is such a place."""
    rows = sorted(_drawn(group), key=lambda row: (row.name != group.choice.pick, bool(row.left_out)))
    names, text = drawing.drawable([row.name + (" (reference)" if row.is_reference else "") for row in rows])
    dots = [axes.transData.transform((row.p50_ms, _top1(row))) for row in rows]
    taken: list[Box] = [(x - 8, y - 8, x + 8, y + 8) for x, y in dots]
    for row, name in zip(rows, names, strict=True):
        best: tuple[float, Any, Box] | None = None
        for rank, (dx, dy, align) in enumerate(PLACES):
            label = axes.annotate(
                name,
                (row.p50_ms, _top1(row)),
                (dx, dy),
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=8.5,
                color=_colour(row, group),
                fontweight="bold" if row.name == group.choice.pick else "normal",
                arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.8} if rank >= 8 else None,
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
                **text,
            )
            extent, frame = label.get_window_extent(), axes.get_window_extent()
            box = extent.x0, extent.y0, extent.x1, extent.y1
            outside = max(0.0, frame.x0 - box[0]) + max(0.0, box[2] - frame.x1)
            cost = rank + 100 * outside + sum(_overlap(box, other) for other in taken)
            if best is None or cost < best[0]:
                if best:
                    best[1].remove()
                best = cost, label, box
            else:
                label.remove()
            if cost <= rank:
                break
        assert best is not None
        taken.append(best[2])


def _overlap(a: Box, b: Box) -> float:
    """The area in square pixels."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
