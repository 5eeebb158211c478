"""The picture of a comparison: what is in it, read from the SVG."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.errors import ResultError
from edgekit.report import compare, draw
from tests.report_samples import DEVICE, quickstart, result


def shown(path: Path) -> list[str]:
    """The texts of an SVG, which matplotlib keeps as comments before their outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_every_file_that_was_measured_is_named_once(tmp_path: Path) -> None:
    found, made = quickstart()
    draw(compare(found, made), tmp_path / "a.svg", "svg")
    texts = shown(tmp_path / "a.svg")
    for name in ("tflite-fp16", "tflite-dyn8", "tflite-int8", "onnx-fp32", "tflite-fp32 (reference)"):
        assert texts.count(name) == 1
    assert "coreml-fp16" not in texts
    assert "ThinkPad X1, 1 thread" in texts


def test_devices_have_panels_and_tenfold_latencies_a_logarithmic_axis(tmp_path: Path) -> None:
    pi = replace(DEVICE, model="Pi \u732b", address="ssh://pi")
    rows = [result(), *(result("tflite", p, t, device=pi) for p, t in (("fp32", 12.0), ("int8", 1.1)))]
    draw(compare(rows), tmp_path / "a.svg", "svg")
    texts = shown(tmp_path / "a.svg")
    assert texts.count("latency, ms (median)") == 2
    assert {"1", "2", "5", "10"} <= set(texts)
    draw(compare(rows), tmp_path / "a.png", "png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_accuracy_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="no file has both a latency and an accuracy; give --data"):
        draw(compare([result(wrong=None)]), tmp_path / "a.png", "png")
    assert not list(tmp_path.iterdir())
