"""Whether a file pays: only what the tests call real is a gain or a cost; and the budget that a recipe states."""

import re
from dataclasses import replace

import pytest

from edgekit import recipe
from edgekit.artifact import Parity
from edgekit.errors import RecipeError
from edgekit.report import as_json, as_markdown, as_text, compare, page
from edgekit.report.advice import Advice
from edgekit.result import Result
from tests.report_samples import artifact, predictions, quickstart, result
from tests.test_pipeline import SMALL

BASE = result(seed=1)


def told(other: Result, *more: Result, allow_invalid: bool = False) -> Advice:
    (group,) = compare([BASE, other, *more], allow_invalid=allow_invalid).groups
    return group.advice[0]


@pytest.mark.parametrize(
    ("other", "verdict", "text"),
    [
        (
            result("tflite", "fp16", 0.4, seed=1, size=510_000),
            "pays",
            "tflite-fp16 pays: halves the file, no real difference in speed, no accuracy lost",
        ),
        (
            result("tflite", "int8", 0.1, seed=2, size=250_000),
            "pays",
            "tflite-int8 pays: 4.00x faster, 4.0x smaller, no accuracy lost",
        ),
        (
            result("tflite", "dyn8", 0.6, seed=3, size=970_000),
            "does not pay",
            "tflite-dyn8 does not pay: 1.50x slower; the same size, no accuracy lost",
        ),
        (
            result("tflite", "dyn8", 0.6, seed=3, size=300_000, wrong=80),
            "trade",
            "tflite-dyn8 is a trade: 3.3x smaller, but 1.50x slower and loses 20.6 pt (p < 0.001)",
        ),
        (
            result("onnx", "fp32", 0.4, seed=1),
            "no difference",
            "onnx-fp32 makes no difference: no real difference in speed, the same size, no accuracy lost",
        ),
        (
            result("tflite", "int8", 0.1, seed=2, size=250_000, notes=("throttled",)),
            "cannot tell",
            "tflite-int8 cannot be judged yet: 4.0x smaller, no accuracy lost; its speed is not known (the run is "
            "invalid)",
        ),
        (
            result("tflite", "int8", 0.1, seed=2, size=250_000, visit="visit-2", wrong=None),
            "cannot tell",
            "tflite-int8 cannot be judged yet: 4.0x smaller; its speed is not known (not tested: measured in "
            "another visit); its accuracy is not known (no accuracy was measured)",
        ),
    ],
)
def test_it_says_what_is_gained_and_what_it_costs(other: Result, verdict: str, text: str) -> None:
    found = told(other)
    without_intervals = re.sub(r" \(\d\.\d+-\d\.\d+\)", "", found.text)
    assert (found.verdict, without_intervals) == (verdict, text)


def test_a_slight_difference_in_speed_is_no_cost_though_it_is_real() -> None:
    other = replace(result("tflite", "fp16", 0.4, seed=1, size=510_000), measurement=BASE.measurement)
    slower = replace(BASE.measurement, samples_ns=tuple(round(1.01 * ns) for ns in BASE.measurement.samples_ns))
    found = told(replace(other, measurement=slower))
    assert found.verdict == "pays"
    assert "hardly a difference in speed (1.0 % slower)" in found.text


def test_a_broken_file_never_pays() -> None:
    broken = Parity(images=64, sqnr_db=3.0, top1_agreement=0.5, largest_difference=9.0)
    found = told(result("tflite", "int8", 0.1, seed=2, size=250_000, parity=broken))
    assert found.verdict == "does not pay"
    assert "it is broken (top-1 agrees with the float model on 50.0 %" in found.text


def test_few_images_are_said_to_be_few() -> None:
    few = result("tflite", "int8", 0.1, seed=2, wrong=None)
    few = replace(few, predictions=predictions(3, count=40, first=1))
    base = replace(BASE, predictions=predictions(1, count=40))
    (group,) = compare([base, few]).groups
    assert group.advice[0].text.endswith("no loss shown on 40 images")


def test_an_invalid_run_that_is_allowed_is_said_to_be_one() -> None:
    found = told(result("tflite", "int8", 0.1, seed=2, notes=("throttled",)), allow_invalid=True)
    assert ", though the run is invalid" in found.text


def test_without_a_reference_there_is_none() -> None:
    other = result("tflite", "int8", 0.1, seed=2, threads=4)
    groups = compare([BASE, other], reference="tflite-fp32").groups
    assert [group.advice for group in groups] == [(), ()]


def test_it_stands_in_the_table_the_page_the_markdown_and_the_json() -> None:
    comparison = compare(*quickstart())
    line = comparison.groups[0].advice[2]
    assert (line.name, line.verdict) == ("tflite-int8", "pays")
    assert line.text in as_text(comparison)
    assert f"- {line.text}" in as_markdown(comparison)
    assert as_json(comparison)["groups"][0]["advice"][2] == {
        "name": "tflite-int8",
        "verdict": "pays",
        "text": line.text,
    }
    assert '<li class="pays"><b class="name">tflite-int8</b> pays: 3.32× faster' in page(
        comparison, title="t", provenance={}
    )


def test_of_many_files_the_chief_ones_are_told() -> None:
    many = [result("tflite", "int8", 1 + i / 10, seed=i, file=f"f{i:02}.tflite") for i in range(40)]
    (group,) = compare([result("tflite", "fp32", 9.0), *many]).groups
    assert [row.name for row in group.chief(3)] == ["tflite-fp32", "f00", "f01"]
    text = as_text(compare([result("tflite", "fp32", 9.0), *many]))
    assert text.count(" pays:") == 19
    assert "Whether the other 21 files pay: --html, --json" in text


def test_files_of_another_run_with_the_same_names_are_told_apart() -> None:
    made = [artifact("tflite", "fp32", size=999), artifact("tflite", "fp32", size=998)]
    (group,) = compare([BASE], made).groups
    names = [row.name for row in group.rows]
    assert names == ["tflite-fp32", *(f"tflite-fp32 {one.sha256[:7]}" for one in made)]


# The budget of a recipe.


def test_a_recipe_states_the_budget_of_the_pick() -> None:
    text = SMALL.format(epochs=1, seconds=1)
    found = recipe.parse(f"{text}[report]\nmax_drop = 0.5\nmax_latency_ms = 20\nmax_size_bytes = 4_000_000\n", "x")
    assert (found.report.max_drop, found.report.max_latency_ms, found.report.max_size_bytes) == (
        0.5,
        20.0,
        4_000_000,
    )
    with pytest.raises(RecipeError, match=r"report\.max_drop: -1.0 is out of range; it must be between 0 and 100"):
        recipe.parse(f"{text}[report]\nmax_drop = -1\n", "x")
