"""The accuracy of one result, and whether it may be compared with another's image by image."""

from dataclasses import dataclass

import numpy as np

from edgekit.result import Predictions, Result
from edgekit.stats import Paired, paired, wilson


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """A share of right answers and its 95 % Wilson interval, in 0 to 1."""

    correct: int
    count: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.correct / self.count


def accuracy(predictions: Predictions | None, k: int) -> Accuracy | None:
    """The top-*k* accuracy, or None where no images were classified or fewer than *k* classes were kept."""
    if predictions is None or not predictions.truth or predictions.k < k:
        return None
    correct, count = predictions.correct(k), len(predictions.truth)
    low, high = wilson(correct, count)
    return Accuracy(correct=correct, count=count, low=low, high=high)


def compare_accuracy(reference: Result, other: Result) -> tuple[Paired | None, str]:
    """The paired comparison of the top-1 predictions, or None and why there is none."""
    first, second = reference.predictions, other.predictions
    if second is None or not second.truth:
        return None, "no accuracy was measured"
    if first is None or not first.truth:
        return None, f"no accuracy was measured for the reference {reference.name}"
    if first.images_sha256 != second.images_sha256:
        return None, f"other images than the reference ({second.dataset}, {len(second.truth)} images)"
    mapping = _mapping(other.artifact.labels, reference.artifact.labels)
    if isinstance(mapping, str):
        return None, mapping
    # A class number without a label stays outside of every label: it is wrong, whatever it is.
    table = np.full(max(np.max(second.truth), np.max(second.top), len(mapping)) + 1, -1)
    table[: len(mapping)] = mapping
    truth = table[np.asarray(second.truth)]
    if not np.array_equal(truth, np.asarray(first.truth)):
        return None, "other true classes than the reference on the same images"
    top1, reference_top1 = table[second.top_NK[:, 0]], first.top_NK[:, 0]
    return paired(first.truth, reference_top1, top1), ""


def _mapping(labels: tuple[str, ...], wanted: tuple[str, ...]) -> list[int] | str:
    """For every class number in *labels* the one in *wanted*, or why there is none."""
    if labels == wanted:
        return list(range(len(wanted)))
    if len(set(labels)) < len(labels) or len(set(wanted)) < len(wanted):
        return "other classes than the reference (a label stands twice, so the order cannot be matched)"
    if set(labels) != set(wanted):
        return f"other classes than the reference ({len(set(labels) ^ set(wanted))} labels are not in both)"
    number = {label: index for index, label in enumerate(wanted)}
    return [number[label] for label in labels]
