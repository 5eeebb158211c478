"""Several devices at once: from the command line, over two SSH servers and on this machine."""

import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import artifact as artifacts
from edgekit import result, together
from edgekit.cli import main
from edgekit.cli.terminal import Terminal
from edgekit.device import BenchJob, Outcome, Progress
from edgekit.errors import DeviceError, UsageError
from edgekit.recipe import BenchSpec
from tests import tiny_models
from tests.ssh_servers import Server, serving
from tests.test_devices import agents_left
from tests.test_ssh import board, home

_ = home  # the fixture
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
SHORT = BenchSpec(samples=130, seconds=2.0, blocks=2, warmup=2, warmup_seconds=0.1)


def another(place: Path, home: Path) -> Server:
    """A server that tells that it is another machine."""
    server = board(place, home)
    cat = place / "bin/cat"
    real = shlex.quote(str(cat.resolve()))
    cat.unlink()
    cat.write_text(f'#!/bin/sh\ncase "$1" in */boot_id) echo {place.name};; *) exec {real} "$@";; esac\n')
    cat.chmod(0o755)
    return server


@pytest.fixture
def servers(tmp_path: Path, home: Path) -> Iterator[list[Server]]:
    with serving(another(tmp_path / "one", home)) as one, serving(another(tmp_path / "two", home)) as two:
        yield [one, two]
    assert agents_left(str(tmp_path / "one")) == agents_left(str(tmp_path / "two")) == []


@pytest.fixture(autouse=True)
def _short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.recipe.QUICK", SHORT)
    monkeypatch.chdir(tmp_path)
    artifacts.write_sidecar(tiny_models.tflite(tmp_path / "a.tflite"))


def address(server: Server) -> str:
    return f"ssh://127.0.0.1:{server.port}"


def bench(*words: str) -> int:
    return main(["bench", "a.tflite", "--threads", "1", "--quick", "--out", "out", *words])


def test_all_are_measured_at_the_same_time(
    servers: list[Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = [*map(address, servers), "local"]
    assert bench(*(word for one in addresses for word in ("--device", one))) == 0
    folders = [f"ssh-127.0.0.1-{servers[0].port}", f"ssh-127.0.0.1-{servers[1].port}", "local"]
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(folders)
    found = [result.read(Path("out", folder, "a.json")) for folder in folders]
    assert [one.device.address for one in found] == addresses
    spans = [(one.measurement.starts_ns[0], one.measurement.starts_ns[-1]) for one in found]
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)
    told = capsys.readouterr()
    assert "results: out" in told.out
    assert "block" not in told.err  # progress is for terminals


def test_two_addresses_of_one_machine_are_refused(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(board(tmp_path / "one", home)) as server:
        assert bench("--device", "local", "--device", address(server)) == 2
    assert f"local and {address(server)} are one machine" in capsys.readouterr().err
    assert bench("--device", "local", "--device", "local") == 2
    assert "--device local stands twice" in capsys.readouterr().err
    assert not Path("out").exists()


def test_one_that_cannot_be_reached_does_not_end_the_others(
    servers: list[Server], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = address(servers[1])
    servers[1].stop()
    assert bench("--device", gone, "--device", "local") == 1
    told = capsys.readouterr()
    assert f"edgekit: 1 of 2 devices failed:\n  {gone}: " in told.err
    assert result.read(Path("out/local/a.json")).measurement.count >= 130
    assert "1 thread" in told.out  # the table of the others
    servers[1].start()


def test_one_that_fails_in_the_middle_does_not_end_the_others(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekit.remote import AgentDevice

    whole = AgentDevice.run

    def fail(device: AgentDevice, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        if device.info.address == address(servers[0]):
            raise DeviceError("it burns")
        return whole(device, job, progress)

    monkeypatch.setattr(AgentDevice, "run", fail)
    assert bench("--device", address(servers[0]), "--device", address(servers[1])) == 1
    told = capsys.readouterr().err
    assert f"bench: {address(servers[0])} failed; the others go on" in told
    assert f"1 of 2 devices failed:\n  {address(servers[0])}: it burns" in told
    assert [path.name for path in Path("out").rglob("*.json")] == ["a.json"]


def test_ctrl_c_ends_all_and_keeps_what_was_measured(
    servers: list[Server], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: Counter[str] = Counter()

    @contextmanager
    def bar(terminal: Terminal, stage: str) -> Iterator[Progress]:
        def progress(text: str, share: float) -> None:
            ticks[stage] += "block" in text
            if len(ticks) == 2 and min(ticks.values()) == 5:  # seconds: samples have come from both
                ticks[stage] += 1
                os.kill(os.getpid(), signal.SIGINT)

        yield progress

    monkeypatch.setattr(Terminal, "bar", bar)
    monkeypatch.setattr("edgekit.recipe.QUICK", replace(SHORT, seconds=300.0))
    assert bench("--device", "local", "--device", address(servers[0])) == 130
    told = capsys.readouterr().err
    assert f"bench: ends on local, {address(servers[0])}" in told
    assert "bench: what was measured stands in out" in told
    assert told.endswith("edgekit: interrupted\n")
    partial = {path.parent.parent.name: result.read(path) for path in Path("out").glob("*/partial/a.json")}
    assert sorted(partial) == ["local", f"ssh-127.0.0.1-{servers[0].port}"]
    for one in partial.values():
        assert one.measurement.count > 0
        assert "cut off: interrupted" in one.validity.reasons
    assert agents_left(str(servers[0].home)) == []


def test_a_run_measures_on_several_at_once(tmp_path: Path) -> None:
    from edgekit.bench import PLAIN
    from edgekit.benchstage import BenchStage, check_devices
    from edgekit.cli.terminal import Silent
    from edgekit.runs import Run
    from tests.test_bench import IMAGES

    run = Run(folder=tmp_path / "run")
    run.begin("name", "digits", "")
    said: list[str] = []

    class Listener(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    stage = BenchStage(
        run=run,
        spec=replace(SHORT, threads=(1, 2)),
        listener=Listener(),
        train_key="key",
        images=lambda: IMAGES,
        method=PLAIN,
    )
    made = [artifacts.read(tmp_path / "a.tflite")]
    addresses = ["fake://pi4", "fake://pi5", "local"]
    check_devices(addresses, (1, 2))
    stage.measure(made, addresses)
    names = sorted(path.relative_to(run.folder / "results").as_posix() for path in run.folder.rglob("a-t*.json"))
    assert names == [f"{folder}/a-t{n}.json" for folder in ("fake-pi4", "fake-pi5", "local") for n in (1, 2)]
    said.clear()
    stage.measure(made, addresses)
    assert said == [f"bench: {one} done already" for one in addresses]
    with pytest.raises(UsageError, match="64 threads: fake://pi4 has 4 cores, and"):
        check_devices(addresses, (64,))


def test_a_machine_is_told_by_its_boot() -> None:
    with together.opened(["local"]) as found:
        machine = found.devices["local"].machine
    assert machine == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
