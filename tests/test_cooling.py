"""Pauses before a block on a device that is too hot: the real agent on this machine, with a stand-in for a Pi."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit import report
from edgekit.bench import bench
from edgekit.cli.bench import _cool_down
from edgekit.device import Outcome, open_device
from edgekit.measure import Cooling
from edgekit.recipe import BenchSpec
from edgekit.report.words import cooling_words
from tests import tiny_models
from tests.test_agent import program
from tests.test_devices import job_of

_ = program  # a fixture
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a Pi is a Linux machine")

# Hot until it was asked so often; each question about throttling counts.
PI = """#!/bin/sh
count=$(cat {place}/count 2>/dev/null || echo 0)
case $1 in
    measure_temp) if [ $count -lt {hot} ]; then echo "temp=82.5'C"; else echo "temp=60.0'C"; fi;;
    get_throttled)
        echo $((count + 1)) > {place}/count
        if [ $count -ge {from_} ] && [ $count -lt {until} ]
        then echo "throttled={flags}"; else echo "throttled=0x0"; fi;;
esac
"""


def pi(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    hot: int,
    from_: int = 2,
    until: int | None = None,
    flags: str = "0x4",
) -> None:
    """This machine is a Pi that is hot; the first questions come before the first block."""
    if list(Path("/sys/class/thermal").glob("thermal_zone*")):
        pytest.skip("this machine has temperatures of its own")
    shim = place / "shims"
    shim.mkdir()
    (shim / "vcgencmd").write_text(
        PI.format(place=place, hot=hot, from_=from_, until=hot if until is None else until, flags=flags)
    )
    (shim / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim}:{os.environ['PATH']}")


def measured(folder: Path, **changes: Any) -> tuple[Outcome, list[str]]:
    told: list[str] = []
    job = job_of(folder, [tiny_models.tflite(folder / "a.tflite")], **{"cool_down_seconds": 30.0, **changes})
    (outcome,) = open_device("local").run(job, lambda text, share: told.append(text))
    assert outcome.error == ""
    assert outcome.measurement is not None
    assert set(outcome.measurement.blocks) == {0, 1}
    return outcome, told


def test_a_hot_device_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi(tmp_path, monkeypatch, hot=6)
    outcome, told = measured(tmp_path)
    (pause,) = outcome.cooling
    assert (pause.block, pause.from_c, pause.to_c, pause.enough) == (0, 82.5, 60.0, True)
    assert 1.0 <= pause.seconds < 30
    assert "a: cools down from 82 C, 0 s" in told


def test_it_does_not_wait_for_ever_and_not_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi(tmp_path, monkeypatch, hot=10_000, from_=9_999)  # hot, but not slowed
    outcome, _ = measured(tmp_path, cool_down_seconds=2.0)
    (pause,) = outcome.cooling
    assert (pause.block, pause.to_c, pause.enough) == (0, 82.5, False)
    assert pause.seconds >= 2.0


@pytest.mark.parametrize(("changes", "flags"), [({"cool_down_seconds": 0.0}, "0x4"), ({}, "0x1")])
def test_where_it_is_off_or_heat_is_not_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], flags: str
) -> None:
    """0x1: the supply is weak, which a pause does not cure."""
    pi(tmp_path, monkeypatch, hot=10_000 if changes else 0, until=10_000, flags=flags)
    outcome, told = measured(tmp_path, **changes)
    assert outcome.cooling == ()
    assert not any("cools" in text for text in told)


def test_a_device_that_tells_no_temperature_is_not_waited_for(tmp_path: Path) -> None:
    if list(Path("/sys/class/thermal").glob("thermal_zone*")):
        pytest.skip("this machine has temperatures")
    assert measured(tmp_path)[0].cooling == ()


def test_pauses_stand_in_the_result_and_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi(tmp_path, monkeypatch, hot=6)
    spec = BenchSpec(samples=130, seconds=0.2, blocks=2, warmup=2, warmup_seconds=0.0)
    artifact = tiny_models.tflite(tmp_path / "a.tflite")
    out = tmp_path / "out"
    (found,) = bench([artifact], open_device("local"), spec, out, images=None, progress=lambda text, share: None)
    assert len(found.cooling) == 1
    comparison = report.compare([found])
    assert "~ a: cooled down for" in report.as_text(comparison)
    assert report.as_json(comparison)["groups"][0]["rows"][0]["cooling"][0]["to_c"] == 60.0
    assert "Cooled down for" in report.page(comparison, title="x", provenance={})


def test_the_limit_is_the_kernels_where_it_tells(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "zone"
    zone.mkdir()
    monkeypatch.setattr(program.Probe, "flags", lambda self: None)
    probe = program.Probe(list)
    probe.zones = [str(zone)]
    monkeypatch.setattr(program.platform, "machine", lambda: "aarch64")
    assert probe.slows_at() == 80
    for number, (kind, degrees) in enumerate(
        [("passive", 70), ("passive", 85), ("critical", 110), ("passive", 0)]
    ):
        (zone / f"trip_point_{number}_type").write_text(kind)
        (zone / f"trip_point_{number}_temp").write_text(str(1000 * degrees))
    assert probe.slows_at() == 85
    (zone / "temp").write_text("71500\n")
    assert probe.temperature() == 71.5


def test_a_count_of_throttling_that_rises_is_heat(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([7, 7, 8, 8])
    monkeypatch.setattr(program.Probe, "flags", lambda self: None)
    monkeypatch.setattr(program.Probe, "count", lambda self: next(counts))
    probe = program.Probe(list)
    assert [probe.slowed() for _ in range(3)] == [False, True, False]


def test_words() -> None:
    pause = Cooling(block=1, seconds=20.4, from_c=80.0, to_c=64.0, enough=True)
    assert cooling_words([pause]) == "cooled down for 20 s in 1 pause"
    short = Cooling(block=2, seconds=120.0, from_c=80.0, to_c=79.0, enough=False)
    assert cooling_words([pause, short]) == "cooled down for 140 s in 2 pauses, 1 of them too short"
    assert (_cool_down("off"), _cool_down("45")) == (0.0, 45.0)
