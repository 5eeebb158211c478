"""Another machine over SSH, through asyncssh.

It works in a thread of the transport's own, so that callers wait in plain code and several devices go at once.
"""

import asyncio
import math
import queue
import shlex
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from edgekit import files
from edgekit.errors import DeviceError
from edgekit.requires import require
from edgekit.transport import GRACE_S, Ended, Feed, LinkLost, Sent, check, ignore, limited, sftp
from edgekit.transport.ssh_connect import CONNECT_S, Target, open_connections

T = TypeVar("T")
NO_SFTP = 2  # a status of our own
STALL_S = 60.0  # a file that does not move for so long does not arrive
CHUNK = 1 << 18
WORDS_BYTES = 4000


class SshTransport:
    """Connected by `connect`, which is also called again after a LinkLost."""

    def __init__(self, target: Target) -> None:
        require("asyncssh", feature="Reaching devices over ssh", extra="ssh")
        self.target = target
        self._connections: list[Any] = []  # jump hosts first
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self.address, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return self.target.address

    def connect(self) -> None:
        self._call(self._disconnect(), GRACE_S)
        self._connections = self._call(open_connections(self.target), 4 * CONNECT_S)

    def run(
        self,
        command: str,
        *,
        limit_s: float,
        feed: Feed = ignore,
        pid_file: str = "",
        beat_s: float = math.inf,
    ) -> Ended:
        line = limited(command, limit_s, pid_file)
        try:
            return self._drive(lambda tell: self._run(line, tell, beat_s), feed, limit_s=limit_s + GRACE_S)
        except LinkLost:
            raise
        except BaseException:
            if pid_file:
                self._end(pid_file)
            raise

    def send(self, source: Path, target: str, *, offset: int, sent: Sent) -> None:
        if source.stat().st_size - offset >= sftp.WORTH_BYTES:
            begin = offset
            ended = self._drive(lambda tell: self._write(source, target, begin, tell), sent, stall_s=STALL_S)
            if ended.status == 0:
                return
            if ended.status != NO_SFTP:
                offset = 0  # how much is there now is not known
        # Every board has it, and it tells of a full disk in words.
        command = f"cat {'>>' if offset else '>'} {shlex.quote(target)}"
        line = limited(command, 3600 + source.stat().st_size / 1e5)
        ended = self._drive(lambda tell: self._feed(line, source, offset, tell), sent, stall_s=STALL_S)
        check(self, command, ended)

    def pull(self, source: str, target: Path) -> None:
        command = f"cat {shlex.quote(source)}"
        with files.replacing(target) as part, part.open("wb") as stream:
            ended = self._drive(
                lambda tell: self._run(limited(command, 3600), tell, math.inf, whole=True),
                stream.write,
                stall_s=STALL_S,
            )
            check(self, command, ended)

    def close(self) -> None:
        if self._thread.is_alive():
            with suppress(DeviceError):  # it is gone already
                self._call(self._disconnect(), GRACE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(GRACE_S)
            self._loop.close()

    # ---- between the two threads -----------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T], limit_s: float) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(limit_s)
        except TimeoutError as error:
            future.cancel()
            raise LinkLost(f"{self.address}: no answer within {limit_s:.0f} s") from error
        except BaseException:
            future.cancel()
            raise

    def _drive(
        self,
        work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, Ended]],
        take: Callable[[Any], object],
        *,
        limit_s: float = float("inf"),
        stall_s: float = float("inf"),
    ) -> Ended:
        """What *work* gives; what it tells meanwhile goes to *take* in the caller's thread."""
        told: queue.SimpleQueue[Any] = queue.SimpleQueue()

        async def guarded() -> Ended:
            try:
                return await work(told.put)
            finally:
                told.put(None)

        future = asyncio.run_coroutine_threadsafe(guarded(), self._loop)
        end = time.monotonic() + limit_s
        try:
            while True:
                wait_s = min(end - time.monotonic(), stall_s)
                if (item := told.get(timeout=max(0.0, min(wait_s, threading.TIMEOUT_MAX)))) is None:
                    return future.result(GRACE_S)
                take(item)
        except queue.Empty as error:
            late = (
                f"did not end within {limit_s:.0f} s" if stall_s > limit_s else f"stood still for {stall_s:.0f} s"
            )
            raise LinkLost(f"{self.address}: what ran there {late}") from error
        finally:
            future.cancel()

    # ---- in asyncssh's thread ----------------------------------------------------------------------------------

    async def _process(self, line: str) -> Any:
        if not self._connections:
            raise LinkLost(f"{self.address}: not connected")
        return await self._connections[-1].create_process(line, encoding=None)

    async def _run(self, line: str, tell: Callable[[bytes], None], beat_s: float, *, whole: bool = False) -> Ended:
        """Run it; tell each line of its stdout, or with *whole* each piece as it comes."""
        with _link(self.address):
            async with await self._process(line) as process, _beating(process.stdin, beat_s):
                words = asyncio.create_task(_last_of(process.stderr))
                rest = b""
                while data := await process.stdout.read(CHUNK):
                    if whole:
                        tell(data)
                        continue
                    *lines, rest = (rest + data).split(b"\n")
                    for one in lines:
                        tell(one + b"\n")
                if rest:
                    tell(rest)
                return await self._ended(process, await words)

    async def _feed(self, line: str, source: Path, offset: int, tell: Callable[[int], None]) -> Ended:
        with source.open("rb") as stream, _link(self.address):
            stream.seek(offset)
            async with await self._process(line) as process:
                words = asyncio.create_task(_last_of(process.stderr))
                try:
                    while data := stream.read(CHUNK):
                        process.stdin.write(data)
                        await process.stdin.drain()
                        tell(stream.tell())
                    process.stdin.write_eof()
                except BrokenPipeError:
                    pass  # it ended early: its last words tell why
                return await self._ended(process, await words)

    async def _write(self, source: Path, target: str, offset: int, tell: Callable[[int], None]) -> Ended:
        """NO_SFTP where there is none, status 1 where it failed on the way."""
        if not self._connections:
            raise LinkLost(f"{self.address}: not connected")
        with _link(self.address):
            if (client := await sftp.client_of(self._connections[-1])) is None:
                return Ended(status=NO_SFTP)
            async with client:
                failed = await sftp.write(client, source, target, offset, tell)
                return Ended(status=1 if failed else 0, stderr=failed)

    async def _ended(self, process: Any, words: bytes) -> Ended:
        await process.wait_closed()
        if process.exit_status is None and process.exit_signal is None:
            raise LinkLost(f"{self.address}: the link was lost")
        return Ended(status=process.returncode, stderr=words.decode(errors="replace"))

    async def _disconnect(self) -> None:
        connections, self._connections = self._connections, []
        for connection in reversed(connections):
            connection.abort()
            await connection.wait_closed()

    def _end(self, pid_file: str) -> None:
        """End the process whose id stands in the file; `timeout` passes the signal on to its group."""
        with suppress(DeviceError):  # where the link is gone its own time limit ends it
            self._call(
                self._run(limited(f"kill $(cat {shlex.quote(pid_file)})", GRACE_S), ignore, math.inf), GRACE_S
            )


@asynccontextmanager
async def _beating(stdin: Any, beat_s: float) -> AsyncIterator[None]:
    """Inside it a line break goes to *stdin* so often."""
    import asyncssh

    async def beat() -> None:
        with suppress(asyncssh.Error, OSError):  # who reads stdout is told, too
            while math.isfinite(beat_s):
                await asyncio.sleep(beat_s)
                stdin.write(b"\n")

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


async def _last_of(stream: Any) -> bytes:
    import asyncssh

    words = b""
    with suppress(asyncssh.Error, OSError):  # who reads stdout is told, too
        while data := await stream.read(CHUNK):
            words = (words + data)[-WORDS_BYTES:]
    return words


@contextmanager
def _link(address: str) -> Iterator[None]:
    """Inside it what asyncssh raises becomes LinkLost."""
    import asyncssh

    try:
        yield
    except (asyncssh.Error, OSError) as error:
        raise LinkLost(f"{address}: the link was lost: {str(error) or type(error).__name__}") from error
