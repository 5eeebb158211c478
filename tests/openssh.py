"""OpenSSH's own server for tests, which can be killed and started again; a network of its own where root may."""

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.ssh_servers import LIMIT_S

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
needs_sshd = pytest.mark.skipif(
    not Path(SSHD).is_file() or not shutil.which("ssh-keygen"),
    reason="no OpenSSH server: apt install openssh-server",
)


class OpenSsh:
    """A server on *host*, as the user that runs the tests, for the key in *home*. *enter*: starts it."""

    def __init__(self, place: Path, home: Path, host: str = "127.0.0.1", enter: tuple[str, ...] = ()) -> None:
        self.place, self.host, self.enter, self.port = place, host, enter, _free_port()
        place.mkdir()
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / "host_key")]
        subprocess.run(words, check=True, timeout=LIMIT_S)
        (place / "config").write_text(
            f"Port {self.port}\nListenAddress {host}\nHostKey {place}/host_key\nPidFile {place}/pid\nUsePAM no\n"
            f"StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            f"AuthorizedKeysFile {home}/.ssh/id_ed25519.pub\nSubsystem sftp internal-sftp\nSetEnv HOME={home}\n"
        )
        with (home / ".ssh/known_hosts").open("a") as stream:
            stream.write(f"[{host}]:{self.port} {(place / 'host_key.pub').read_text().strip()}\n")
        self.start()

    def address(self, **options: object) -> str:
        given = "&".join(f"{name}={value}" for name, value in {"folder": self.place / "there", **options}.items())
        return f"ssh://{self.host}:{self.port}?{given}"

    def start(self) -> None:
        start = f"exec {SSHD} -D -e -f {self.place}/config"
        command = ["sh", "-c", start]
        if os.geteuid() == 0:  # it wants /run/sshd of its own
            private = f"mkdir -p /run/sshd && mount -t tmpfs -o mode=755 tmpfs /run/sshd && {start}"
            command = ["unshare", "-m", "sh", "-c", private]
        log = self.place / "log"
        with log.open("wb") as stream:
            self.process = subprocess.Popen([*self.enter, *command], stdout=stream, stderr=stream)
        end = time.monotonic() + LIMIT_S
        while "Server listening" not in log.read_text() and time.monotonic() < end:
            if self.process.poll() is not None:
                pytest.skip(f"sshd does not start here: {log.read_text().strip()}")
            time.sleep(0.02)

    def sessions(self) -> list[int]:
        """The processes that serve connections."""
        return _children(int((self.place / "pid").read_text()))

    def kill(self, *, sessions_only: bool = False) -> None:
        found = self.sessions()
        if not sessions_only:
            self.process.kill()
            self.process.wait(LIMIT_S)
        for session in found:
            for pid in (*_children(session), session):  # the one with the user's rights stands below
                if b"sshd" in command_of(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(LIMIT_S)


@contextmanager
def openssh(place: Path, home: Path) -> Iterator[OpenSsh]:
    server = OpenSsh(place, home)
    try:
        yield server
    finally:
        server.close()


class Cable:
    """Two networks of nothing but a cable: one for a client, one for a server in it."""

    CLIENT, SERVER = "10.99.0.1", "10.99.0.2"

    def __init__(self) -> None:
        mark = uuid.uuid4().hex[:6]
        self.client, self.server = f"ekc-{mark}", f"eks-{mark}"

    def make(self) -> None:
        """Skips the test where that is not allowed."""
        if os.geteuid() != 0 or not shutil.which("ip"):
            pytest.skip("makes networks, which only root may, with `ip`: apt install iproute2")
        done = subprocess.run(["ip", "netns", "add", self.client], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no network can be made here: {done.stderr.strip()}")
        _ip("netns", "add", self.server)
        _ip("-n", self.client, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", self.server)
        for network, address in ((self.client, self.CLIENT), (self.server, self.SERVER)):
            _ip("-n", network, "address", "add", f"{address}/24", "dev", "wire")
            for link in ("lo", "wire"):
                _ip("-n", network, "link", "set", link, "up")

    def inside(self, network: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", network)

    def set(self, state: str) -> None:
        """``down`` or ``up``, at the server's end."""
        _ip("-n", self.server, "link", "set", "wire", state)

    def remove(self) -> None:
        for network in (self.client, self.server):
            subprocess.run(["ip", "netns", "del", network], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=LIMIT_S)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def command_of(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
