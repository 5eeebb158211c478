"""Accuracy class by class, on answers that are known."""

from dataclasses import replace

import numpy as np

from edgekit.report import compare, page
from edgekit.report.classes import scores
from edgekit.result import Predictions, Result
from tests.report_samples import LABELS, result


def answering(top1: list[int], truth: list[int], labels: tuple[str, ...] = LABELS, **more: object) -> Result:
    found = result(**more)  # type: ignore[arg-type]
    answers = Predictions(dataset="d", images_sha256="0" * 64, truth=tuple(truth), k=1, top=tuple(top1))
    return replace(found, predictions=answers, artifact=replace(found.artifact, labels=labels))


TRUTH = [0] * 10 + [1] * 10
BASE = answering([0] * 9 + [3] + [1] * 10, TRUTH, seed=1)
OTHER = answering([0] * 6 + [2] * 3 + [3] + [1] * 10, TRUTH, target="tflite", precision="int8", seed=2)


def test_each_class_is_counted() -> None:
    first, second = scores(BASE, OTHER)
    assert (first.name, first.images, first.before, first.right, first.change, first.flips) == (
        "0",
        10,
        9,
        6,
        -3,
        3,
    )
    assert (first.taken_for, first.times) == ("2", 3)
    assert (second.name, second.right, second.flips, second.taken_for) == ("1", 10, 0, "")


def test_labels_in_another_order_are_matched_by_name() -> None:
    order = np.roll(np.arange(10), 1)  # label i stands at place order.index(i)
    place = {label: index for index, label in enumerate(order.tolist())}
    labels = tuple(LABELS[i] for i in order)
    turned = answering(
        [place[i] for i in [0] * 6 + [2] * 3 + [3] + [1] * 10], [place[i] for i in TRUTH], labels, seed=3
    )
    assert {one.name: (one.before, one.right, one.flips) for one in scores(BASE, turned)} == {
        "0": (9, 6, 3),
        "1": (10, 10, 0),
    }


def test_the_page_folds_a_table_a_file() -> None:
    same = replace(BASE, artifact=replace(BASE.artifact, file="same.tflite", sha256="9" * 64))
    text = page(compare([BASE, OTHER, same]), title="t", provenance={})
    assert "tflite-fp32</b>, the reference: worst is 0 with 90.0 % of 2 classes" in text
    assert "tflite-int8</b>: 1 of the 2 classes lose, 0 gain, 1 stay" in text
    assert "same: classes" not in text, "not one answer differs"


def test_labels_are_escaped_and_unknown_answers_leave_the_table_out() -> None:
    labels = ("<script>", *LABELS[1:])
    odd = replace(BASE, artifact=replace(BASE.artifact, labels=labels))
    text = page(compare([odd]), title="t", provenance={})
    assert "worst is &lt;script&gt; with 90.0 %" in text
    beyond = answering([12] + [0] * 9 + [1] * 10, TRUTH, seed=1)
    assert "<h3>Classes</h3>" not in page(compare([beyond]), title="t", provenance={})
