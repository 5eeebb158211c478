"""CSV and Markdown of a comparison, and the budgets that a pick has to meet."""

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from edgekit import result as results
from edgekit.errors import UsageError
from edgekit.report import as_csv, as_markdown, compare
from edgekit.report.budget import Budget, milliseconds, size_bytes
from tests.report_samples import predictions, quickstart, result
from tests.test_cli import Told


def four() -> list[results.Result]:
    """Faster, smaller and worse, one after the other: 6, 8, 20 and 60 wrong of 360."""
    return [
        result("tflite", "fp32", 0.4, 6, seed=1, noise=0.002, size=4_000_000),
        result("tflite", "fp16", 0.3, 8, seed=2, noise=0.002, size=2_000_000),
        result("tflite", "int8", 0.2, 20, seed=3, noise=0.002, size=1_000_000),
        result("tflite", "w4", 0.1, 60, seed=4, noise=0.002, size=500_000),
    ]


@pytest.mark.parametrize(
    ("budget", "pick", "reason"),
    [
        (Budget(), "tflite-fp16", "1.333x faster"),
        (
            Budget(max_drop=0.5),
            "tflite-fp32",
            "at most 0.5 points lost: 0.400 ms, 4 MB, the reference",
        ),
        (
            Budget(max_drop=1),
            "tflite-fp16",
            "it is the fastest with at most 1 points lost: 0.300 ms, 2 MB, no",
        ),
        (Budget(max_drop=5), "tflite-int8", "0.200 ms, 1 MB, loses accuracy (-3.9 pt on 360 images, p < 0.001)"),
        (
            Budget(max_latency_ms=0.25),
            "tflite-int8",
            "the most accurate with p50 at most 0.250 ms: 0.200 ms",
        ),
        (Budget(max_latency_ms=0.35), "tflite-fp16", "the most accurate with p50 at most 0.350 ms"),
        (Budget(max_size_bytes=6e5), "tflite-w4", "the most accurate with at most 600 kB"),
        (
            Budget(max_size_bytes=3e6, max_drop=5),
            "tflite-int8",
            "with at most 5 points lost, at most 3 MB",
        ),
        (Budget(max_latency_ms=0.05), "", "(p50 at most 0.0500 ms): the fastest is tflite-w4 at 0.100 ms."),
        (Budget(max_size_bytes=1e5), "", "the smallest is tflite-w4 with 500 kB."),
        (
            Budget(max_latency_ms=0.25, max_drop=1),
            "",
            "the most accurate is tflite-fp32 at +0.0 points",
        ),
    ],
)
def test_the_pick_meets_the_budget(budget: Budget, pick: str, reason: str) -> None:
    [group] = compare(four(), budget=budget).groups
    assert group.choice.pick == pick
    assert reason in group.choice.conclusion


def test_within_room_the_faster_of_two_that_the_test_cannot_tell_apart() -> None:
    """Both fit; 6 and 8 wrong of 360 are not told apart, so the faster one is picked."""
    [group] = compare(four(), budget=Budget(max_latency_ms=1.0)).groups
    assert group.choice.pick == "tflite-fp16"


def test_quantities() -> None:
    assert [milliseconds(text) for text in ("20ms", "350us", "0.5 s")] == pytest.approx([20, 0.35, 500])
    assert [size_bytes(text) for text in ("4MB", "800 kb", "1.5MB")] == [4e6, 8e5, 1.5e6]
    for text in ("20", "ms", "20 min", "0ms", "-3ms"):
        with pytest.raises(UsageError, match=r"a number and a unit \(us, ms, s\), as 20ms"):
            milliseconds(text)


def test_csv_has_a_line_a_row_with_all_figures() -> None:
    found, made = quickstart()
    rows = list(csv.DictReader(StringIO(as_csv(compare(found, made)))))
    assert [row["name"] for row in rows] == [
        "tflite-fp32", "tflite-fp16", "tflite-dyn8", "tflite-int8", "onnx-fp32", "coreml-fp16",
    ]  # fmt: skip
    int8 = rows[3]
    assert (int8["pick"], int8["reference"], int8["valid"], int8["measured"]) == ("true", "false", "true", "true")
    assert float(int8["p50_ms"]) == pytest.approx(0.118, rel=0.05)
    assert float(int8["speed_ratio"]) == pytest.approx(0.3, rel=0.05)
    assert float(int8["top1"]) == pytest.approx(352 / 360)
    assert int8["images"] == "360"
    assert rows[4]["reasons"].startswith("drift of")
    coreml = rows[5]
    assert (coreml["measured"], coreml["p50_ms"], coreml["top1"]) == ("false", "", "")


def test_markdown_is_a_table_whatever_stands_in_a_name() -> None:
    odd = replace(result(file="a|b<script>.tflite", seed=2), predictions=predictions(7))
    text = as_markdown(compare([result(seed=1), odd]))
    lines = text.splitlines()
    assert lines[0] == "## ThinkPad X1, 1 thread"
    assert lines[2].count("|") == 8
    assert "a\\|b&#60;script&#62;" in text
    assert all(line.replace("\\|", "").count("|") == 8 for line in lines if line.startswith("|"))
    assert lines[-1].startswith("**Ship tflite-fp32")


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in four():
        results.write(one, tmp_path / "r" / f"{one.name}.json")
    words = ("compare", str(tmp_path / "r"))
    told = Told(capsys, *words, "--csv", str(tmp_path / "a.csv"), "--markdown", str(tmp_path / "a.md"))
    assert told.status == 0
    assert (tmp_path / "a.csv").read_text().count("\n") == 5
    assert "| tflite-fp16 (the pick) |" in (tmp_path / "a.md").read_text()
    told = Told(capsys, *words, "--max-latency", "0.25ms", "--device", "local")
    assert "Ship tflite-int8: it is the most accurate with p50 at most 0.250 ms" in " ".join(told.out.split())
    told = Told(capsys, *words, "--device", "lokal")
    assert (told.status, "did you mean 'local'" in told.err) == (2, True)
    told = Told(capsys, *words, "--max-drop", "-1")
    assert (told.status, "points of top-1, from 0 to 100" in told.err) == (2, True)
