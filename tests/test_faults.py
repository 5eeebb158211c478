"""What goes wrong on a real device: OpenSSH's server, the real adbd, a runtime that crashes, clocks that jump.

After each: a clear end, what was measured is there, no process is left, and the next visit works.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from edgekit.cli import main
from edgekit.device import Outcome, open_device
from edgekit.errors import DeviceError
from edgekit.remote import AgentDevice
from edgekit.transport.push import parcel, push
from edgekit.transport.ssh import SshTransport
from edgekit.transport.ssh_connect import Target
from tests import adb_devices, tiny_models
from tests.openssh import OpenSsh, command_of, needs_sshd, openssh
from tests.ssh_servers import Server, know, serving, tools, user
from tests.test_devices import agents, agents_left, job_of, quiet
from tests.test_transport import big

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
on_both = pytest.mark.parametrize(
    "machine",
    [
        pytest.param("ssh", marks=(pytest.mark.ssh, needs_sshd)),
        pytest.param("adb", marks=(pytest.mark.adbd, adb_devices.needs_adbd)),
    ],
    indirect=True,
)
on_ssh = pytest.mark.parametrize(
    "machine", [pytest.param("ssh", marks=(pytest.mark.ssh, needs_sshd))], indirect=True
)
DAY_S = 86400


@dataclass(frozen=True, kw_only=True)
class Machine:
    """*address*: without its options; *there*: edgekit's folder on it."""

    address: str
    there: Path

    def opened(self, python: Path | str = "", **changes: Any) -> AgentDevice:
        rest = f"&python={python}" if python else ""
        device = open_device(f"{self.address}?folder={self.there}{rest}")
        assert isinstance(device, AgentDevice)
        return replace(device, **changes)

    def kill_agent(self) -> None:
        """From outside: in adbd's namespace its number is another one."""
        found = [pid for pid in agents(str(self.there)) if b"--detach" in command_of(pid)]
        assert found
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    def is_fine(self, folder: Path) -> None:
        """Nothing is left of what was, and the next visit works."""
        assert agents_left(str(self.there)) == []
        before = set((self.there / "visits").glob("*"))  # of a link that did not come back
        device = self.opened()
        (outcome,) = device.run(job_of(folder, [tiny_models.tflite(folder / "next.tflite", seed=9)]), quiet)
        device.close()
        assert outcome.error == ""
        assert count(outcome) >= 20
        assert set((self.there / "visits").iterdir()) <= before


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder, with a key."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    user(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def sshd(tmp_path: Path, home: Path) -> Iterator[OpenSsh]:
    with openssh(tmp_path / "sshd", home) as server:
        yield server


def of(server: OpenSsh) -> Machine:
    return Machine(
        address=f"ssh://127.0.0.1:{server.port}",
        there=server.place / "there",
    )


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr("edgekit.preflight.NAMES", (sys.executable,))  # the board's Python is this one
    if request.param == "ssh":
        yield of(request.getfixturevalue("sshd"))
    else:
        with adb_devices.running(tmp_path / "adb", monkeypatch) as board:
            yield Machine(address=board.address, there=board.folder)


def count(outcome: Outcome) -> int:
    return len(outcome.measurement.samples_ns) if outcome.measurement else 0


def at(wanted: str, act: Callable[[], object]) -> Callable[[str, float], None]:
    """A progress that acts once when it is told *wanted*."""
    done: list[str] = []

    def progress(text: str, share: float) -> None:
        if text == wanted and not done:
            done.append(text)
            act()

    return progress


def blocks(outcome: Outcome) -> set[int]:
    assert outcome.measurement is not None
    starts = outcome.measurement.starts_ns
    assert list(starts) == sorted(set(starts))  # nothing twice, and in order
    return set(outcome.measurement.blocks)


# ---- processes that die -----------------------------------------------------------------------------------


@on_both
def test_the_agent_is_killed(machine: Machine, tmp_path: Path) -> None:
    device = machine.opened()
    job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], seconds=4.0)
    (outcome,) = device.run(job, at("a: block 2 of 2", machine.kill_agent))
    device.close()
    assert outcome.error == "the agent was cut off"
    assert 0 in blocks(outcome)
    machine.is_fine(tmp_path)


@pytest.mark.ssh
@needs_sshd
@pytest.mark.parametrize("sessions_only", [True, False])
def test_sshd_is_killed_and_comes_back(
    sshd: OpenSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions_only: bool
) -> None:
    monkeypatch.setattr("edgekit.preflight.NAMES", (sys.executable,))
    machine = of(sshd)

    def kill() -> None:
        sshd.kill(sessions_only=sessions_only)
        if not sessions_only:
            sshd.start()

    device = machine.opened()
    job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], seconds=4.0)
    (outcome,) = device.run(job, at("a: block 2 of 2", kill))
    device.close()
    assert outcome.error == ""
    assert blocks(outcome) == {0, 1}
    assert len(outcome.top) == 12 * 4
    machine.is_fine(tmp_path)


@pytest.mark.ssh
@needs_sshd
def test_sshd_stays_away(sshd: OpenSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.preflight.NAMES", (sys.executable,))
    monkeypatch.setattr("edgekit.remote.LONELY_S", 8.0)  # of 120
    machine = of(sshd)
    device = machine.opened(patience_s=2.0)
    job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], seconds=120.0, blocks=60)
    (outcome,) = device.run(job, at("a: block 2 of 60", sshd.kill))
    device.close()
    assert "did not come back within 2 s" in outcome.error
    assert 0 in blocks(outcome)
    sshd.start()
    assert agents_left(str(machine.there)) == []
    machine.is_fine(tmp_path)


@pytest.mark.ssh
@needs_sshd
def test_a_push_goes_on_where_sshd_was_killed(sshd: OpenSsh, tmp_path: Path) -> None:
    """Over SFTP, which the server in this process does not have."""
    transport, one = SshTransport(Target(host="127.0.0.1", port=sshd.port)), parcel(big(tmp_path, size=20_000_000))
    transport.connect()
    killed: list[int] = []

    def kill(text: str, share: float) -> None:
        if share > 0.5 and not killed:
            sshd.kill(sessions_only=True)
            killed.append((sshd.place / f"there/{one.name}.part").stat().st_size)

    there = push(transport, str(sshd.place / "there"), [one], kill)
    transport.close()
    assert 5_000_000 < killed[0] < 20_000_000
    assert parcel(Path(there[one])).sha256 == one.sha256


@pytest.mark.ssh
@needs_sshd
def test_a_full_disk_is_told_in_words(sshd: OpenSsh, tmp_path: Path) -> None:
    """Not as SFTP's `Failure`."""
    transport = SshTransport(Target(host="127.0.0.1", port=sshd.port))
    transport.connect()
    (tmp_path / "there").symlink_to("/dev/full")
    with pytest.raises(DeviceError, match="No space left on device"):
        transport.send(big(tmp_path), f"{tmp_path}/there", offset=0, sent=lambda count: None)
    transport.close()


@pytest.mark.ssh
@needs_sshd
def test_an_interrupt(sshd: OpenSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.preflight.NAMES", (sys.executable,))
    machine = of(sshd)

    def interrupt() -> None:
        raise KeyboardInterrupt

    device = machine.opened()
    job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], seconds=60.0)
    with pytest.raises(KeyboardInterrupt):
        device.run(job, at("a: block 1 of 2", interrupt))
    device.close()
    machine.is_fine(tmp_path)


# A runtime that crashes on one file in its second block, and is the real one otherwise.
CRASHING = """
import ctypes, importlib.util, os, time
from pkgutil import extend_path
import ai_edge_litert
ai_edge_litert.__path__ = extend_path(ai_edge_litert.__path__, "ai_edge_litert")
real = [one for one in ai_edge_litert.__path__ if not __file__.startswith(one)][0]
spec = importlib.util.spec_from_file_location("ai_edge_litert._real", real + "/interpreter.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
class Interpreter(module.Interpreter):
    def __init__(self, model_path, **options):
        super().__init__(model_path=model_path, **options)
        self.bad, self.last = os.path.basename(model_path).startswith("BAD"), 0.0
    def invoke(self):
        if self.bad and self.last and time.monotonic() - self.last > 1: # the other file had its turn
            ctypes.string_at(0)
        super().invoke()
        self.last = time.monotonic()
"""


def python_with(place: Path, modules: dict[str, str]) -> Path:
    """A Python that finds *modules*, files and what is in them, before its own."""
    for name, text in modules.items():
        file = place / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    program = place / "python3"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{place}/site" EDGEKIT_PYTHON="$0" exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return program


@on_both
def test_a_runtime_that_crashes_on_a_model(machine: Machine, tmp_path: Path) -> None:
    bad, good = tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.tflite(tmp_path / "b.tflite", seed=1)
    crashing = CRASHING.replace("BAD", bad.sha256)
    python = python_with(
        tmp_path / "far", {"ai_edge_litert/__init__.py": "", "ai_edge_litert/interpreter.py": crashing}
    )
    device = machine.opened(python)
    first, second = device.run(job_of(tmp_path, [bad, good], samples=60, seconds=4.0), quiet)
    device.close()
    assert first.error.startswith("the process was killed by SIGSEGV")
    assert "INFO" not in first.error
    assert blocks(first) == {0}
    assert count(first) >= 30
    assert second.error == ""
    assert blocks(second) == {0, 1}
    assert second.top
    machine.is_fine(tmp_path)


# ---- clocks ---------------------------------------------------------------------------------------------------

# Whatever asks for the time of day gets one that jumps a day back, two seconds after Python started.
JUMPING = """
import time
began, real, real_ns = time.monotonic(), time.time, time.time_ns
def jump():
    return 86400 if time.monotonic() - began > 2 else 0
time.time, time.time_ns = lambda: real() - jump(), lambda: real_ns() - jump() * 10**9
"""


@on_both
def test_a_clock_that_is_set_back(machine: Machine, tmp_path: Path) -> None:
    python = python_with(tmp_path / "far", {"sitecustomize.py": JUMPING})
    device = machine.opened(python)

    def set_back() -> None:
        past = time.time() - DAY_S
        for path in (*machine.there.rglob("*"), machine.there):
            os.utime(path, (past, past))

    job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], seconds=5.0)
    (outcome,) = device.run(job, at("a: block 2 of 2", set_back))
    device.close()
    assert outcome.error == ""
    assert blocks(outcome) == {0, 1}
    times = [reading.time_ns for reading in outcome.telemetry]
    assert times == sorted(times)
    machine.is_fine(tmp_path)


@on_ssh
def test_a_clock_that_is_set_forward_beside_a_second_visit(machine: Machine, tmp_path: Path) -> None:
    """A Pi has no clock of its own: until it finds a network it lives in the past. Then all files look old."""
    artifact, heard = tiny_models.tflite(tmp_path / "a.tflite"), list[str]()

    def intrude() -> None:
        past = time.time() - 60 * DAY_S
        for path in machine.there.rglob("*"):
            os.utime(path, (past, past))
        with pytest.raises(DeviceError, match=r"in use by \S+@\S+ since .*; one visit at a time") as caught:
            second.run(job_of(tmp_path, [artifact]), quiet)
        heard.append(str(caught.value))

    device, second = machine.opened(), machine.opened()
    (outcome,) = device.run(job_of(tmp_path, [artifact], seconds=8.0), at("a: block 2 of 2", intrude))
    device.close()
    second.close()
    assert "one that lost its link ends by itself within 2 minutes" in heard[0]
    assert outcome.error == ""
    assert blocks(outcome) == {0, 1}
    machine.is_fine(tmp_path)


@on_ssh
def test_what_a_visit_left_long_ago_goes(machine: Machine, tmp_path: Path) -> None:
    left = machine.there / "visits/0123456789ab"
    left.mkdir(parents=True)
    (left / "events").write_text("")
    past = time.time() - 60 * DAY_S
    os.utime(left, (past, past))
    machine.is_fine(tmp_path)
    assert not left.exists()


# ---- boards on which it cannot work: one line, with the cure --------------------------------------------------


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that `edgekit device WORDS` fails with."""
    assert main(["device", *words]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("edgekit: "))
    return line


@pytest.mark.parametrize(
    ("shims", "words"),
    [
        ({"getconf": "echo glibc 2.24"}, "glibc 2.24 is older than 2.27, which LiteRT needs: upgrade its system"),
        ({"getconf": "exit 1"}, "its C library is not glibc, and no wheel of LiteRT is for another: use Debian"),
        ({"uname": "echo armv6l", "getconf": "echo 32"}, "no LiteRT for armv6l with 32 bits: a 64-bit system is"),
        (
            {
                "uname": "echo armv7l",
                "getconf": "echo 32",
                "python3": "echo python /usr/bin/python3 3.13.5 32 2.2.4",
            },
            "a 32-bit system needs Python 3.9 to 3.11 for LiteRT, and this has Python 3.13.5: put a 64-bit one on",
        ),
        ({"python3": "exit 127"}, "it has no Python 3: sudo apt install python3"),
        (
            {"python3": "echo python /usr/bin/python3 3.8.1 64"},
            "its Python 3.8.1 is too old: 3.9 or newer is needed",
        ),
        (
            {"df": "printf 'x\\nx 1 1 200000 x x\\n'"},
            "205 MB are free in .* 300 MB are needed: make room, or",
        ),
    ],
)
def test_a_board_that_cannot_be_set_up(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], shims: dict[str, str], words: str
) -> None:
    shims = {"python3": f'exec {sys.executable} "$@"', **shims}
    if "uname" in shims:
        shims["uname"] = f'case "$1" in -m) {shims["uname"]};; *) exec /bin/uname "$@";; esac'
    place = tmp_path / "board"
    key = asyncssh.read_private_key(str(home / ".ssh/id_ed25519"))
    with serving(Server(place, {"PATH": tools(place / "bin", **shims), "HOME": str(place)}, key)) as server:
        know(home, server.port, server.host_key.export_public_key().decode().strip())
        line = told(capsys, "setup", f"ssh://127.0.0.1:{server.port}", "--yes")
    assert re.search(words, line), line
    assert not (place / ".edgekit/site").exists()


@pytest.mark.ssh
@needs_sshd
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which only root may")
@pytest.mark.parametrize(
    ("mounted", "words"),
    [
        ("ro", r"cannot be written: name another folder: ADDRESS\?folder=/path"),
        ("noexec", r"nothing can be executed in .* \(mounted noexec\?\): ADDRESS\?folder=/path"),
    ],
)
def test_a_folder_of_no_use(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], mounted: str, words: str
) -> None:
    place = tmp_path / "card"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size=400m,{mounted}", "tmpfs", str(place)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with openssh(tmp_path / "sshd", home) as server:  # which sees what is mounted by now
            for verb, *rest in (["setup", "--yes"], ["check"]):
                line = told(capsys, verb, server.address(folder=place / "edgekit"), *rest)
                assert re.search(words, line), line
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
