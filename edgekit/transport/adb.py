"""An Android phone, or a Linux machine that runs adbd, through the `adb` program.

Each command is a client process of its own. A lost link shows in that the line with which every command ends there
does not come: the client's own exit status cannot be told from the command's.
"""

import math
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from edgekit import files
from edgekit.errors import DeviceError
from edgekit.transport import GRACE_S, Ended, Feed, LinkLost, Sent, check, ignore, limited
from edgekit.transport.adb_connect import Target, answers, ask, program, reach

CHUNK = 1 << 17
STALL_S = 60.0  # a file that does not move for so long does not arrive
SILENT_S = 15.0  # a command that says nothing for so long: is the device still there?
FILE_S = 3600.0  # a file takes at most this, and more by its size
WORDS_BYTES = 4000


@dataclass(slots=True)
class _Client:
    process: "subprocess.Popen[bytes]"
    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: BinaryIO
    mark: bytes
    address: str

    def ended(self) -> Ended:
        """How the command ended there. Raises LinkLost when that is not known."""
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired as error:
            raise LinkLost(f"{self.address}: the link was lost: adb does not end") from error
        self.stderr.seek(max(0, self.stderr.seek(0, os.SEEK_END) - WORDS_BYTES))
        words, mark, status = self.stderr.read().rpartition(self.mark)
        if not mark:
            said = status.decode(errors="replace").strip().splitlines()
            why = f": {said[-1].removeprefix('error: ')}" if said else ""
            raise LinkLost(f"{self.address}: the link was lost{why}")
        return Ended(status=int(status.split()[0]), stderr=words.decode(errors="replace"))


class AdbTransport:
    """Connected by `connect`, which is also called again after a LinkLost."""

    def __init__(self, target: Target) -> None:
        program()
        self.target = target

    @property
    def address(self) -> str:
        return self.target.address

    def connect(self) -> None:
        self.target = reach(self.target)

    def run(
        self,
        command: str,
        *,
        limit_s: float,
        feed: Feed = ignore,
        pid_file: str = "",
        beat_s: float = math.inf,
    ) -> Ended:
        rest = b""

        def take(data: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                feed(line + b"\n")

        try:
            with self._client(limited(command, limit_s, pid_file)) as client:
                self._read(client, take, limit_s=limit_s + GRACE_S, beat_s=beat_s)
                ended = client.ended()
            if rest:
                feed(rest)
            return ended
        except LinkLost:
            raise
        except BaseException:
            if pid_file:
                self._end(pid_file)
            raise

    def send(self, source: Path, target: str, *, offset: int, sent: Sent) -> None:
        # Not `adb push`: it cannot go on in the middle of a file, and brings the mode and time of ours along.
        command = f"cat {'>>' if offset else '>'} {shlex.quote(target)}"
        with (
            source.open("rb") as stream,
            self._client(limited(command, _limit_s(source.stat().st_size))) as client,
        ):
            stream.seek(offset)
            self._write(client, stream, sent)
            self._read(client, ignore, limit_s=STALL_S)
            check(self, command, client.ended())

    def pull(self, source: str, target: Path) -> None:
        command = f"cat {shlex.quote(source)}"
        with files.replacing(target) as part, part.open("wb") as stream:
            with self._client(limited(command, FILE_S)) as client:
                self._read(client, stream.write, limit_s=FILE_S + GRACE_S)
                ended = client.ended()
            check(self, command, ended)

    def close(self) -> None:
        """Nothing of ours stays open: adb's server is the user's."""

    @contextmanager
    def _client(self, line: str) -> Iterator[_Client]:
        """`adb shell` at work on the command line; ended when the body is."""
        mark = f"edgekit-{uuid.uuid4().hex}:"
        # The subshell, since `limited` replaces the shell that runs it.
        script = f"({line}); s=$?; echo {mark} $s >&2; exit $s"
        with tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                [program(), "-s", self.target.serial, "shell", "-T", script],
                stdin=subprocess.PIPE,  # held open: its end tells what runs there that we are gone
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield _Client(process, process.stdin, process.stdout, stderr, mark.encode(), self.address)
            finally:
                _end(process)

    def _read(
        self, client: _Client, take: Callable[[bytes], object], *, limit_s: float, beat_s: float = math.inf
    ) -> None:
        """Give all of its stdout to *take*. Raises LinkLost past the limit, and when the device is gone."""
        heard = beaten = time.monotonic()
        end = heard + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(client.stdout, selectors.EVENT_READ)
            while True:
                until = min(end, heard + SILENT_S, beaten + beat_s)
                if selector.select(max(0.0, until - time.monotonic())):
                    if not (data := os.read(client.stdout.fileno(), CHUNK)):
                        return
                    take(data)
                    heard = time.monotonic()
                if (now := time.monotonic()) >= beaten + beat_s:
                    beaten = now
                    with suppress(BrokenPipeError):  # its stdout tells
                        os.write(client.stdin.fileno(), b"\n")
                if now >= end:
                    raise LinkLost(f"{self.address}: what ran there did not end within {limit_s:.0f} s")
                if now >= heard + SILENT_S:
                    if not answers(self.target):
                        raise LinkLost(f"{self.address}: the link was lost: it answers no more")
                    heard = time.monotonic()

    def _write(self, client: _Client, stream: BinaryIO, sent: Sent) -> None:
        """Feed it the rest of the stream. Raises LinkLost when nothing moves for STALL_S."""
        descriptor, done = client.stdin.fileno(), stream.tell()
        os.set_blocking(descriptor, False)
        with selectors.DefaultSelector() as selector, suppress(BrokenPipeError):  # its last words tell why
            selector.register(descriptor, selectors.EVENT_WRITE)
            while data := stream.read(CHUNK):
                while data:
                    if not selector.select(STALL_S):
                        raise LinkLost(f"{self.address}: what is sent there stood still for {STALL_S:.0f} s")
                    with suppress(BlockingIOError):  # it takes less than a whole piece
                        count = os.write(descriptor, data)
                        data, done = data[count:], done + count
                sent(done)
        client.stdin.close()

    def _end(self, pid_file: str) -> None:
        """End the process whose id stands in the file.

        And what it has started: GNU's `timeout` passes the signal on to its group, Android's does not. The process
        itself comes first, for a `timeout` whose child is gone ends without telling the others.
        """
        tree = "tree() { echo $1; for one in $(pgrep -P $1); do tree $one; done; }"
        script = f"{tree}; p=$(cat {shlex.quote(pid_file)}) && kill $(tree $p)"
        with suppress(DeviceError):  # where the link is gone its own time limit ends it
            ask("-s", self.target.serial, "shell", "-n", "-T", script, limit_s=GRACE_S, address=self.address)


def _limit_s(size_bytes: int) -> float:
    return FILE_S + size_bytes / 1e5


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the client, where it has not ended by itself."""
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with suppress(BrokenPipeError):
            stream.close()
    with suppress(subprocess.TimeoutExpired):
        # It ends at once when what it ran has ended.
        process.wait(0.0 if process.poll() is None else GRACE_S)
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(GRACE_S)
