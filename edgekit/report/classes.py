"""Accuracy class by class: the worst of the reference, and what each other file changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from edgekit.report.cells import plain_table, typeset
from edgekit.report.compare import Group
from edgekit.report.rows import Row
from edgekit.result import Result

SHOWN = 10  # classes a file


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """One class on its *images*: right answers of the reference and of this file, and answers that differ.

    *taken_for*: its most frequent wrong answer by this file, *times*; empty where there is none.
    """

    name: str
    images: int
    before: int
    right: int
    flips: int
    taken_for: str = ""
    times: int = 0

    @property
    def change(self) -> int:
        return self.right - self.before


def scores(reference: Result, other: Result) -> list[ClassScore]:
    """Each class that has images, in the order of the labels. Both saw the same images, with the same labels."""
    assert reference.predictions is not None
    assert other.predictions is not None
    labels = other.artifact.labels
    own = {label: index for index, label in enumerate(labels)}
    table = np.asarray([own[label] for label in reference.artifact.labels])
    truth, answers = np.asarray(other.predictions.truth), other.predictions.top_NK[:, 0]
    theirs = table[reference.predictions.top_NK[:, 0]]
    count = len(labels)
    right, wrong = answers == truth, answers != truth
    images, rights = np.bincount(truth, minlength=count), np.bincount(truth[right], minlength=count)
    before = np.bincount(truth[theirs == truth], minlength=count)
    flips = np.bincount(truth[theirs != answers], minlength=count)
    pairs, times = np.unique(truth[wrong] * count + answers[wrong], return_counts=True)
    order = np.lexsort((-times, pairs // count))  # of each class its most frequent mistake first
    classes, first = np.unique((pairs // count)[order], return_index=True)
    mistakes, taken_for = np.zeros(count, np.int64), np.zeros(count, np.int64)
    mistakes[classes], taken_for[classes] = times[order][first], (pairs % count)[order][first]
    columns = (column.tolist() for column in (images, before, rights, flips, mistakes, taken_for))
    return [
        ClassScore(
            name=name,
            images=of,
            before=then,
            right=now,
            flips=differ,
            taken_for=labels[other_class] if number else "",
            times=number,
        )
        for name, of, then, now, differ, number, other_class in zip(labels, *columns, strict=True)
        if of
    ]


def section(group: Group, rows: Sequence[Row]) -> str:
    """The page's tables, one for each of the *rows* with comparable answers, each folded away."""
    base = next((row.result for row in group.rows if row.is_reference and row.top1), None)
    if base is None or not _sound(base):
        return ""
    parts = []
    for row in rows:
        result = row.result
        if result and row.top1 and _sound(result) and (row.is_reference or (row.paired and row.paired.flips)):
            parts.append(_details(row, scores(base, result)))
    return "<h3>Classes</h3>\n" + "\n".join(parts) if parts else ""


def _sound(result: Result) -> bool:
    """Whether its answers are all classes with a label of their own."""
    labels, found = result.artifact.labels, result.predictions
    return found is not None and len(set(labels)) == len(labels) > max(np.max(found.truth), np.max(found.top))


def _details(row: Row, found: Sequence[ClassScore]) -> str:
    name = f'<b class="name">{escape(row.name)}</b>'
    if row.is_reference:
        shown = sorted(found, key=lambda one: (one.right / one.images, -one.images))[:SHOWN]
        heads: tuple[str, ...] = ("Class", "Images", "Top-1", "Mostly taken for")
        cells: list[tuple[str, ...]] = [
            (one.name, str(one.images), _percent(one.right, one.images), _mistake(one)) for one in shown
        ]
        worst = shown[0]
        told = f"worst is {escape(worst.name)} with {_percent(worst.right, worst.images)}"
        summary = f"{name}, the reference: {told} of {len(found)} classes"
    else:
        shown = sorted(found, key=lambda one: (-abs(one.change), -one.flips))[:SHOWN]
        heads = ("Class", "Images", "Reference", "Top-1", "Change", "Flips", "Mostly taken for")
        cells = [
            (
                one.name,
                str(one.images),
                _percent(one.before, one.images),
                _percent(one.right, one.images),
                typeset(f"{100 * one.change / one.images:+.1f} pt" if one.change else "0"),
                str(one.flips),
                _mistake(one),
            )
            for one in shown
        ]
        lost, gained = sum(one.change < 0 for one in found), sum(one.change > 0 for one in found)
        same = len(found) - lost - gained
        summary = f"{name}: {lost} of the {len(found)} classes lose, {gained} gain, {same} stay"
    return (
        f'<details class="operators"><summary>{summary}</summary>\n'
        f"{plain_table(f'{row.name}: classes', heads, cells)}</details>"
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _mistake(one: ClassScore) -> str:
    return f"{one.taken_for} ({one.times})" if one.times else "–"
