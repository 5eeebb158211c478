"""One visit to a machine at a time: who holds it, and the lock of this one."""

import fcntl
import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from edgekit import files
from edgekit.errors import DeviceBusy

POLL_S = 1.0


def me() -> str:
    """``ME@HOST since 14:02 on 2026-11-21``, as the others are told."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()} since {datetime.now():%H:%M on %Y-%m-%d}"


def local_lock() -> Path:
    """The file that a bench on this machine holds. Several users may share one: EDGEKIT_LOCK."""
    if given := os.environ.get("EDGEKIT_LOCK"):
        return Path(given)
    return files.cache() / "local.lock"


@contextmanager
def held(path: Path, address: str) -> Iterator[None]:
    """Hold the lock; the system frees it when the process ends in any way. Raises DeviceBusy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise DeviceBusy(address, stream.read().strip()) from None
        stream.truncate(0)
        stream.write(me())
        stream.flush()
        yield


def wait(path: Path, address: str, limit_s: float, tell: Callable[[str], None]) -> None:
    """Return when nobody holds the lock; *tell* who does meanwhile. Raises DeviceBusy after *limit_s*."""
    end = time.monotonic() + limit_s
    while path.exists():
        with path.open("r") as stream:
            try:
                # Shared: several that wait do not take each other for holders.
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = stream.read().strip()
        if time.monotonic() >= end:
            raise DeviceBusy(address, holder)
        tell(DeviceBusy.words(holder))
        time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))
