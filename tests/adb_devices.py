"""Devices over adb for tests: the real adbd in namespaces of its own, the real client, and daemons that refuse."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

LIMIT_S = 20.0
PORT = 15557  # adb's server looks for emulators by itself on 5555-5585


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EDGEKIT_ADBD") or cache / "edgekit/adbd")


ADBD = _folder() / "adbd"  # asked before a test moves the home folder


def missing() -> str:
    """Why there can be no adbd here, or nothing."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    if absent := [name for name in ("adb", "unshare", "nsenter", "setpriv") if not shutil.which(name)]:
        return f"no {absent[0]}: apt install adb util-linux"
    if not ADBD.is_file():
        return f"no {ADBD}: scripts/setup-emulated-devices makes it"
    words = ["unshare", "-Urmnpf", "--mount-proc", "true"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return f"no namespaces for this user: {done.stderr.strip()}" if done.returncode else ""


needs_adbd = pytest.mark.skipif(bool(missing()), reason=missing() or "it is there")

# All of this machine with a /data of its own, a network of nothing but itself, and adb's server in it: adbd asks
# nobody who he is. `hold` keeps it from starting again when it has been killed.
START = """
set -e
mkdir root data data/adb data/local data/local/tmp
mount -t tmpfs tmpfs root
for one in /*; do
    name=${one#/}
    if [ -L "$one" ]; then cp -P "$one" root/; elif [ -d "$one" ]; then mkdir -p "root/$name"
    mount --rbind "$one" "root/$name"; fi
done
mkdir -p root/data
mount --bind data root/data
"$PYTHON" -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 0x41))'
adb -L "localfilesystem:$PWD/adb.sock" nodaemon server > server.log 2>&1 &
set +e
for port in $PORTS; do
    while :; do
        [ -e hold ] || chroot root /usr/bin/env PATH="$BOARD_PATH" ADBD_PORT=$port "$ADBD" 2>> adbd.log
        sleep 0.05
    done &
done
wait
"""


class Board:
    """A machine with adbd. *folder*: where edgekit keeps its files there; adbd's home is the user's own."""

    def __init__(self, place: Path, process: "subprocess.Popen[bytes]", inner: int) -> None:
        self.place, self.process, self.inner = place, process, inner
        self.folder = place / "edgekit"
        self.serial = f"127.0.0.1:{PORT}"
        self.address = f"adb://{self.serial}"
        self.full = f"{self.address}?folder={self.folder}"

    def daemons(self) -> list[int]:
        """The adbd processes themselves, without what they run."""
        return [pid for pid in _descendants(self.inner) if _command(pid).endswith("platform-tools/adbd\0")]

    def kill(self) -> None:
        """End every adbd; each starts again unless held."""
        for pid in self.daemons():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextmanager
    def gone(self) -> Iterator[None]:
        (self.place / "hold").touch()
        self.kill()
        try:
            yield
        finally:
            (self.place / "hold").unlink()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It is there, and answers nothing."""
        daemons = self.daemons()
        for pid in daemons:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in daemons:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextmanager
    def beside(self, *words: str) -> Iterator[None]:
        """A program at work in the board's network, until it says a first line and then to the end of the body."""
        enter = ["nsenter", "-t", str(self.inner), "-U", "-n", "--preserve-credentials", *words]
        with subprocess.Popen(enter, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield
            finally:
                process.kill()


@contextmanager
def running(
    place: Path, monkeypatch: pytest.MonkeyPatch, *, ports: tuple[int, ...] = (PORT,), path: str = ""
) -> Iterator[Board]:
    """A board in *place*; adb's clients find its server. *path*: what its PATH is, else this machine's."""
    (place / "user").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(place / "user"))  # adb's own keys
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setenv("ADB_SERVER_SOCKET", f"localfilesystem:{place}/adb.sock")
    for name in ("ANDROID_SERIAL", "ANDROID_ADB_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "ADBD": str(ADBD),
        "PORTS": " ".join(map(str, ports)),
        "BOARD_PATH": path or f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    # Killed with this process, also when that is killed itself.
    unshare = ["unshare", "-Urmnpf", "--kill-child", "--mount-proc", "sh", "-c", START]
    words = ["setpriv", "--pdeathsig", "KILL", *unshare]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            words,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait(lambda: (place / "adb.sock").is_socket() or process.poll() is not None, "adb's server")
        wait(lambda: "listening on tcp" in _text(place / "adbd.log") or process.poll() is not None, "adbd")
        assert process.poll() is None, _text(place / "log")
        yield Board(place, process, _children(process.pid)[0])
    finally:
        process.kill()  # what is in its namespace goes with it
        process.wait(LIMIT_S)


def wait(done: Callable[[], bool], what: str, seconds: float = LIMIT_S) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.02)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descendants(pid: int) -> list[int]:
    found = _children(pid)
    return found + [one for child in found for one in _descendants(child)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


# A daemon that never says who it is, or that never accepts a key, in adb's own protocol: 24 bytes of header
# (command, two arguments, length, checksum, the command inverted), then the payload.
REFUSING = """
import socket, struct, sys, threading
def packet(command, first, data):
    number, = struct.unpack("<I", command)
    return struct.pack("<4s5I", command, first, 0, len(data), sum(data), number ^ 0xFFFFFFFF) + data
def serve(peer, mute):
    buffer = b""
    while data := peer.recv(65536):
        buffer += data
        while len(buffer) >= 24 and len(buffer) >= 24 + struct.unpack("<I", buffer[12:16])[0]:
            end = 24 + struct.unpack("<I", buffer[12:16])[0]
            command, buffer = buffer[:4], buffer[end:]
            if command in (b"CNXN", b"AUTH") and not mute:
                peer.sendall(packet(b"AUTH", 1, b"t" * 20))
mute, listener = sys.argv[2] == "mute", socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0], mute), daemon=True).start()
"""


def refusing(board: Board, port: int, how: str) -> AbstractContextManager[None]:
    """A device on *port* that is ``mute`` or ``unauthorized``."""
    return board.beside(sys.executable, "-c", REFUSING, str(port), how)
