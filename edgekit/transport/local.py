"""This machine, reached as another one would be: for trying out, and for what is mounted or emulated here."""

import math
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from edgekit import files
from edgekit.errors import DeviceError
from edgekit.transport import GRACE_S, Ended, Feed, Sent, ignore, limited

CHUNK = 1 << 20
WORDS_BYTES = 4000


class LocalTransport:
    """*environment*: more variables for what runs, a PATH with stand-ins for instance."""

    def __init__(self, address: str = "local", environment: Mapping[str, str] | None = None) -> None:
        self._address, self._environment = address, {**os.environ, **(environment or {})}

    @property
    def address(self) -> str:
        return self._address

    def connect(self) -> None:
        """Nothing can be lost."""

    def run(
        self,
        command: str,
        *,
        limit_s: float,
        feed: Feed = ignore,
        pid_file: str = "",
        beat_s: float = math.inf,
    ) -> Ended:
        with tempfile.TemporaryFile() as stderr:
            process = self._start(limited(command, limit_s, pid_file), stderr)
            try:
                _read_lines(process, feed, limit_s + GRACE_S, beat_s, f"{self.address}: `{command[:60]}`")
                status = process.wait(timeout=GRACE_S)
            finally:
                _end(process)
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - WORDS_BYTES))
            return Ended(status=status, stderr=stderr.read().decode(errors="replace"))

    def send(self, source: Path, target: str, *, offset: int, sent: Sent) -> None:
        with source.open("rb") as stream, Path(target).open("r+b" if offset else "wb") as there:
            stream.seek(offset)
            there.seek(offset)
            while data := stream.read(CHUNK):
                there.write(data)
                sent(there.tell())

    def pull(self, source: str, target: Path) -> None:
        try:
            with files.replacing(target) as part:
                part.write_bytes(Path(source).read_bytes())
        except FileNotFoundError as error:
            raise DeviceError(f"{self.address}: no such file there: {source}") from error

    def close(self) -> None:
        """Nothing is open."""

    def _start(self, line: str, stderr: BinaryIO) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["sh", "-c", line],
            stdin=subprocess.PIPE,  # held open: its end tells that we are gone
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=self._environment,
            start_new_session=True,
        )


def _read_lines(process: "subprocess.Popen[bytes]", feed: Feed, limit_s: float, beat_s: float, what: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    descriptor, rest, beaten = process.stdout.fileno(), b"", time.monotonic()
    end = beaten + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, min(end, beaten + beat_s) - time.monotonic()))
            if (now := time.monotonic()) >= beaten + beat_s:
                beaten = now
                with suppress(BrokenPipeError):  # its stdout tells
                    os.write(process.stdin.fileno(), b"\n")
            if not ready and now >= end:
                raise DeviceError(f"{what} did not end within {limit_s:.0f} s")
            if not ready:
                continue
            data = os.read(descriptor, 1 << 16)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                feed(line + b"\n")
            if not data:
                break
    if rest:
        feed(rest)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it, with whatever runs in its group, where it has not ended by itself."""
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_S)
