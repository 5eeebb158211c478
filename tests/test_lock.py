"""One visit at a time: who holds a device is told, and --wait waits its turn. On this machine and over SSH."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit import artifact as artifacts
from edgekit import lock, result
from edgekit.cli import main
from edgekit.cli.terminal import Terminal
from edgekit.device import Outcome, Progress, open_device
from edgekit.errors import DeviceBusy
from edgekit.recipe import BenchSpec
from tests import tiny_models
from tests.ssh_servers import Server
from tests.test_devices import job_of, quiet
from tests.test_ssh import home, opened, server

_ = home, server  # fixtures
ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from edgekit import lock
with lock.held(Path(sys.argv[1]), "local"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_LOCK", str(tmp_path / "cache/local.lock"))
    monkeypatch.setattr("edgekit.recipe.QUICK", BenchSpec(samples=130, seconds=0.5, blocks=2, warmup_seconds=0.0))
    monkeypatch.chdir(tmp_path)
    artifacts.write_sidecar(tiny_models.tflite(tmp_path / "a.tflite"))
    return tmp_path


@contextmanager
def holder(place: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another edgekit that measures on this machine."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock.local_lock())],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def bench(*words: str) -> int:
    return main(["bench", "a.tflite", "--threads", "1", "--quick", "--out", "out", *words])


def test_a_second_bench_here_is_told_who_holds_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holder(place) as process:
        assert bench() == 1
        told = capsys.readouterr().err
        assert "edgekit: local: in use by " in told
        assert f"@{os.uname().nodename} since {time.strftime('%H')[:1]}" in told
        assert told.endswith("one visit at a time: --wait waits its turn\n")
        assert not Path("out").exists()
        process.kill()  # leaves nothing
        process.wait()
        assert bench() == 0


def test_the_wait_has_an_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holder(place):
        began = time.monotonic()
        assert bench("--wait", "0.1") == 1
        assert time.monotonic() - began >= 6
    assert "in use by" in capsys.readouterr().err
    assert bench("--wait") == 0


def test_it_waits_its_turn_and_says_for_whom(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    with holder(place) as process:

        @contextmanager
        def bar(terminal: Terminal, stage: str) -> Iterator[Progress]:
            def progress(text: str, share: float) -> None:
                told.append(text)
                if len(told) == 2:
                    process.kill()

            yield progress

        monkeypatch.setattr(Terminal, "bar", bar)
        assert bench("--wait") == 0
    assert told[0] == told[1]
    assert told[0].startswith("in use by ")
    assert any(text.startswith("a: block 1") for text in told)
    assert result.read(Path("out/a.json")).measurement.count >= 130


def test_ctrl_c_ends_the_wait(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def bar(terminal: Terminal, stage: str) -> Iterator[Progress]:
        def progress(text: str, share: float) -> None:
            raise KeyboardInterrupt

        yield progress

    monkeypatch.setattr(Terminal, "bar", bar)
    with holder(place):
        assert bench("--wait") == 130
    assert not Path("out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
class TestOverSsh:
    def test_it_waits_its_turn(self, server: Server, tmp_path: Path) -> None:
        artifact = tiny_models.tflite(tmp_path / "a.tflite")
        began, told = threading.Event(), list[str]()
        outcomes: list[Outcome] = []

        def first() -> None:
            device = opened(server)
            job = job_of(tmp_path, [artifact], seconds=3.0)
            outcomes.extend(device.run(job, lambda text, share: began.set() if "block" in text else None))
            device.close()

        thread = threading.Thread(target=first)
        thread.start()
        assert began.wait(30)
        second = opened(server)
        with pytest.raises(
            DeviceBusy, match=r"in use by .*@.* since .*; one visit at a time.*: --wait waits its turn"
        ):
            second.wait(0.0, quiet)
        received = server.received
        second.wait(60.0, lambda text, share: told.append(text))
        assert server.received - received < 1000  # nothing is sent while it waits
        thread.join(30)
        outcomes += second.run(job_of(tmp_path, [artifact]), quiet)
        second.close()
        assert [outcome.error for outcome in outcomes] == ["", ""]
        assert set(told) == {f"in use by {lock.me().partition(' since')[0]} since{told[0].partition(' since')[2]}"}

    def test_ctrl_c_ends_the_wait_there(self, server: Server, tmp_path: Path) -> None:
        def interrupt(text: str, share: float) -> None:
            raise KeyboardInterrupt

        device = opened(server)
        with lock.held(server.home / ".edgekit/lock", "x"), pytest.raises(KeyboardInterrupt):
            device.wait(60.0, interrupt)
        device.wait(0.0, quiet)
        device.close()


def test_nobody_holds_a_made_up_device() -> None:
    open_device("fake://pi5").wait(0.0, quiet)
