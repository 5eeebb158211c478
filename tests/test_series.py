"""The runs over time: what the charts draw of blocks, summaries, clock and temperature."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from edgekit.measure import Measurement, Summary, Telemetry
from edgekit.report import compare, page
from edgekit.report.timeline import IN_SECONDS, chart
from edgekit.result import Result
from tests.report_samples import result

SVG = "{http://www.w3.org/2000/svg}"
BEGIN, BLOCK_S, TURN_S = 7_000_000_000, 12.0, 60.0


def in_turns(blocks: int = 5, count: int = 200, ms: float = 10.0, telemetry: bool = True) -> Result:
    """Blocks of 12 s, one a minute, each 1 ms slower than the one before."""
    at_s = np.concatenate([TURN_S * block + np.linspace(0, BLOCK_S, count) for block in range(blocks)])
    times_ms = np.repeat(ms + np.arange(blocks), count)
    measured = Measurement(
        samples_ns=tuple((times_ms * 1e6).astype(int).tolist()),
        starts_ns=tuple((BEGIN + at_s * 1e9).astype(int).tolist()),
        blocks=tuple(np.repeat(np.arange(blocks), count).tolist()),
        load_ms=1.0,
        first_ms=1.0,
    )
    told = tuple(
        Telemetry(time_ns=BEGIN + int(i * 60e9), temperature_c=50.0 + i, clock_mhz=1800.0, throttled=i == 3)
        for i in range(blocks)
    )
    return replace(result("tflite", "int8"), measurement=measured, telemetry=told if telemetry else ())


def lines(one: Result, colour: str) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(chart(one, alone=True))
    found = [line for line in root.iter(f"{SVG}polyline") if line.get("stroke") == colour]
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in str(line.get("points")).split())]
        for line in found
    ]


def test_each_block_has_a_line_where_it_ran() -> None:
    drawn = lines(in_turns(), "#3b6fd4")
    assert len(drawn) == 5
    wide = drawn[-1][-1][0] - drawn[0][0][0]
    for block, line in enumerate(drawn):
        assert (line[0][0] - drawn[0][0][0]) / wide == pytest.approx(
            TURN_S * block / (4 * TURN_S + BLOCK_S), abs=0.01
        )
        assert (line[-1][0] - line[0][0]) / wide == pytest.approx(BLOCK_S / (4 * TURN_S + BLOCK_S), abs=0.01)
    heights = [line[0][1] for line in drawn]
    assert heights == sorted(heights, reverse=True), "up is slower"
    assert np.diff(heights) == pytest.approx(heights[1] - heights[0], abs=0.2)


def test_clock_and_temperature_stand_beside_it_and_throttling_is_marked() -> None:
    root = ET.fromstring(chart(in_turns(), alone=True))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {"Clock, MHz", "Temperature, °C", "Minutes"} <= set(texts)
    assert [rect.get("fill") for rect in root.iter(f"{SVG}rect")].count("#d64545") == 3
    assert len(lines(in_turns(), "#d9822b")) == 1


def test_a_short_run_counts_seconds_and_few_samples_are_one_level() -> None:
    short = in_turns(blocks=2, count=5)
    assert short.measurement.starts_ns[-1] - BEGIN < IN_SECONDS * 60e9
    drawn = lines(short, "#3b6fd4")
    assert [len(line) for line in drawn] == [2, 2]
    assert drawn[0][0][1] == drawn[0][1][1]
    texts = ["".join(text.itertext()) for text in ET.fromstring(chart(short, alone=True)).iter(f"{SVG}text")]
    assert "Seconds" in texts


def test_summaries_are_a_level_for_each_block() -> None:
    blocks = tuple(
        Summary(
            block=i,
            start_ns=BEGIN + int(i * 60e9),
            count=1200,
            min_ns=9e6,
            p5_ns=9.5e6,
            median_ns=1e7 + i * 1e6,
            p95_ns=1.2e7,
            max_ns=2e7,
            mean_ns=1e7,
            std_ns=1e5,
        )
        for i in range(5)
    )
    whole = in_turns()
    phone = replace(
        whole, measurement=replace(whole.measurement, samples_ns=(), starts_ns=(), blocks=(), summaries=blocks)
    )
    drawn = lines(phone, "#3b6fd4")
    assert [len(line) for line in drawn] == [2] * 5
    assert lines(phone, "#d9822b"), "its temperature is drawn from the first block on"
    assert "5 blocks, medians 10 to 14 ms" in page(compare([phone]), title="t", provenance={})


def test_one_inference_is_drawn() -> None:
    one = in_turns(blocks=1, count=1)
    assert [len(line) for line in lines(one, "#3b6fd4")] == [2]


def test_the_page_says_what_happened_and_what_is_not_told() -> None:
    text = page(compare([in_turns(), result("tflite", "fp32")]), title="t", provenance={})
    assert "tflite-int8</b>: 5 blocks, medians 10 to 14 ms, 50 to 54 °C, 1800 MHz</summary>" in text
    assert "Red: the device throttled." in text
    assert "The device does not tell its temperature and clock." in text
    assert text.count('<details class="series">') == 2


def test_names_are_escaped() -> None:
    evil = in_turns()
    evil = replace(evil, artifact=replace(evil.artifact, file='"><script>x</script>.tflite'))
    assert "<script>x" not in page(compare([evil]), title="t", provenance={})
