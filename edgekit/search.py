"""The search for the layers of an int8 file to keep in float, so that it loses no more accuracy than is allowed.

    all in int8 -> 1, 2, 4, ... remedies -> halve the last step -> give back what was not needed

Every step is a file, made and measured on labelled images with the runtime that ships. It knows neither
converters nor formats: it is given how to make a file, and what may help.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Repair, RepairStep
from edgekit.sensitivity import Remedy
from edgekit.stats import paired

MOST_FLOAT = 0.5  # of the network's products: a file that keeps more of them in float is no int8 file any more
GIVE_BACK = 8  # files that the last part of the loop makes at most

Classes = npt.NDArray[np.int64]  # (N,), one an image


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A file's answers to the held-out images, and its size."""

    predicted: Classes
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What the search is to reach, and how it makes files.

    *reference*: the float file's answers, than which the result's may be worse by *max_drop* percentage points.
    *make* gives the file that keeps those layers in float; *remedies* is asked only when int8 loses too much.
    """

    max_drop: float
    truth: Classes
    images_sha256: str
    reference: Classes
    make: Callable[[tuple[str, ...]], Trial]
    remedies: Callable[[], Sequence[Remedy]]
    tell: Callable[[str], None] = lambda _: None


def search(task: Task) -> Repair:
    """The fewest layers in float that were found to keep the drop within the budget; else the best that was."""
    found = _Search(task)
    if not found.met("all in int8", []):
        found.give_back(found.fewest(list(task.remedies())))
    return found.result()


class _Search:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.tried: list[tuple[RepairStep, float]] = []  # and the p-value of its drop
        self.last_met: int | None = None

    def met(self, tried: str, remedies: Sequence[Remedy]) -> bool:
        """Whether the file with these remedies is within the budget."""
        layers = tuple(dict.fromkeys(name for one in remedies for name in one.float_layers))
        self.task.tell(tried)
        trial = self.task.make(layers)
        pair = paired(self.task.truth, self.task.reference, trial.predicted)  # type: ignore[arg-type]
        step = RepairStep(
            tried=tried,
            float_layers=layers,
            top1=_top1(self.task.truth, trial.predicted),
            drop=round(-100 * pair.difference, 4) + 0.0,  # no minus zero
            size_bytes=trial.size_bytes,
        )
        self.tried.append((step, pair.p_value))
        if step.drop > self.task.max_drop:
            return False
        self.last_met = len(self.tried) - 1
        return True

    def fewest(self, ranked: list[Remedy]) -> list[Remedy]:
        """The shortest beginning of the ranking that is within the budget; none where none is."""

        def enough(count: int) -> bool:
            return self.met(f"{count} of {len(ranked)} remedies", ranked[:count])

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
            if rest and self.met(f"without {', '.join(one.layer.name for one in group)}", rest):
                kept = rest

    def result(self) -> Repair:
        if self.last_met is None:
            step, p_value = min(self.tried, key=lambda one: (one[0].drop, len(one[0].float_layers)))
        else:
            step, p_value = self.tried[self.last_met]
        return Repair(
            max_drop=self.task.max_drop,
            met=self.last_met is not None,
            drop=step.drop,
            p_value=p_value,
            float_top1=_top1(self.task.truth, self.task.reference),
            images=len(self.task.truth),
            images_sha256=self.task.images_sha256,
            float_layers=step.float_layers,
            steps=tuple(found for found, _ in self.tried),
        )


def _top1(truth: Classes, predicted: Classes) -> float:
    return float((truth == predicted).mean())
