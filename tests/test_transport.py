"""Commands and files on another machine: the same facts for this one, for one over SSH and for one over adb."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit import files
from edgekit.errors import DeviceError
from edgekit.transport import (
    TIMED_OUT,
    Ended,
    LinkLost,
    Transport,
    adb_connect,
    limited,
    output,
    reconnect,
    sftp,
)
from edgekit.transport.adb import AdbTransport
from edgekit.transport.local import LocalTransport
from edgekit.transport.push import parcel, push
from edgekit.transport.ssh import SshTransport
from edgekit.transport.ssh_connect import Target
from tests import adb_devices
from tests.ssh_servers import Server, serving
from tests.test_ssh import board, home  # noqa: F401 (a fixture)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:  # noqa: F811
    with serving(board(tmp_path / "board", home)) as server:
        yield server


@pytest.fixture
def adb_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[adb_devices.Board]:
    with adb_devices.running(tmp_path / "adb", monkeypatch) as board:
        yield board


@pytest.fixture(params=["local", "ssh", pytest.param("adb", marks=(pytest.mark.adbd, adb_devices.needs_adbd))])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transport]:
    made: Transport
    if request.param == "local":
        made = LocalTransport()
    elif request.param == "adb":
        made = AdbTransport(adb_connect.parse(request.getfixturevalue("adb_board").serial))
    else:
        made = SshTransport(Target(host="127.0.0.1", port=request.getfixturevalue("server").port))
    made.connect()
    yield made
    made.close()


def processes(mark: str) -> int:
    """How many processes have *mark* in their command line."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += mark.encode() in path.read_bytes() and path.parent.name != str(os.getpid())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def gone(mark: str, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while processes(mark) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes(mark)


def test_lines_status_and_last_words(transport: Transport) -> None:
    lines: list[bytes] = []
    command = "echo 'it''s one'; printf two; echo \"bad $HOME\" >&2; exit 3"
    ended = transport.run(command, limit_s=20, feed=lines.append)
    assert lines == [b"its one\n", b"two"]
    assert ended.status == 3
    assert ended.stderr.startswith("bad /")
    with pytest.raises(DeviceError, match=r"`cat /nowhere/at/all` failed there: .*No such file"):
        output(transport, "cat /nowhere/at/all")


def test_the_time_limit_holds_there(transport: Transport) -> None:
    began = time.monotonic()
    ended = transport.run("sleep 611.25 & sleep 611.5; true", limit_s=1)
    assert ended.status in TIMED_OUT
    assert time.monotonic() - began < 8
    assert gone("611.5")
    assert gone("611.25")


def test_macos_has_perl_instead_of_timeout(tmp_path: Path) -> None:
    for name in ("sh", "perl", "sleep", "echo"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    bare = LocalTransport(environment={"PATH": str(tmp_path)})
    assert "perl -e" in limited("true", 5)
    assert output(bare, "echo here") == "here\n"
    began = time.monotonic()
    assert bare.run("exec sleep 60", limit_s=1).status != 0
    assert time.monotonic() - began < 8


def test_what_runs_there_hears_that_we_listen(transport: Transport) -> None:
    lines: list[bytes] = []
    command = "for n in 1 2; do read -r line && echo beat $n; done"
    began = time.monotonic()
    assert transport.run(command, limit_s=20, feed=lines.append, beat_s=0.3) == Ended(status=0)
    assert lines == [b"beat 1\n", b"beat 2\n"]
    assert time.monotonic() - began >= 0.6


def test_an_interrupted_command_ends_there(transport: Transport, tmp_path: Path) -> None:
    def interrupt(line: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transport.run("echo on; sleep 612.5", limit_s=60, feed=interrupt, pid_file=str(tmp_path / "pid"))
    assert gone("612.5")


def big(tmp_path: Path, name: str = "big.bin", size: int = 3_000_000) -> Path:
    path = tmp_path / name
    path.write_bytes(np.random.default_rng(len(name)).bytes(size))
    return path


def test_files_arrive_once(transport: Transport, tmp_path: Path) -> None:
    one, two = parcel(big(tmp_path)), parcel(big(tmp_path, "other.bin", 10))
    folder, told = f"{tmp_path}/there's a blank", list[float]()
    for expected in (True, False):
        there = push(transport, folder, [one, two, one], lambda text, share: told.append(share))
        assert files.sha256(Path(there[one])) == one.sha256
        assert bool(told) is expected
        assert told == sorted(told)
        told.clear()
    assert sorted(os.listdir(folder)) == sorted([one.name, two.name])
    transport.pull(there[one], tmp_path / "back")
    assert files.sha256(tmp_path / "back") == one.sha256
    with pytest.raises(DeviceError):
        transport.pull(f"{folder}/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["whole", "part"])
def test_a_damaged_file_is_sent_again(transport: Transport, tmp_path: Path, damage: str) -> None:
    one, folder = parcel(big(tmp_path)), tmp_path / "there"
    folder.mkdir()
    name = one.name if damage == "whole" else f"{one.name}.part"
    (folder / name).write_bytes(b"x" * 1_000_000)
    there = push(transport, str(folder), [one], lambda text, share: None)
    assert files.sha256(Path(there[one])) == one.sha256


def test_a_disk_that_is_too_small(transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, one = parcel(big(tmp_path, "old.bin", 10)), parcel(big(tmp_path))
    push(transport, f"{tmp_path}/there", [old], lambda text, share: None)
    monkeypatch.setattr("edgekit.transport.push.SPARE_BYTES", 10**18)
    with pytest.raises(DeviceError, match=r"3 MB are to go to .*, where .* are free: make room"):
        push(transport, f"{tmp_path}/there", [one], lambda text, share: None)
    assert not os.listdir(tmp_path / "there")  # what other visits had brought was given up first


def test_a_disk_that_fills_up_says_so(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to("/dev/full")
    if not isinstance(transport, LocalTransport):
        with pytest.raises(DeviceError, match="No space left on device"):
            transport.send(big(tmp_path), f"{tmp_path}/there", offset=0, sent=lambda count: None)


def test_a_push_goes_on_where_the_link_was_lost(server: Server, tmp_path: Path) -> None:
    transport = SshTransport(Target(host="127.0.0.1", port=server.port))
    one = parcel(big(tmp_path, size=12_000_000))
    transport.connect()
    server.drop_after = 10_000_000
    there = push(transport, f"{tmp_path}/there", [one], lambda text, share: None)
    transport.close()
    assert files.sha256(Path(there[one])) == one.sha256
    assert server.drop_after is None  # the link was lost
    assert server.received < 12_000_000 + sftp.AHEAD_BYTES + 1_000_000  # what was on its way came twice


def test_a_link_that_is_gone_is_an_error_at_once(server: Server, tmp_path: Path) -> None:
    transport = SshTransport(Target(host="127.0.0.1", port=server.port))
    with pytest.raises(LinkLost, match="not connected"):
        transport.run("true", limit_s=5)
    transport.connect()
    server.stop()
    server.drop()
    began = time.monotonic()
    with pytest.raises(LinkLost, match="the link was lost"):
        transport.run("sleep 60", limit_s=60)
    with pytest.raises(LinkLost, match="nothing there answers"):
        reconnect(transport, 2.0)
    assert time.monotonic() - began < 10
    server.start()
    reconnect(transport, 10.0)
    assert transport.run("true", limit_s=5) == Ended(status=0)
    transport.close()
