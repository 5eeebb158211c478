"""The search for an int8 file that loses no more accuracy than is allowed, by means that cost more and more.

    int8 as calibrated -> each repair of the weights in turn -> layers in float -> a last resort, such as training

A repair that helps is kept for what comes after it. Of the layers, 1, 2, 4, ... go to float; then the last step is
halved, and what was not needed is given back. Every step is a file, made and measured on labelled images with the
runtime that ships, and no dearer means is tried once one is within the budget. It knows neither converters nor
formats: it is given how to make a file, and what may help.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Repair, RepairStep
from edgekit.sensitivity import Remedy
from edgekit.stats import paired

MOST_FLOAT = 0.5  # of the network's products: a file that keeps more of them in float is no int8 file any more
GIVE_BACK = 8  # files that the last part of the loop makes at most

Classes = npt.NDArray[np.int64]  # (N,), one an image
Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A file's answers to the held-out images, and its size."""

    predicted: Classes
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step by its name, and how to make its file."""

    name: str
    make: Callable[[], Trial]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What the search is to reach, and how it makes files.

    *reference*: the float file's answers, than which the result's may be worse by *max_drop* percentage points.
    *make* gives the file with these repairs that keeps these layers in float. *given*: repairs that all files
    have; *repairs*: what else may be done to the weights, with a name for people, the cheapest first. *remedies*
    is asked for the layers that may go to float, given the repairs that were kept, when those do not suffice.
    *last*: what is tried when nothing else did. *first*: the first step by name.
    """

    max_drop: float
    truth: Classes
    images_sha256: str
    reference: Classes
    make: Callable[[Names, Names], Trial]
    remedies: Callable[[Names], Sequence[Remedy]]
    given: Names = ()
    repairs: Sequence[tuple[str, str]] = ()
    last: Step | None = None
    first: str = "int8 as calibrated"
    tell: Callable[[str], None] = lambda _: None


def search(task: Task) -> tuple[Repair, int]:
    """The cheapest that was found to keep the drop within the budget, else the best; and which step it is."""
    found = _Search(task)
    if not found.repaired() and not found.in_float() and task.last:
        found.tried(task.last)
    return found.result()


class _Search:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.steps: list[RepairStep] = []
        self.repairs = task.given
        self.last_met: int | None = None

    def tried(self, step: Step, repairs: Names = (), layers: Names = ()) -> bool:
        """Whether the step's file is within the budget."""
        self.task.tell(step.name)
        started = time.perf_counter()
        trial = step.make()
        pair = paired(self.task.truth, self.task.reference, trial.predicted)
        drop = round(-100 * pair.difference, 4) + 0.0  # no minus zero
        gain = min((one.drop for one in self.steps), default=drop) - drop
        met = drop <= self.task.max_drop
        self.steps.append(
            RepairStep(
                tried=step.name,
                float_layers=layers,
                repairs=repairs,
                top1=_top1(self.task.truth, trial.predicted),
                drop=drop,
                gain=round(gain, 4) + 0.0,
                kept=met or gain > 0,
                p_value=pair.p_value,
                size_bytes=trial.size_bytes,
                seconds=round(time.perf_counter() - started, 3),
            )
        )
        if met:
            self.last_met = len(self.steps) - 1
        return met

    def met(self, name: str, repairs: Names, remedies: Sequence[Remedy] = ()) -> bool:
        layers = _layers(remedies)
        return self.tried(Step(name=name, make=lambda: self.task.make(repairs, layers)), repairs, layers)

    def repaired(self) -> bool:
        """Whether int8 is within the budget, with repairs of the weights if need be."""
        if self.met(self.task.first, self.repairs):
            return True
        for repair, name in self.task.repairs:
            if self.met(name, (*self.repairs, repair)):
                return True
            if self.steps[-1].kept:
                self.repairs = self.steps[-1].repairs
        return False

    def in_float(self) -> bool:
        """Whether it is with some layers in float."""
        self.give_back(self.fewest(list(self.task.remedies(self.repairs))))
        return self.last_met is not None

    def fewest(self, ranked: list[Remedy]) -> list[Remedy]:
        """The shortest beginning of the ranking that is within the budget; none where none is."""

        def enough(count: int) -> bool:
            return self.met(f"{count} of {len(ranked)} remedies", self.repairs, ranked[:count])

        too_few, count = 0, min(1, len(ranked))
        while too_few < count and not enough(count):
            too_few, count = count, min(2 * count, len(ranked))
        if too_few == count:
            return []
        while count - too_few > 1:
            middle = (count + too_few) // 2
            too_few, count = (too_few, middle) if enough(middle) else (middle, count)
        return ranked[:count]

    def give_back(self, kept: list[Remedy]) -> None:
        """Try to do without some, the dearest first; in groups where there are many."""
        dear = sorted(kept, key=lambda one: -one.cost)
        size = -(-len(dear) // GIVE_BACK)
        for start in range(0, len(dear), max(size, 1)):
            group = dear[start : start + size]
            rest = [one for one in kept if one not in group]
            name = f"without {', '.join(one.name for one in group)}"
            needless = set(_layers(rest)) == set(_layers(kept))  # others have its layers, too
            if rest and (needless or self.met(name, self.repairs, rest)):
                kept = rest

    def result(self) -> tuple[Repair, int]:
        place = self.last_met
        if place is None:
            ends = [(step.drop, len(step.float_layers), number) for number, step in enumerate(self.steps)]
            place = min(ends)[2]
        step = self.steps[place] = replace(self.steps[place], kept=True)
        assert step.p_value is not None
        found = Repair(
            max_drop=self.task.max_drop,
            met=self.last_met is not None,
            drop=step.drop,
            p_value=step.p_value,
            float_top1=_top1(self.task.truth, self.task.reference),
            images=len(self.task.truth),
            images_sha256=self.task.images_sha256,
            float_layers=step.float_layers,
            repairs=step.repairs,
            steps=tuple(self.steps),
        )
        return found, place


def _layers(remedies: Sequence[Remedy]) -> Names:
    return tuple(dict.fromkeys(name for one in remedies for name in one.float_layers))


def _top1(truth: Classes, predicted: Classes) -> float:
    return float((truth == predicted).mean())
