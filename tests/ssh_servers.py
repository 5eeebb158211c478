"""An SSH server for tests, in this process; its machine may be a stand-in."""

import asyncio
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh

from tests.emulated import FOLDER

LIMIT_S = 30.0
PI2 = "cortex-a7"  # 32 bits
# What a board has; no Python but the one that it is given.
TOOLS = (
    *("awk", "cat", "chmod", "cut", "df", "dirname", "env", "find", "getconf", "head", "ls", "mkdir", "mv", "rm"),
    *("sed", "sh", "sha256sum", "sleep", "tail", "timeout", "touch", "tr", "true", "uname", "wc"),
)


class Server:
    """An SSH server on 127.0.0.1 that runs commands in *home* with *environment*."""

    def __init__(self, home: Path, environment: Mapping[str, str], client_key: Any) -> None:
        self.home, self.environment, self._client_key = home, dict(environment), client_key
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.commands: list[str] = []
        self.received = 0  # bytes on stdin, all commands together
        self.drop_after: int | None = None
        self.greeting = ""  # what a login shell does first
        self._connections: list[asyncssh.SSHServerConnection] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.start()

    def start(self) -> None:
        self._acceptor = self._call(self._listen())
        self.port = self._acceptor.get_port()

    def stop(self) -> None:
        """Take no more connections; those that are open stay."""
        self._call(self._close_acceptor())

    def drop(self) -> None:
        """Cut every connection, as a network does."""
        self._call(self._abort())

    def freeze(self) -> None:
        """Answer no more on the connections that are open, and say nothing of it, as a network that is gone."""
        for connection in self._connections:
            socket: Any = connection._transport
            self._loop.call_soon_threadsafe(socket.pause_reading)

    def close(self) -> None:
        self.stop()
        self.drop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    async def _close_acceptor(self) -> None:
        self._acceptor.close()
        await self._acceptor.wait_closed()

    async def _abort(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.wait_closed()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        server = self

        class Doorman(asyncssh.SSHServer):
            def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
                server._connections.append(connection)

            def connection_requested(self, *_: object) -> bool:
                return True  # it serves as a jump host, too

        return await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_factory=Doorman,
            server_host_keys=[self.host_key],
            authorized_client_keys=asyncssh.import_authorized_keys(
                self._client_key.export_public_key().decode().strip()
            ),
            process_factory=self._serve,
            encoding=None,
            reuse_address=True,
        )

    async def _serve(self, process: Any) -> None:
        if process.subsystem:  # no SFTP here; OpenSSH has it
            process.exit(1)
            return
        self.commands.append(process.command)
        child = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", self.greeting + process.command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.home,
            env=self.environment,
            start_new_session=True,
        )
        assert child.stdin is not None
        feeding = asyncio.create_task(self._feed(process, child.stdin))
        try:
            await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
            process.exit(await child.wait())
        finally:
            feeding.cancel()

    async def _feed(self, process: Any, stdin: asyncio.StreamWriter) -> None:
        with suppress(asyncssh.Error, OSError):
            while data := await process.stdin.read(1 << 16):
                self.received += len(data)
                if self.drop_after is not None and self.received > self.drop_after:
                    self.drop_after = None
                    await self._abort()
                    break
                stdin.write(data)
                await stdin.drain()
        with suppress(OSError):
            stdin.close()


async def _pump(reader: Any, writer: Any) -> None:
    with suppress(asyncssh.Error, OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.close()


def user(home: Path) -> Any:
    """A user's ~/.ssh in *home*: a key, and nothing known. Returns the key."""
    ssh = home / ".ssh"
    ssh.mkdir(parents=True, mode=0o700)
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(ssh / "id_ed25519"))
    (ssh / "id_ed25519").chmod(0o600)
    key.write_public_key(str(ssh / "id_ed25519.pub"))
    return key


def know(home: Path, port: int, public: str) -> None:
    """Add a host key to the known ones."""
    with (home / ".ssh" / "known_hosts").open("a") as stream:
        stream.write(f"[127.0.0.1]:{port} {public}\n")


def tools(place: Path, **shims: str) -> str:
    """A PATH with TOOLS and *shims*, names and what they do, and nothing else."""
    place.mkdir(parents=True)
    for name in TOOLS:
        found = shutil.which(name)
        assert found, name
        (place / name).symlink_to(found)
    for name, script in shims.items():
        (place / name).unlink(missing_ok=True)
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
    return str(place)


def pi_environment(place: Path, cpu: str) -> dict[str, str]:
    """A Raspberry Pi: Debian's ARM Python under QEMU, no LiteRT, a processor that once was short of power."""
    machine, qemu, bits, name = ("aarch64", "qemu-aarch64", 64, "root")
    if cpu == PI2:
        machine, qemu, bits, name = ("armv7l", "qemu-arm", 32, "root32")
    root = FOLDER / name
    python = (
        f"export EDGEKIT_PYTHON={place / 'bin/python3'} PYTHONHOME={root}/usr\n"
        f'exec {FOLDER}/qemu/usr/bin/{qemu} -cpu {cpu} -L {root} {root}/usr/bin/python3.11 "$@"'
    )
    path = tools(
        place / "bin",
        python3=python,
        uname=f'case "$1" in -m) echo {machine};; *) exec /bin/uname "$@";; esac',
        getconf=f'case "$1" in LONG_BIT) echo {bits};; *) exec /usr/bin/getconf "$@";; esac',
        vcgencmd="echo throttled=0x50000",
    )
    return {"PATH": path, "HOME": str(place), "CPU": cpu}
