"""The comparison: what is claimed, ranked, picked and shown, on results whose figures are known."""

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest

from edgekit.artifact import Parity
from edgekit.errors import ResultError, UsageError
from edgekit.operators import Delegation
from edgekit.report import Comparison, Group, Row, as_json, as_text, compare, make_console, page
from edgekit.report.speed import Speed, ratio_of_pairs, speed
from edgekit.report.words import accuracy_words, figure, p_text, size_words, speed_words
from edgekit.result import Result
from edgekit.stats import Paired
from tests.report_samples import DEVICE, LABELS, artifact, predictions, quickstart, result

FAKE = replace(DEVICE, fake=True)


def only(comparison: Comparison) -> Group:
    assert len(comparison.groups) == 1
    return comparison.groups[0]


def row(comparison: Comparison, name: str) -> Row:
    return next(row for row in only(comparison).rows if row.name == name)


def pair(only_first: int, only_second: int, p_value: float, *, count: int = 500, flips: int = 12) -> Paired:
    return Paired(count=count, only_first=only_first, only_second=only_second, flips=flips, p_value=p_value)


# Words follow the test.


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (pair(9, 2, 0.065), "cannot tell with 500 images: 3,700 would (p = 0.065)"),
        (pair(9, 2, 0.05, count=3600), "no real difference (p = 0.050)"),
        (pair(90, 70, 0.13, count=5000), "no real difference (p = 0.13)"),
        (pair(200, 170, 0.13, count=5000), "cannot tell with 5,000 images: 12,000 would (p = 0.13)"),
        (pair(9, 2, 0.04996), "loses 1.4 pt (p = 0.0500)"),
        (pair(9, 2, 0.003), "loses 1.4 pt (p = 0.003)"),
        (pair(2, 9, 0.0004), "gains 1.4 pt (p < 0.001)"),
        (pair(0, 0, 1.0, flips=0), "the same answers"),
        (replace(pair(9, 2, 0.01), p_corrected=0.06), "cannot tell with 500 images: 3,700 would (p = 0.060)"),
    ],
)
def test_an_accuracy_is_called_different_only_below_a_p_of_5_percent(found: Paired, words: str) -> None:
    assert accuracy_words(found) == words


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Speed(ratio=0.55, low=0.52, high=0.59, p_value=0.001, blocks=5), "1.8x faster (1.7-1.9)"),
        (Speed(ratio=1.5, low=1.48, high=1.52, p_value=0.001, blocks=5), "1.50x slower (1.48-1.52)"),
        (Speed(ratio=0.96, low=0.95, high=0.97, p_value=0.01, blocks=5), "4.2 % faster (3.1-5.3)"),
        (Speed(ratio=0.55, low=0.2, high=1.6, p_value=0.05, blocks=5), "no real difference in speed"),
        (
            Speed(ratio=0.5, untested="measured in another visit"),
            "2.0x faster, not tested: measured in another visit",
        ),
    ],
)
def test_a_speed_is_called_different_only_below_a_p_of_5_percent(found: Speed, words: str) -> None:
    assert speed_words(found) == words


def test_the_tests_of_a_group_are_corrected_for_being_many() -> None:
    """Six lost images of 360 have p = 0.031, which counts alone and not among three files."""
    base, lost = result(wrong=6), result("tflite", "int8", 0.2, 12, seed=2)
    assert row(compare([base, lost]), "tflite-int8").accuracy_words == "loses 1.7 pt (p = 0.031)"
    others = [result("tflite", kind, 0.3, 6, seed=3) for kind in ("fp16", "dyn8")]
    found = compare([base, lost, *others])
    assert row(found, "tflite-int8").accuracy_words == "cannot tell with 360 images: 3,000 would (p = 0.094)"
    assert row(found, "tflite-fp16").accuracy_words == "the same answers"
    pair = row(found, "tflite-int8").paired
    assert pair is not None
    assert (pair.p_value, pair.p_corrected) == pytest.approx((0.03125, 0.09375))
    faster = row(found, "tflite-int8").speed
    assert faster is not None
    assert faster.p_value is not None
    assert faster.p_corrected == pytest.approx(3 * faster.p_value)


def test_figures_keep_three_digits_and_a_size_of_the_same_is_said_so() -> None:
    assert [figure(value) for value in (0.4, 12.0, 123.4, 4321.0)] == ["0.400", "12.0", "123", "4321"]
    assert [size_words(ratio) for ratio in (0.25, 0.97, 2.0)] == ["4.0x smaller", "the same size", "2.0x larger"]
    assert p_text(0.62) == "p = 0.62"


# Speed over paired blocks.


def test_blocks_are_paired_by_number_so_a_common_slowdown_cancels() -> None:
    base, other = result(seed=1, noise=0.002), result("tflite", "int8", 0.2, seed=2, noise=0.002)
    for factor, found in ((1.0, speed(base, other)), (3.0, speed(slowed(base, 3.0), slowed(other, 3.0)))):
        assert found.blocks == 5, factor
        assert found.ratio == pytest.approx(0.5, rel=0.01)
        assert found.low is not None
        assert found.high is not None
        assert found.high / found.low < 1.02
    # The same slowdown on one side only is seen as noise of that side: the interval grows.
    lone = speed(slowed(base, 3.0), other)
    assert lone.low is not None
    assert lone.high is not None
    assert lone.high / lone.low > 2


def slowed(found: Result, factor: float) -> Result:
    """The result with its second block slower by *factor*, as when the whole device slows down."""
    measured = found.measurement
    pairs = zip(measured.samples_ns, measured.blocks, strict=True)
    samples = tuple(round(ns * factor) if block == 1 else ns for ns, block in pairs)
    return replace(found, measurement=replace(measured, samples_ns=samples))


def test_only_common_blocks_are_paired_and_two_are_too_few() -> None:
    base, other = result(seed=1), result("tflite", "int8", 0.2, seed=2)
    for last, blocks, tested in ((3, 4, True), (1, 2, False)):
        keep = [i for i, block in enumerate(other.measurement.blocks) if block <= last]
        samples, starts, numbers = (
            tuple(values[i] for i in keep)
            for values in (other.measurement.samples_ns, other.measurement.starts_ns, other.measurement.blocks)
        )
        cut = replace(other.measurement, samples_ns=samples, starts_ns=starts, blocks=numbers)
        found = speed(base, replace(other, measurement=cut))
        assert (found.blocks, found.p_value is not None) == (blocks, tested)
    assert found.untested == "2 common blocks, 3 needed"


def test_another_visit_gives_a_ratio_without_a_claim() -> None:
    found = speed(result(seed=1), result("tflite", "int8", 0.2, seed=2, visit="visit-2"))
    assert found.ratio == pytest.approx(0.5, rel=0.02)
    assert (found.p_value, found.real) == (None, False)
    assert "another visit" in found.untested


def test_the_t_interval_covers_95_percent_of_5_blocks() -> None:
    """2,000 simulated A/A comparisons: false alarms within four standard errors of 5 %."""
    rng = np.random.default_rng(7)
    medians = np.exp(0.02 * rng.standard_normal((2000, 2, 5)))
    alarms = sum(ratio_of_pairs(first.tolist(), second.tolist()).real for first, second in medians)
    assert alarms / 2000 == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 2000) ** 0.5)


def test_equal_blocks_without_noise_are_decided_by_their_ratio() -> None:
    assert not ratio_of_pairs([1.0] * 5, [1.0] * 5).real
    assert ratio_of_pairs([1.0] * 5, [2.0] * 5).real


# Reference, rows and what may be compared.


def test_the_reference_is_the_named_else_fp32_tflite_else_fp32_else_the_first() -> None:
    int8, onnx, tflite = result("tflite", "int8"), result("onnx", "fp32"), result("tflite", "fp32")
    assert only(compare([int8, onnx, tflite])).reference == "tflite-fp32"
    assert only(compare([int8, onnx])).reference == "onnx-fp32"
    assert only(compare([int8])).reference == "tflite-int8"
    assert only(compare([int8, onnx, tflite], reference="onnx-fp32")).reference == "onnx-fp32"
    renamed = result("onnx", "fp32", file="net.onnx")
    assert only(compare([int8, renamed], reference="onnx-fp32")).reference == "net"


def test_an_unknown_reference_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"unknown reference 'tflite-fp23'.*did you mean 'tflite-fp32'"):
        compare([result()], reference="tflite-fp23")
    with pytest.raises(ResultError, match="nothing to compare"):
        compare([])


def test_devices_and_thread_counts_are_never_merged() -> None:
    other = replace(DEVICE, model="Raspberry Pi 5")
    results = [result(), result(threads=4), result(device=other), result("onnx", "fp32", threads=4)]
    groups = compare(results).groups
    assert [(g.title, len(g.rows)) for g in groups] == [
        ("ThinkPad X1, 1 thread", 1),
        ("ThinkPad X1, 4 threads", 2),
        ("Raspberry Pi 5, 1 thread", 1),
    ]
    assert compare(results).verdict.startswith("Ship tflite-fp32: it is the pick in all 3")


def test_a_reference_that_was_not_measured_on_a_device_is_not_replaced_by_another() -> None:
    results = [result(), result("onnx", "fp32"), result("tflite", "int8", threads=4)]
    second = compare(results, reference="onnx-fp32").groups[1]
    assert (second.reference, second.choice.pick) == ("", "")
    assert "the reference was not measured on this device" in second.choice.conclusion


def test_rows_of_one_name_are_told_apart() -> None:
    delegates = [result(), replace(result(), settings=replace(result().settings, delegate="gpu"))]
    assert [r.name for r in only(compare(delegates)).rows] == ["tflite-fp32 xnnpack", "tflite-fp32 gpu"]
    assert [r.name for r in only(compare([result(), result()])).rows] == ["tflite-fp32 #1", "tflite-fp32 #2"]


def test_a_file_without_a_result_stands_in_every_group_as_not_measured() -> None:
    coreml = artifact("coreml", "fp16", size=500_000)
    results = [result(), result(threads=4)]
    for group in compare(results, [results[0].artifact, coreml]).groups:
        assert [r.name for r in group.rows] == ["tflite-fp32", "coreml-fp16"]
        missing = group.rows[1]
        assert (missing.left_out, missing.size_ratio, missing.latency) == ("not measured here", 0.5, None)
    assert "coreml-fp16" not in only(compare([result()], [coreml])).choice.left_out
    alone = only(compare([], [coreml]))
    assert (alone.title, alone.choice.conclusion) == (
        "Not measured",
        "No choice can be made: no file was measured here.",
    )


def test_the_accuracy_on_other_images_is_not_compared() -> None:
    other = replace(result("tflite", "int8", 0.2), predictions=predictions(9, images="other"))
    found = row(compare([result(), other]), "tflite-int8")
    assert found.paired is None
    assert "other images" in found.incomparable
    assert only(compare([result(), other])).choice.pick == "tflite-fp32"
    assert "tflite-int8 (other images" in only(compare([result(), other])).choice.left_out


def test_labels_in_another_order_are_matched_by_name() -> None:
    base, other = result(wrong=4), result("tflite", "int8", 0.2, wrong=4)
    turned = tuple(reversed(LABELS))
    assert other.predictions is not None
    mirrored = replace(
        other.predictions,
        truth=tuple(9 - t for t in other.predictions.truth),
        top=tuple(9 - t for t in other.predictions.top),
    )
    other = replace(other, artifact=replace(other.artifact, labels=turned), predictions=mirrored)
    found = row(compare([base, other]), "tflite-int8").paired
    assert found is not None
    assert (found.flips, found.only_first, found.only_second) == (0, 0, 0)


def test_other_classes_or_doubled_labels_or_other_truth_are_not_compared() -> None:
    base, other = result(), result("tflite", "int8", 0.2)
    renamed = replace(other, artifact=replace(other.artifact, labels=(*LABELS[:9], "nine")))
    assert "2 labels are not in both" in row(compare([base, renamed]), "tflite-int8").incomparable
    doubled = replace(other, artifact=replace(other.artifact, labels=(*LABELS[:9], "0")))
    assert "stands twice" in row(compare([base, doubled]), "tflite-int8").incomparable
    assert other.predictions is not None
    shifted = replace(other.predictions, truth=tuple((t + 1) % 10 for t in other.predictions.truth))
    wrong = row(compare([base, replace(other, predictions=shifted)]), "tflite-int8")
    assert "other true classes" in wrong.incomparable


# Ranking.


def test_the_pick_is_the_fastest_that_loses_no_real_accuracy() -> None:
    results = [
        result("tflite", "fp32", 0.4, 6, seed=1, size=4_000_000),
        result("tflite", "dyn8", 0.3, 6, seed=2, size=1_100_000),
        result("tflite", "int8", 0.2, 8, first=2, seed=3, size=1_000_000),
        result("tflite", "w4", 0.1, 40, seed=4, size=600_000),
    ]
    group = only(compare(results))
    assert group.choice.pick == "tflite-int8"
    assert group.choice.pareto == ("tflite-w4", "tflite-int8", "tflite-dyn8")
    assert group.rows[3].accuracy_words == "loses 9.4 pt (p < 0.001)"
    for clause in (
        "Ship tflite-int8: against tflite-fp32, 1.99",
        "x faster (",
        "4.0x smaller",
        "-0.6 pt on 360 images",
    ):
        assert clause in group.choice.conclusion


def test_among_the_equally_fast_the_smaller_file_is_picked() -> None:
    results = [
        result("tflite", "fp32", 0.4, seed=1, size=4_000_000),
        result("tflite", "fp16", 0.4, seed=2, size=2_000_000),
    ]
    assert only(compare(results)).choice.pick == "tflite-fp16"
    assert "no real difference in speed, 2.0x smaller" in compare(results).verdict


def test_a_broken_file_is_never_picked() -> None:
    broken = Parity(images=64, sqnr_db=3.0, top1_agreement=0.5, largest_difference=9.0)
    group = only(compare([result(), result("tflite", "int8", 0.1, seed=2, parity=broken)]))
    assert group.choice.pick == "tflite-fp32"
    assert "tflite-int8 (broken: top-1 agrees with the float model on 50.0 %" in group.choice.left_out


def test_an_invalid_run_is_shown_but_not_ranked_unless_allowed() -> None:
    results = [result(seed=1), result("tflite", "int8", 0.1, seed=2, notes=("the delegate fell back",))]
    group = only(compare(results))
    assert (group.choice.pick, group.choice.pareto) == ("tflite-fp32", ("tflite-fp32",))
    assert group.choice.left_out == ("Left out of the ranking: 1 of 2 runs: tflite-int8 (the delegate fell back).")
    assert group.rows[1].speed_words == "no claim: the run is invalid"
    allowed = only(compare(results, allow_invalid=True))
    assert (allowed.choice.pick, allowed.choice.left_out) == ("tflite-int8", "")
    assert allowed.rows[1].speed_words.endswith("; the run is invalid")


def test_operators_that_xnnpack_left_are_told_and_cost_no_rank() -> None:
    part = Delegation(total=112, taken=92, left={"LOG_SOFTMAX": 1, "HARD_SWISH": 19})
    whole = Delegation(total=112, taken=112)
    results = [
        replace(result(seed=1), delegation=whole),
        replace(result("tflite", "int8", 0.1, seed=2), delegation=part),
    ]
    comparison = compare(results)
    words = "xnnpack took 92 of 112 operators; left: HARD_SWISH 19, LOG_SOFTMAX 1"
    assert only(comparison).choice.pick == "tflite-int8"
    assert f"~ tflite-int8: {words}" in as_text(comparison)
    assert as_text(comparison).count("operators;") == 1
    assert "Xnnpack took 92 of 112 operators" in page(comparison, title="t", provenance={})
    found = as_json(comparison)["groups"][0]["rows"]
    assert [row["delegation"]["taken"] for row in found] == [112, 92]


def test_nothing_is_picked_against_an_invalid_reference() -> None:
    """The one valid file may well be the slowest."""
    results = [result(seed=1, notes=("throttled",)), result("tflite", "int8", 0.1, seed=2)]
    group = only(compare(results))
    assert group.rows[1].speed_words == "no claim: the reference's run is invalid"
    assert group.choice.pick == ""
    assert "the run of the reference tflite-fp32 is invalid" in group.choice.conclusion


def test_a_file_that_looked_faster_in_an_invalid_run_is_named() -> None:
    results = [result(seed=1), result("tflite", "int8", 0.1, seed=2, notes=("throttled",))]
    choice = only(compare(results)).choice
    assert choice.pick == "tflite-fp32"
    assert "In invalid runs tflite-int8 looked faster: measure again" in choice.conclusion


def test_when_every_run_is_invalid_there_is_no_choice_and_a_way_out() -> None:
    results = [result(seed=1, drift=0.3), result("tflite", "int8", 0.1, seed=2, notes=("throttled",))]
    choice = only(compare(results)).choice
    assert (choice.pick, choice.pareto) == ("", ())
    assert "none of the 2 runs is valid" in choice.conclusion
    assert "--allow-invalid" in choice.conclusion
    assert "Close other programs and run again" in choice.conclusion


@pytest.mark.parametrize("allow_invalid", [False, True])
def test_a_fake_device_is_never_ranked(allow_invalid: bool) -> None:
    results = [result(device=FAKE), result("tflite", "int8", 0.1, device=FAKE)]
    group = only(compare(results, allow_invalid=allow_invalid))
    assert (group.choice.pick, group.choice.pareto) == ("", ())
    assert "2 of 2 runs: measured on a fake device" in group.choice.left_out
    assert group.rows[1].speed_words == "no claim: a fake device"


def test_without_accuracy_the_fastest_is_named_but_not_picked() -> None:
    results = [result(wrong=None, seed=1), result("tflite", "int8", 0.1, wrong=None, seed=2)]
    choice = only(compare(results)).choice
    assert choice.pick == ""
    assert "The fastest is tflite-int8 at 0.100 ms" in choice.conclusion


def test_a_run_without_samples_is_shown() -> None:
    empty = replace(result().measurement, samples_ns=(), starts_ns=(), blocks=())
    comparison = compare([result(), replace(result("onnx", "fp32"), measurement=empty)])
    assert row(comparison, "onnx-fp32").left_out == "no samples"
    assert "onnx-fp32" in as_text(comparison)


# Table and JSON.


def samples() -> list[Comparison]:
    results, artifacts = quickstart()
    long = result("onnx", "fp32", 123.4, file="a_file_with_a_very_long_name_that_no_table_has_room_for_v2.onnx")
    fallen = result("tflite", "int8", notes=("the delegate fell back to the CPU for 12 of 60 operators",))
    return [
        compare(results, artifacts),
        compare([*results, result(threads=4)], artifacts, allow_invalid=True),
        compare([*results, long, fallen, result("tflite", "w8", visit="visit-2", wrong=None)]),
        compare([], artifacts),
    ]


@pytest.mark.parametrize("number", range(4))
def test_the_table_fits_100_columns_and_is_plain_in_a_pipe(number: int) -> None:
    text = as_text(samples()[number])
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text


def test_the_table_marks_doubt_and_says_why() -> None:
    text = as_text(samples()[0])
    lines = text.splitlines()
    assert any(line.startswith(" >* tflite-int8") for line in lines)
    assert any("onnx-fp32" in line and "0.185?" in line for line in lines)
    assert "drift of +8 % between the halves of the run" in text
    assert "Ship tflite-int8: against tflite-fp32" in text
    allowed = as_text(compare(*quickstart(), allow_invalid=True))
    assert "? onnx-fp32: drift of +8 %" in allowed


def test_markup_in_names_is_shown_as_it_is() -> None:
    text = as_text(compare([result(file="[red]net[/red].tflite"), result("onnx", "fp32", 0.2)]))
    assert "[red]net[/red]" in text.replace("\n", "")


def test_a_console_on_a_pipe_is_100_columns_wide() -> None:
    assert make_console(StringIO()).width == 100


@pytest.mark.parametrize("number", range(4))
def test_the_json_survives_a_round_trip(number: int) -> None:
    value = as_json(samples()[number])
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_the_json_holds_the_figures_of_the_table() -> None:
    value = as_json(samples()[0])
    group = value["groups"][0]
    int8 = next(row for row in group["rows"] if row["name"] == "tflite-int8")
    assert (group["pick"], group["reference"], len(group["rows"])) == ("tflite-int8", "tflite-fp32", 6)
    assert int8["latency"]["p50_ms"] == pytest.approx(0.118, rel=0.02)
    assert (int8["top1"]["correct"], int8["top1"]["count"]) == (352, 360)
    assert int8["paired"]["difference"] == pytest.approx(-2 / 360)
    assert int8["speed"]["real"] is True
    assert group["rows"][5]["measured"] is False
