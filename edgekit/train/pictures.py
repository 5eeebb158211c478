"""What a training looks like: its curves, and which classes the model takes for which, as PNG files.

Shapes: K classes. A confusion matrix (K, K) has a row for each true class and a column for each answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len

from edgekit import drawing, units
from edgekit.drawing import ACCENT, INK, LINE, MUTED, OTHER
from edgekit.stats import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Matrix = npt.NDArray[np.int64]
NUMBERED, WHOLE = 15, 100  # up to so many classes, cells have room for numbers, and the matrix for names
BARS, ANSWERS = 10, 20  # rows of worst classes


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """One class: *right* of its *images*, Wilson's 95 % interval, and the most frequent wrong answer, if any."""

    name: str
    images: int
    right: int
    low: float
    high: float
    taken_for: str
    times: int

    @property
    def accuracy(self) -> float:
        return self.right / self.images


def worst(matrix: Matrix, classes: Sequence[str], count: int) -> list[ClassScore]:
    """The *count* classes with the lowest accuracy, the lowest first; of equals those with more images.

    A class without images has no accuracy, and is left out.
    """
    found = []
    for index in _worst(matrix)[:count]:
        images, right = int(matrix[index].sum()), int(matrix[index, index])
        low, high = wilson(right, images)
        answer, times = next(iter(_mistakes(matrix, index)), (None, 0))
        name, taken_for = classes[index], "" if answer is None else classes[answer]
        found.append(
            ClassScore(name=name, images=images, right=right, low=low, high=high, taken_for=taken_for, times=times)
        )
    return found


def _worst(matrix: Matrix) -> list[int]:
    """The classes that have images, by accuracy."""
    images, right = matrix.sum(axis=1), matrix.diagonal()
    order = np.lexsort((-images, right / np.maximum(images, 1)))
    return [int(index) for index in order if images[index]]


def _mistakes(matrix: Matrix, index: int) -> list[tuple[int, int]]:
    """The wrong answers for a class and how often each was given, the most frequent first."""
    order = np.argsort(-matrix[index], kind="stable")
    return [
        (int(answer), int(matrix[index, answer])) for answer in order if answer != index and matrix[index, answer]
    ]


def curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the lines of ``metrics.jsonl``, one or more: loss, top-1 and learning rate by epoch, as a PNG file."""
    assert rows, "no epoch to draw"
    figure = drawing.figure(7.5, 8)
    loss, top1, rate = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.6))
    epochs = [row["epoch"] for row in rows]
    for axes, key, color, label in (
        (loss, "loss", OTHER, ""),
        (top1, "train_top1", OTHER, "training images"),
        (top1, "val_top1", ACCENT, "held-out images"),
        (rate, "learning_rate", MUTED, ""),
    ):
        marker = "." if len(rows) <= 30 else ""  # a single epoch would be no line at all
        axes.plot(epochs, [row[key] for row in rows], color=color, label=label, marker=marker, linewidth=1.6)
    best = max(rows, key=lambda row: (row["val_top1"], row["epoch"]))  # of equals the later one, as train() has it
    label = f"best: {units.percent(best['val_top1'])}, epoch {best['epoch']:.0f}"
    top1.plot(best["epoch"], best["val_top1"], "o", color=ACCENT, markersize=8, fillstyle="none", label=label)
    top1.legend(loc="lower right", edgecolor="none", framealpha=1)
    low, high = top1.get_ylim()
    top1.set_ylim(max(0, low - 0.05), min(1.01, high + 0.05))  # never a zoom into tenths of a percent
    top1.yaxis.set_major_formatter(drawing.module("ticker").PercentFormatter(xmax=1, symbol=" %"))
    rate.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5), ylim=(0, None))
    rate.xaxis.set_major_locator(drawing.module("ticker").MaxNLocator(integer=True, min_n_ticks=1))
    for axes, title in ((loss, "Loss"), (top1, "Top-1"), (rate, "Learning rate")):
        drawing.plain(axes, title)
        axes.grid(color=LINE, linewidth=0.8)
    drawing.save(figure, path)


def confusion(matrix: Matrix, classes: Sequence[str], path: Path) -> None:
    """Draw which class is taken for which, beside the worst classes, as a PNG file.

    Above 100 classes the matrix makes way for the answers that the worst of them get.
    """
    assert matrix.shape == (len(classes), len(classes)), f"a matrix {matrix.shape} for {len(classes)} classes"
    images = int(matrix.sum())
    assert images, "no image to draw"
    names, text = drawing.drawable(classes)
    side = 7 if len(classes) <= 30 else 11
    figure = drawing.figure(side + 8, side + 1.5)
    left, right = figure.subplots(1, 2, width_ratios=(side + 2, 6))
    if len(classes) <= WHOLE:
        _matrix(left, matrix, [_short(name, 24) for name in names], text, pitch=72 * side / len(classes))
    else:
        _answers(left, matrix, names, text)
    _bars(right, worst(matrix, names, BARS), text)
    share = units.percent(int(matrix.diagonal().sum()) / images)
    figure.suptitle(f"{images:,} images of {len(classes):,} classes, {share} right", color=INK, fontsize=14)
    drawing.save(figure, path)


def _matrix(axes: "Axes", matrix: Matrix, names: list[str], text: dict[str, Any], pitch: float) -> None:
    """All of it. *pitch*: points from one row to the next."""
    images = matrix.sum(axis=1, keepdims=True)
    numbers = [[str(value or "") for value in row] for row in matrix] if len(names) <= NUMBERED else []
    _heat(axes, np.where(images, matrix / np.maximum(images, 1), np.nan), numbers, text)
    size = min(10.0, 0.8 * pitch)
    axes.set_xticks(range(len(names)), names, fontsize=size, **text)
    axes.set_yticks(range(len(names)), names, fontsize=size, **text)
    if max(map(cell_len, names)) * 0.65 * size > pitch:
        axes.tick_params(axis="x", rotation=90)
    axes.set(xlabel="answer", ylabel="true class")
    drawing.plain(axes, "What is taken for what, as shares of each true class")


def _answers(axes: "Axes", matrix: Matrix, names: list[str], text: dict[str, Any]) -> None:
    """A row for each of the worst classes: how often it was right, then its most frequent wrong answers."""
    rows, heads = _worst(matrix)[:ANSWERS], ("right", "taken for", "then for", "then for")
    shares, texts = np.zeros((len(rows), len(heads))), [[""] * len(heads) for _ in rows]
    for y, index in enumerate(rows):
        images, right = matrix[index].sum(), matrix[index, index]
        shares[y, 0], texts[y][0] = right / images, f"{right} of {images}"
        for x, (answer, times) in enumerate(_mistakes(matrix, index)[: len(heads) - 1], start=1):
            shares[y, x], texts[y][x] = times / images, f"{_short(names[answer], 26)}\n{times}"
    _heat(axes, shares, texts, text)
    axes.set_xticks(range(len(heads)), heads)
    axes.set_yticks(range(len(rows)), [_short(names[i], 24) for i in rows], **text)
    drawing.plain(axes, f"What the {len(rows)} worst classes are taken for, as shares of each")


def _heat(axes: "Axes", shares: npt.NDArray[np.float64], texts: list[list[str]], text: dict[str, Any]) -> None:
    """Cells coloured by their share, grey for none, with texts if there are any."""
    axes.set_facecolor(LINE)
    # By the square root of the share: one mistake in a hundred images should be seen.
    norm = drawing.module("colors").PowerNorm(0.5, 0, 1)
    image = axes.imshow(shares, aspect="auto", norm=norm, cmap="Blues")
    percent = drawing.module("ticker").PercentFormatter(1, 0, " %")
    axes.figure.colorbar(image, ax=axes, shrink=0.5, pad=0.02, ticks=(0, 0.01, 0.05, 0.2, 0.5, 1), format=percent)
    for y, row in enumerate(texts):
        for x, words in enumerate(row):
            color = "white" if shares[y, x] > 0.35 else INK
            axes.text(x, y, words, color=color, ha="center", va="center", fontsize=9, **text)


def _bars(axes: "Axes", scores: Sequence[ClassScore], text: dict[str, Any]) -> None:
    """For each class its name and figures, a bar with the interval, and what it is taken for."""
    for y, score in enumerate(scores):
        percent, low, high = 100 * score.accuracy, 100 * score.low, 100 * score.high
        axes.barh(y, 100, height=0.26, color=LINE)
        axes.barh(y, percent, height=0.26, color=ACCENT)
        axes.errorbar(percent, y, xerr=[[percent - low], [high - percent]], color=INK, capsize=4, linewidth=1.4)
        above: dict[str, Any] = {"y": y - 0.18, "va": "bottom", "color": INK}
        below: dict[str, Any] = {"y": y + 0.18, "va": "top", "color": MUTED}
        axes.text(0, s=_short(score.name, 40), fontweight="bold", **above, **text)
        axes.text(100, s=units.percent(score.accuracy), ha="right", **above)
        axes.text(100, s=f"{low:.1f}–{high:.1f}, {score.images:,} images", ha="right", **below)
        if score.taken_for:
            axes.text(0, s=f"{score.times:,} taken for {_short(score.taken_for, 22)}", **below, **text)
    axes.set(xlim=(0, 100), ylim=(BARS - 0.5, -0.5), xticks=(), yticks=())
    drawing.plain(axes, "The worst classes: accuracy with its 95 % interval")


def _short(name: str, width: int) -> str:
    """The name in at most *width* columns, its middle left out: often only the ends tell classes apart."""
    shown, keep = name, len(name)
    while cell_len(shown) > width:
        keep -= 1
        shown = f"{name[: keep - keep // 2]}…{name[len(name) - keep // 2 :]}"
    return shown
