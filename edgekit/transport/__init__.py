"""How a machine is reached: commands run there, files brought and fetched. What is done there is others' business.

A transport serves one thread at a time. Each has its own connection, so several devices can work at once.
"""

import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.errors import DeviceError

Feed = Callable[[bytes], None]  # takes one line of stdout with its end, which the last may lack
Sent = Callable[[int], None]  # takes the number of bytes that have gone so far
GRACE_S = 10.0  # how much later than the device's own time limit this side gives up
LOST = "the link was lost: connecting again"
TIMED_OUT = (124, 137)  # what `timeout` ends with


class LinkLost(DeviceError):
    """The connection is gone; `Transport.connect` may bring it back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a command ended. *stderr*: the last of what it said there."""

    status: int
    stderr: str = ""


def ignore(value: object) -> None:
    """For what nobody listens to."""


class Transport(Protocol):
    @property
    def address(self) -> str: ...

    def connect(self) -> None:
        """Reach the machine, also anew after the link was lost. Raises DeviceError, LinkLost where it may pass."""

    def run(
        self,
        command: str,
        *,
        limit_s: float,
        feed: Feed = ignore,
        pid_file: str = "",
        beat_s: float = math.inf,
    ) -> Ended:
        """How the shell command ended. Raises LinkLost, or DeviceError past its time limit.

        The limit holds on the device, whatever becomes of the link. *pid_file* is written there; when *feed*
        raises or this side is interrupted, the process in it is ended, its children with it. So often as *beat_s*
        a line break goes to its stdin: a link that died silently looks alive from there for a quarter of an hour.
        """
        ...

    def send(self, source: Path, target: str, *, offset: int, sent: Sent) -> None:
        """Bring a file's bytes from *offset* on; the target already holds those before. Raises DeviceError."""

    def pull(self, source: str, target: Path) -> None:
        """Fetch a file. Raises DeviceError; *target* is whole or absent."""

    def close(self) -> None: ...


def limited(command: str, limit_s: float, pid_file: str = "") -> str:
    """The command for a login shell of any kind, with a time limit of its own, its process id in *pid_file*."""
    seconds, inner = max(1, math.ceil(limit_s)), shlex.quote(command)
    note = f"echo $$ > {shlex.quote(pid_file)} && " if pid_file else ""
    # macOS has no `timeout`, but perl; its alarm outlives exec.
    perl = f"exec perl -e 'alarm shift; exec @ARGV' {seconds} sh -c {inner}"
    script = f"{note}if command -v timeout >/dev/null; then exec timeout -k 5 {seconds} sh -c {inner}; fi; {perl}"
    return f"exec sh -c {shlex.quote(script)}"


def output(transport: Transport, command: str, *, limit_s: float = 30.0) -> str:
    """What a short command prints. Raises DeviceError when it fails, with its last words."""
    lines: list[bytes] = []
    ended = transport.run(command, limit_s=limit_s, feed=lines.append)
    check(transport, command, ended)
    return b"".join(lines).decode(errors="replace")


def check(transport: Transport, command: str, ended: Ended) -> None:
    """Raise DeviceError for a command that failed."""
    if ended.status:
        words = ended.stderr.strip().splitlines() or [f"status {ended.status}"]
        line = " ".join(command.split())
        shown = line if len(line) <= 60 else f"{line[:57]}..."
        raise DeviceError(f"{transport.address}: `{shown}` failed there: {words[-1]}")


def reconnect(transport: Transport, patience_s: float, tell: Callable[[], None] = lambda: None) -> None:
    """Connect again, trying for *patience_s*; *tell* is called before each try.

    Raises the last LinkLost then, another DeviceError at once.
    """
    end, pause_s = time.monotonic() + patience_s, 1.0
    while True:
        tell()
        try:
            return transport.connect()
        except LinkLost:
            if time.monotonic() + pause_s > end:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 8.0)
