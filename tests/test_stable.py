"""--repeat-until-stable: when it ends, what it keeps, what it says."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edgekit import artifact as artifacts
from edgekit import result
from edgekit.bench import Incomplete, Method, bench
from edgekit.cli import main
from edgekit.device import BenchJob, Outcome, Progress, open_device
from edgekit.errors import UsageError
from edgekit.measure import Measurement
from edgekit.recipe import BenchSpec
from tests import tiny_models
from tests.test_bench import SHORT, Stub, described

COUNT = 200


@dataclass
class Wandering(Stub):
    """Each visit has the median that *medians_ms* gives; of those in *doubtful* the device itself has a doubt."""

    medians_ms: tuple[float, ...] = ()
    doubtful: tuple[int, ...] = ()
    visits: int = 0
    errors: Mapping[str, str] = field(default_factory=dict)

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        median_ns, doubt = int(1e6 * self.medians_ms[self.visits]), self.visits in self.doubtful
        self.visits += 1
        progress("block", 0.5)
        measurement = Measurement(
            samples_ns=(median_ns,) * COUNT,
            starts_ns=tuple(range(COUNT)),
            blocks=(0,) * COUNT,
            load_ms=1.0,
            first_ms=1.0,
        )
        outcome = Outcome(
            measurement=measurement,
            runtime="stub",
            runtime_version="1",
            delegate="none",
            notes=("busy",) if doubt else (),
        )
        return (outcome,) * len(job.entries)


def repeat(folder: Path, device: Any, *, said: list[str] | None = None, told: list[str] | None = None) -> float:
    """The median that is kept."""
    (found,) = bench(
        [described(folder, "a")],
        device,
        SHORT,
        folder / "out",
        images=None,
        progress=lambda text, share: told.append(text) if told is not None else None,
        method=Method(repeat=True),
        say=(said if said is not None else []).append,
    )
    return found.measurement.samples_ns[0] / 1e6


def tries(folder: Path) -> list[float]:
    paths = sorted((folder / "out/tries").glob("*/a.json"))
    return [result.read(path).measurement.samples_ns[0] / 1e6 for path in paths]


def kept(folder: Path) -> float:
    return result.read(folder / "out/a.json").measurement.samples_ns[0] / 1e6


def test_two_that_agree_are_enough(tmp_path: Path) -> None:
    said, told = list[str](), list[str]()
    device = Wandering(medians_ms=(1.0, 1.2, 1.25))
    assert repeat(tmp_path, device, said=said, told=told) == 1.25
    assert said == [
        "try 1 of at most 5: a 1 ms",
        "try 2 of at most 5: a 1.2 ms (+20.0 %)",
        "try 3 of at most 5: a 1.25 ms (+4.2 %)",
    ]
    assert "try 2: block" in told
    assert tries(tmp_path) == [1.0, 1.2, 1.25]
    assert kept(tmp_path) == 1.25
    assert repeat(tmp_path, Wandering(medians_ms=(2.0, 2.0))) == 2.0
    assert tries(tmp_path) == [2.0, 2.0]  # none of those before are left


def test_an_invalid_one_does_not_end_it(tmp_path: Path) -> None:
    said: list[str] = []
    assert repeat(tmp_path, Wandering(medians_ms=(1.0, 1.0, 1.0), doubtful=(1,)), said=said) == 1.0
    assert said[1] == "try 2 of at most 5: a 1 ms (+0.0 %), invalid: busy"
    assert len(said) == 3


@pytest.mark.parametrize(
    ("medians_ms", "doubtful", "keeps", "words"),
    [
        (
            (1, 2, 3, 4, 5),
            (),
            5,
            "in the last a lay +25.0 % from the try before; kept is try 5, the last valid one",
        ),
        ((1, 2, 3, 4, 5), (3, 4), 3, "the last was invalid (a: busy); kept is try 3, the last valid one"),
        (
            (1, 1, 1, 1, 1),
            range(5),
            1,
            "the last was invalid (a: busy); no try was valid, and the last one is kept",
        ),
    ],
)
def test_what_is_never_stable_fails_with_the_reason(
    tmp_path: Path, medians_ms: tuple[float, ...], doubtful: tuple[int, ...], keeps: float, words: str
) -> None:
    with pytest.raises(Incomplete) as caught:
        repeat(tmp_path, Wandering(medians_ms=medians_ms, doubtful=tuple(doubtful)))
    assert str(caught.value) == f"stub: not stable after 5 tries: {words}"
    assert [one.measurement.samples_ns[0] for one in caught.value.results] == [keeps * 1e6]
    assert kept(tmp_path) == keeps
    assert len(tries(tmp_path)) == 5


def test_made_up_and_emulated_devices_never_become_stable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"fake://pi5 is a fake device, whose runs are never valid"):
        repeat(tmp_path, open_device("fake://pi5"))
    device = Wandering(medians_ms=(1.0,))
    device.info = replace(device.info, emulated=True)
    with pytest.raises(UsageError, match="stub is an emulated device"):
        repeat(tmp_path, device)
    assert device.visits == 0


def test_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it becomes stable is the machine's: the exit status and what it says must agree."""
    spec = BenchSpec(samples=130, seconds=0.5, blocks=2, warmup=2, warmup_seconds=0.1)
    monkeypatch.setattr("edgekit.recipe.QUICK", spec)
    monkeypatch.chdir(tmp_path)
    artifacts.write_sidecar(tiny_models.tflite(tmp_path / "a.tflite"))
    status = main(["bench", "a.tflite", "--threads", "1", "--quick", "--out", "out", "--repeat-until-stable"])
    told = capsys.readouterr()
    count = len(tries(tmp_path))
    assert told.err.count("bench local: try ") == count >= 2
    assert status == ("not stable after 5 tries" in told.err)
    assert kept(tmp_path) in tries(tmp_path)
    assert "results: out" in told.out
