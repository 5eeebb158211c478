"""A large file over SSH's file transfer: many pieces on their way at a time.

From about a megabyte on it is faster than a stream into `cat`, which OpenSSH's server handles in smaller pieces. A
server that has no SFTP gets the stream.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORTH_BYTES = 1_000_000  # below this the questions before it cost more than it gains
START_S = 20.0
AHEAD_BYTES = 4 << 20  # on their way at a time
PIECE_BYTES = 1 << 18  # at most; OpenSSH says that it takes a little less, and hangs up when it gets more


async def client_of(connection: Any) -> Any:
    """The connection's SFTP client; None where there is none, or a login shell's greeting spoils it."""
    import asyncssh

    try:
        return await asyncio.wait_for(connection.start_sftp_client(), START_S)
    except (asyncssh.Error, OSError):  # a link that is lost shows in what is tried next
        return None


async def write(client: Any, source: Path, target: str, offset: int, tell: Callable[[int], None]) -> str:
    """Why the file's bytes from *offset* on could not be written there, or nothing. Raises asyncssh.Error.

    The server writes in the order in which it is asked, so that what is there after a lost link has no holes.
    """
    import asyncssh

    size = min(PIECE_BYTES, client.limits.max_write_len)
    waiting: deque[tuple[asyncio.Task[Any], int]] = deque()
    try:
        async with client.open(target, "r+b" if offset else "wb", block_size=0) as file:
            with source.open("rb") as stream:
                stream.seek(offset)
                try:
                    while data := stream.read(size):
                        begin = stream.tell() - len(data)
                        waiting.append((asyncio.create_task(file.write(data, begin)), stream.tell()))
                        if len(waiting) * size >= AHEAD_BYTES:
                            tell(await _first(waiting))
                    while waiting:
                        tell(await _first(waiting))
                finally:
                    for task, _ in waiting:
                        task.cancel()
                    await asyncio.gather(*(task for task, _ in waiting), return_exceptions=True)
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection):
        raise
    except asyncssh.SFTPError as error:
        return error.reason or type(error).__name__
    return ""


async def _first(waiting: "deque[tuple[asyncio.Task[Any], int]]") -> int:
    """The end of the first piece on its way, once it is there."""
    task, end = waiting.popleft()
    await task
    return end
