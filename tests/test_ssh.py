"""Devices over SSH: a server in this process, OpenSSH's own; links that break; what a user sees when it fails."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from edgekit.cli import main
from edgekit.device import Device, Interrupted, Outcome, open_device
from edgekit.errors import DeviceError, UsageError
from edgekit.remote import AgentDevice
from edgekit.transport.ssh import SshTransport
from edgekit.transport.ssh_connect import Target, parse
from tests import tiny_models
from tests.ssh_servers import Server, know, serving, tools, user
from tests.test_devices import agents_left, job_of, quiet

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder, with a key."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path / "home"


def board(place: Path, home: Path) -> Server:
    """A machine in *place* that has this Python, and is known to the user."""
    key = asyncssh.read_private_key(str(home / ".ssh/id_ed25519")) if home.is_dir() else user(home)
    python = f'exec {shlex.quote(sys.executable)} "$@"'
    environment = {"PATH": tools(place / "bin", python3=python), "HOME": str(place)}
    server = Server(place, environment, key)
    know(home, server.port, server.host_key.export_public_key().decode().strip())
    return server


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:
    with serving(board(tmp_path / "board", home)) as server:
        yield server
    assert agents_left(str(tmp_path / "board")) == []


def opened(server: Server, **changes: Any) -> AgentDevice:
    device = open_device(f"ssh://127.0.0.1:{server.port}")
    assert isinstance(device, AgentDevice)
    return replace(device, **changes)


def test_a_visit_over_ssh(server: Server, tmp_path: Path) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.corrupt(tmp_path / "b.tflite")]
    told: list[str] = []
    device = opened(server)
    assert device.info.address == f"ssh://127.0.0.1:{server.port}"
    assert device.runtimes["tflite"].startswith("ai-edge-litert")
    good, bad = device.run(job_of(tmp_path, artifacts), lambda text, share: told.append(text))
    device.close()
    assert good.error == ""
    assert good.measurement is not None
    assert set(good.measurement.blocks) == {0, 1}
    assert len(good.top) == 12 * 4
    assert "not a valid Flatbuffer" in bad.error
    assert any(text.startswith("sending a.tflite") for text in told)
    assert list((server.home / ".edgekit/visits").iterdir()) == []


def test_what_is_there_is_not_sent_again(server: Server, tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")
    device = opened(server)
    received = []
    for _ in range(2):
        before = server.received
        (outcome,) = device.run(job_of(tmp_path, [artifact]), quiet)
        assert outcome.error == ""
        received.append(server.received - before)
    device.close()
    assert received[0] > artifact.size_bytes
    assert received[1] < 2000  # the job
    (server.home / ".edgekit/cache" / f"{artifact.sha256}.tflite").write_bytes(b"an SD card forgot")
    device = opened(server)
    (outcome,) = device.run(job_of(tmp_path, [artifact]), quiet)
    device.close()
    assert outcome.error == ""


def test_a_check_asks_little(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Each question is a wait for the network. A file that is not there yet takes two more."""
    for most in (17, 11):
        before = len(server.commands)
        assert main(["device", "check", f"ssh://127.0.0.1:{server.port}"]) == 0
        assert "a tiny model, 1 thread" in capsys.readouterr().out
        assert len(server.commands) - before <= most


def count(outcome: Outcome) -> int:
    return len(outcome.measurement.samples_ns) if outcome.measurement else 0


def test_a_link_that_is_lost_and_comes_back_costs_nothing(server: Server, tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")
    dropped: list[str] = []

    def drop_once(text: str, share: float) -> None:
        if text == "a: block 2 of 4" and not dropped:
            dropped.append(text)
            server.drop()

    device = opened(server)
    (outcome,) = device.run(job_of(tmp_path, [artifact], seconds=4.0, blocks=4), drop_once)
    device.close()
    assert dropped
    assert outcome.error == ""
    assert outcome.measurement is not None
    assert set(outcome.measurement.blocks) == {0, 1, 2, 3}
    starts = outcome.measurement.starts_ns
    assert list(starts) == sorted(set(starts))  # nothing was heard twice
    assert len(outcome.top) == 12 * 4


def test_a_login_shell_that_greets(server: Server, tmp_path: Path) -> None:
    server.greeting = "echo Welcome to the board; echo '{ today }'; "
    dropped: list[str] = []

    def drop_once(text: str, share: float) -> None:
        if text == "a: block 2 of 2" and not dropped:
            dropped.append(text)
            server.drop()

    device = opened(server)
    artifact = tiny_models.tflite(tmp_path / "a.tflite")
    (outcome,) = device.run(job_of(tmp_path, [artifact], seconds=3.0), drop_once)
    device.close()
    assert outcome.error == ""
    assert outcome.measurement is not None
    assert len(set(outcome.measurement.starts_ns)) == count(outcome) >= 20


def test_a_link_that_falls_silent_is_noticed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.transport.ssh_connect.KEEPALIVE_S", 1.0)
    frozen: list[str] = []

    def freeze(text: str, share: float) -> None:
        if text == "a: block 2 of 4" and not frozen:
            frozen.append(text)
            server.freeze()

    device = opened(server)
    (outcome,) = device.run(
        job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], seconds=8.0, blocks=4), freeze
    )
    device.close()
    assert frozen
    assert outcome.error == ""


def test_a_link_that_does_not_come_back_leaves_what_was_measured(server: Server, tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")

    def cut(text: str, share: float) -> None:
        if text == "a: block 2 of 4" and server.port:
            server.stop()
            server.drop()

    device = opened(server, patience_s=2.0, limit_s=10.0)
    began = time.monotonic()
    (outcome,) = device.run(job_of(tmp_path, [artifact], seconds=16.0, blocks=4), cut)
    assert time.monotonic() - began < 30
    device.close()
    assert "did not come back within 2 s" in outcome.error
    assert count(outcome) >= 5
    assert agents_left(str(server.home)) == []  # its time limit ended it, with its worker
    server.start()
    again = opened(server)  # and the next visit finds the device free
    (outcome,) = again.run(job_of(tmp_path, [artifact]), quiet)
    again.close()
    assert outcome.error == ""


def test_an_agent_killed_there_leaves_what_it_measured(server: Server, tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")

    def kill(text: str, share: float) -> None:
        if text == "a: block 2 of 2":
            (visit,) = (server.home / ".edgekit/visits").iterdir()
            os.kill(int((visit / "pid").read_text().split()[0]), signal.SIGKILL)

    device = opened(server)
    (outcome,) = device.run(job_of(tmp_path, [artifact], seconds=4.0), kill)
    device.close()
    assert outcome.error == "the agent was cut off"
    assert count(outcome) >= 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, DeviceError])
def test_an_interrupted_visit_ends_there_too(server: Server, tmp_path: Path, error: type[BaseException]) -> None:
    def interrupt(text: str, share: float) -> None:
        if "block 2" in text:
            raise error

    device = opened(server)
    with pytest.raises(error) as caught:
        device.run(job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], seconds=6.0), interrupt)
    device.close()
    if isinstance(caught.value, Interrupted):
        (outcome,) = caught.value.outcomes
        assert outcome.error == "interrupted"
        assert count(outcome) >= 10
    assert agents_left(str(server.home)) == []
    assert list((server.home / ".edgekit/visits").iterdir()) == []


def test_one_visit_at_a_time_and_who_holds_it(server: Server, tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")
    heard: list[str] = []

    def intrude(text: str, share: float) -> None:
        if text == "a: block 1 of 2" and not heard:
            second = opened(server)
            with pytest.raises(DeviceError, match=r"in use by .*@.* since .*; one visit at a time") as caught:
                second.run(job_of(tmp_path, [artifact]), quiet)
            second.close()
            heard.append(str(caught.value))

    device = opened(server)
    (outcome,) = device.run(job_of(tmp_path, [artifact], seconds=8.0), intrude)
    device.close()
    assert heard
    assert outcome.error == ""


def test_several_devices_at_once(tmp_path: Path, home: Path) -> None:
    outcomes: dict[int, Outcome] = {}

    def visit(number: int, device: Device) -> None:
        job = job_of(tmp_path / str(number), [tiny_models.tflite(tmp_path / f"{number}/a.tflite", seed=number)])
        (outcomes[number],) = device.run(replace(job, seconds=2.0), quiet)

    with serving(board(tmp_path / "0", home)) as first, serving(board(tmp_path / "1", home)) as second:
        devices = [opened(first), opened(second)]
        threads = [threading.Thread(target=visit, args=pair) for pair in enumerate(devices)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for device in devices:
            device.close()
    assert [outcomes[n].error for n in (0, 1)] == ["", ""]
    spans = [(m.starts_ns[0], m.starts_ns[-1]) for n in (0, 1) if (m := outcomes[n].measurement)]
    assert max(start for start, _ in spans) < min(end for _, end in spans)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which only root may")
def test_a_disk_that_is_full_there(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = server.home / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    monkeypatch.setattr("edgekit.preflight.NEEDED_FREE_BYTES", 0)
    monkeypatch.setattr("edgekit.transport.push.SPARE_BYTES", 0)

    def fill(text: str, share: float) -> None:
        if text == "a: block 2 of 2":
            with suppress(OSError), (small / "full").open("wb", buffering=0) as stream:
                while stream.write(bytes(1 << 16)):
                    pass

    try:
        device = open_device(f"ssh://127.0.0.1:{server.port}?folder={small}/edgekit")
        artifacts = [tiny_models.tflite(tmp_path / "a.tflite")]
        (outcome,) = device.run(job_of(tmp_path, artifacts, seconds=6.0), fill)
        (small / "full").unlink()
        (again,) = device.run(job_of(tmp_path, artifacts), quiet)
        device.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert outcome.error == "the agent was cut off: its disk is full"
    assert count(outcome) >= 10
    assert again.error == ""


# --- what a user sees when it fails ----------------------------------------------------------------


def test_an_unknown_host_is_shown_with_the_command_that_accepts_it(server: Server, home: Path) -> None:
    (home / ".ssh/known_hosts").unlink()
    print_ = re.escape(server.host_key.get_fingerprint())
    wanted = (
        rf"host key is not known to you: ed25519 {print_}\. .*accept it: ssh -p {server.port} 127\.0\.0\.1 true"
    )
    with pytest.raises(DeviceError, match=wanted):
        opened(server)
    # A configuration that would trust any is not followed.
    (home / ".ssh/config").write_text("Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    with pytest.raises(DeviceError, match="host key is not known to you"):
        opened(server)
    assert server.commands == []


def test_a_host_key_that_changed_is_an_alarm(server: Server, home: Path) -> None:
    (home / ".ssh/known_hosts").unlink()
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    know(home, server.port, other)
    wanted = rf"not the one that you know: .*ssh-keygen -R '\[127\.0\.0\.1\]:{server.port}'"
    with pytest.raises(DeviceError, match=wanted):
        opened(server)


def test_a_user_without_a_key_there(server: Server, home: Path) -> None:
    for name in ("id_ed25519", "id_ed25519.pub"):
        (home / ".ssh" / name).unlink()
    wanted = rf"pi is refused: no key of yours .* ssh-copy-id -p {server.port} pi@127\.0\.0\.1"
    with pytest.raises(DeviceError, match=wanted):
        open_device(f"ssh://pi@127.0.0.1:{server.port}")


def test_nobody_there(server: Server) -> None:
    server.stop()
    with pytest.raises(DeviceError, match="nothing there answers SSH"):
        opened(server)
    server.start()
    with pytest.raises(DeviceError, match="no host of that name is found"):
        open_device("ssh://edgekit-test.invalid")


def test_a_board_without_python(server: Server) -> None:
    (server.home / "bin/python3").unlink()
    with pytest.raises(DeviceError, match="it has no Python 3: sudo apt install python3"):
        opened(server)


def test_a_foreign_file_in_the_folder_stops_the_removal(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"ssh://127.0.0.1:{server.port}"
    opened(server).close()
    (server.home / ".edgekit/thesis.tex").write_text("x")
    assert main(["device", "setup", address, "--remove", "--yes"]) == 1
    assert "holds more than edgekit put there (thesis.tex)" in capsys.readouterr().err
    (server.home / ".edgekit/thesis.tex").unlink()
    assert main(["device", "setup", address, "--remove", "--yes"]) == 0
    assert not (server.home / ".edgekit").exists()


def test_a_folder_that_cannot_be_written(server: Server) -> None:
    with pytest.raises(DeviceError, match=r"/proc/edgekit cannot be written: name another folder"):
        open_device(f"ssh://127.0.0.1:{server.port}?folder=/proc/edgekit")


@pytest.mark.parametrize(
    "rest", ["", "pi@", "host:0", "host:x", "host:99999", "a b", "-oProxyCommand=x", "host/x"]
)
def test_an_address_that_is_none(rest: str) -> None:
    with pytest.raises(UsageError, match=r"an address is ssh://\[user@\]host\[:port\]"):
        parse(rest)


def test_addresses() -> None:
    assert parse("pi@board.local:2222") == Target(host="board.local", user="pi", port=2222)
    assert parse("pi@[fe80::1]:2222") == Target(host="fe80::1", user="pi", port=2222)
    assert parse("[::1]").address == "ssh://[::1]"
    assert parse("pi@board:22").command == "ssh -p 22 pi@board"


def test_the_users_configuration(server: Server, home: Path, tmp_path: Path) -> None:
    (home / ".ssh/id_ed25519").rename(home / "elsewhere")
    (home / ".ssh/config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  User pi\n  IdentityFile {home}/elsewhere\n"
    )
    device = open_device("ssh://board")
    assert device.info.address == "ssh://board"
    device.close()


@pytest.mark.parametrize(
    ("line", "cipher"),
    [("", b"gcm"), ("  Ciphers chacha20-poly1305@openssh.com,aes128-gcm@openssh.com\n", b"chacha20")],
)
def test_the_fast_cipher_but_for_the_users_order(server: Server, home: Path, line: str, cipher: bytes) -> None:
    (home / ".ssh/config").write_text(f"Host *\n{line}")
    transport = SshTransport(Target(host="127.0.0.1", port=server.port))
    transport.connect()
    try:
        assert cipher in transport._connections[-1].get_extra_info("send_cipher").encode()
    finally:
        transport.close()


def test_through_a_jump_host(server: Server, home: Path, tmp_path: Path) -> None:
    with serving(board(tmp_path / "jump", home)) as jump:
        config = f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump 127.0.0.1:{jump.port}\n"
        (home / ".ssh/config").write_text(config)
        device = open_device("ssh://board")
        assert "tflite" in device.runtimes
        device.close()
        (home / ".ssh/known_hosts").unlink()
        know(home, server.port, server.host_key.export_public_key().decode().strip())
        with pytest.raises(DeviceError, match=rf"ssh://127.0.0.1:{jump.port}: its host key is not known"):
            open_device("ssh://board")
