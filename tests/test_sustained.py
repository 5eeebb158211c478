"""Minutes without a pause: what is told of them, their chart, and that nothing is ranked by them."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit import artifact as artifacts
from edgekit import report, result
from edgekit.bench import Method, bench
from edgekit.cli import main
from edgekit.device import open_device
from edgekit.errors import UsageError
from edgekit.measure import Measurement, Telemetry
from edgekit.report.sustained import facts, sustained
from edgekit.report.timeline import _ticks, chart
from edgekit.result import Result
from tests import report_samples, tiny_models
from tests.test_bench import SHORT, described, quiet

SVG = "{http://www.w3.org/2000/svg}"


def hot_run(minutes: int = 10, *, tells: bool = True) -> Result:
    """10 ms for half of the time, then 15 ms at half the clock; a single outlier of a second."""
    at_s = np.arange(0, 60 * minutes, 0.05)
    slow = at_s >= 30 * minutes
    ms = np.where(slow, 15.0, 10.0)
    ms[100] = 1000.0
    whole = report_samples.result("tflite", "int8")
    return replace(
        whole,
        settings=replace(whole.settings, sustained_min=float(minutes), threads=4),
        measurement=Measurement(
            samples_ns=tuple((ms * 1e6).astype(int).tolist()),
            starts_ns=tuple((7e9 + at_s * 1e9).astype(int).tolist()),
            blocks=(0,) * len(ms),
            load_ms=1.0,
            first_ms=1.0,
        ),
        telemetry=tuple(
            Telemetry(
                time_ns=int((7 + s) * 1e9),
                temperature_c=50.0 + s / 60,
                clock_mhz=1200.0 if s >= 30 * minutes else 2400.0,
                throttled=s >= 30 * minutes if tells else None,
            )
            for s in range(60 * minutes)
        ),
        predictions=None,
    )


def test_the_figures() -> None:
    found = sustained(hot_run())
    assert found.minutes == pytest.approx(10, abs=0.01)
    assert (found.first_ms, found.last_ms) == (10.0, 15.0)
    assert found.slowest == pytest.approx(0.5)
    assert 5.0 <= found.slowest_min < 10.0
    assert found.throttled_min == found.clock_min == pytest.approx(5.0)
    assert (found.first_mhz, found.last_mhz) == (2400, 1200)
    assert found.first_c == 50
    assert found.highest_c == pytest.approx(60, abs=0.1)


def test_it_is_told_in_words_and_drift_is_no_doubt() -> None:
    run = hot_run()
    assert run.validity.valid
    assert not replace(run, settings=replace(run.settings, sustained_min=0.0)).validity.valid
    assert dict(facts(run)) == {
        "p50": "10.0 ms in the first minute, 15.0 ms in the last (+50.0 %)",
        "slowest": "+50 % against the first minute, 10 s at minute 5.0",
        "throttled": "from minute 5.0 on",
        "clock": "2400 MHz at first, 1200 MHz at last",
        "temperature": "50 C at first, 60 C at most",
    }
    silent = dict(facts(hot_run(tells=False)))
    assert silent["throttled"] == "it does not say so, but its clock fell at minute 5.0"
    mute = replace(run, telemetry=(), notes=("a doubt",))
    assert dict(facts(mute))["throttled"] == "it does not tell"
    assert facts(mute)[-1] == ("doubt", "a doubt")
    cool = replace(run, telemetry=(Telemetry(time_ns=int(8e9), throttled=False),))
    assert dict(facts(cool))["throttled"] == "no"


def test_other_programs_are_still_a_doubt() -> None:
    run = hot_run()
    busy = replace(run, telemetry=tuple(replace(point, other_load=1.5) for point in run.telemetry))
    assert busy.validity.reasons == ("other programs kept 1.5 cores busy",)


def test_a_run_of_seconds_is_told_in_seconds() -> None:
    whole = report_samples.result("tflite", "int8")
    short = replace(whole, settings=replace(whole.settings, sustained_min=0.1), telemetry=())
    assert " s, " in dict(facts(short))["p50"]


def test_the_chart_is_an_svg_with_a_panel_each() -> None:
    run = hot_run()
    root = ET.fromstring(chart(run, alone=True))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "Clock, MHz" in texts
    assert "Temperature, °C" in texts
    assert "Minutes" in texts
    assert len(list(root.iter(f"{SVG}polyline"))) == 3
    reds = [rect for rect in root.iter(f"{SVG}rect") if rect.get("fill") == "#d64545"]
    assert len(reds) == 3
    assert float(reds[0].get("width") or 0) == pytest.approx((760 - 62 - 16) / 2, abs=2)
    bare = ET.fromstring(chart(replace(run, telemetry=()), alone=True))
    assert len(list(bare.iter(f"{SVG}polyline"))) == 1
    evil = replace(run, artifact=replace(run.artifact, file="<b>&.tflite"))
    assert "&lt;b&gt;&amp;" in chart(evil)
    assert _ticks(0.0, 10.0, 5) == [0, 2, 4, 6, 8, 10]


def test_it_is_never_ranked_against_the_others() -> None:
    run = hot_run()
    normal = [
        replace(one, settings=replace(one.settings, threads=4))
        for one in (report_samples.result("tflite", "fp32"), report_samples.result("tflite", "int8"))
    ]
    comparison = report.compare([run, *normal], allow_invalid=True)
    assert comparison.sustained == (run,)
    assert [len(group.rows) for group in comparison.groups] == [2]
    told = report.as_text(comparison)
    assert "tflite-int8 on ThinkPad X1, 4 threads, 10 min without a pause" in told
    assert "from minute 5.0 on" in told
    page = report.page(comparison, title="x", provenance={})
    assert page.count("<svg") == 3, "one of the sustained run, and one of each other file"
    (listed,) = report.as_json(comparison)["sustained"]
    assert listed["figures"]["throttled_min"] == pytest.approx(5.0)
    alone = report.compare([run])
    assert alone.groups == ()
    assert alone.verdict == "No choice can be made: sustained runs are not ranked."
    assert "without a pause" in report.page(alone, title="x", provenance={})


def test_one_file_and_one_thread_count(tmp_path: Path) -> None:
    files = [described(tmp_path, "a"), described(tmp_path, "b")]
    device, method = open_device("fake://pi5"), Method(sustained_min=1.0)
    for given, threads in ((files, (1,)), (files[:1], (1, 2))):
        with pytest.raises(UsageError, match="--sustained runs one file with one thread count"):
            bench(given, device, SHORT, tmp_path, images=None, progress=quiet, threads=threads, method=method)


def test_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    artifacts.write_sidecar(tiny_models.tflite(tmp_path / "a.tflite"))
    assert main(["bench", "a.tflite", "--sustained", "0.1", "--out", "out"]) == 0
    told = capsys.readouterr().out
    assert "1 thread, 0.1 min without a pause" in told
    assert "chart: out/a-sustained.svg" in told
    ET.fromstring(Path("out/a-sustained.svg").read_text())
    found = result.read(Path("out/a-sustained.json"))
    assert found.settings.sustained_min == 0.1
    starts = found.measurement.starts_ns
    assert (starts[-1] - starts[0]) / 1e9 == pytest.approx(6, abs=1)
    assert set(found.measurement.blocks) == {0}
    assert len(found.telemetry) >= 5
    assert main(["compare", "out", "--html", "page.html"]) == 0
    assert "without a pause" in Path("page.html").read_text()


def test_on_a_made_up_device_that_grows_hot(tmp_path: Path) -> None:
    (found,) = bench(
        [described(tmp_path, "a")],
        open_device("fake://pi5"),
        SHORT,
        tmp_path / "out",
        images=None,
        progress=quiet,
        threads=(1,),
        method=Method(sustained_min=10.0),
    )
    told = sustained(found)
    assert told.throttled_min == pytest.approx(5, abs=0.1)
    assert told.last_ms > 1.3 * told.first_ms
    assert (tmp_path / "out/a-sustained.json").is_file()
