"""From ``pi@raspberrypi.local`` to a connection: the user's ssh configuration, keys, jump hosts, known hosts.

Host keys are always checked, also where the user's configuration would not: one that is not known is shown with
the command that accepts it. What goes wrong is told in one line, with its cure.
"""

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import DeviceError, UsageError
from edgekit.transport import LinkLost

CONNECT_S = 20.0
# A link that says nothing for so long is lost: three questions without an answer.
KEEPALIVE_S, KEEPALIVE_COUNT = 5.0, 3
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where to connect. *host* may be an alias of the user's ssh configuration, which then gives the rest."""

    host: str
    user: str = ""
    port: int = 0

    @property
    def address(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"ssh://{self.login}{port}" if ":" not in self.host else f"ssh://{self._user}[{self.host}]{port}"

    @property
    def login(self) -> str:
        return f"{self._user}{self.host}"

    @property
    def command(self) -> str:
        """How OpenSSH's own client reaches it."""
        return f"ssh {f'-p {self.port} ' if self.port else ''}{self.login}"

    @property
    def _user(self) -> str:
        return f"{self.user}@" if self.user else ""


def parse(rest: str) -> Target:
    """The target in ``[user@]host[:port]``, an IPv6 address in brackets. Raises UsageError."""
    user, _, place = rest.removeprefix("ssh://").rpartition("@")
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        host, colon, port = place, "", ""
    host = host.removeprefix("[").removesuffix("]")
    strange = set(host + user) & set(" /?#@") or host.startswith("-") or user.startswith("-")
    if not host or strange or (colon and not (port.isdigit() and 0 < int(port) < 65536)):
        raise UsageError(f"ssh://{rest}: an address is ssh://[user@]host[:port], as ssh://pi@raspberrypi.local")
    return Target(host=host, user=user, port=int(port or 0))


async def open_connections(target: Target) -> list[Any]:
    """The connections to the jump hosts, in order, and last the one to the target. Raises DeviceError."""
    connections: list[Any] = []
    try:
        jumps = (await _options(target)).tunnel
        for jump in jumps.split(",") if isinstance(jumps, str) else ():
            connections.append(await _connection(parse(jump), connections))
        connections.append(await _connection(target, connections))
    except BaseException:
        for connection in reversed(connections):
            connection.abort()
        raise
    return connections


async def _options(target: Target) -> Any:
    import asyncssh

    try:
        return await asyncssh.SSHClientConnectionOptions.construct(
            config=(), host=target.host, port=target.port or (), username=target.user or ()
        )
    except (ValueError, OSError, asyncssh.Error) as error:
        cure = "; unlock it with ssh-add" if "passphrase" in str(error).lower() else ""
        raise DeviceError(
            f"{target.address}: your ssh configuration or key is of no use: {error}{cure}"
        ) from error


async def _connection(target: Target, before: list[Any]) -> Any:
    """A connection, through the last of those *before*."""
    import asyncssh

    options = await _options(target)
    tunnel = before[-1] if before else None
    known = _known_hosts(options.known_hosts)
    where = f"{target.address}: "
    try:
        return await asyncssh.connect(
            target.host,
            target.port or (),
            username=target.user or (),
            tunnel=tunnel,
            known_hosts=known,
            encryption_algs=_ciphers(options.encryption_algs),
            connect_timeout=CONNECT_S,
            login_timeout=CONNECT_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVE_COUNT,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise DeviceError(where + await _strange_key(target, options, known, tunnel)) from error
    except asyncssh.PermissionDenied as error:
        user = options.username
        raise DeviceError(
            f"{where}{user} is refused: no key of yours is accepted there; is {user} the right user? "
            f"If so: ssh-copy-id {f'-p {target.port} ' if target.port else ''}{user}@{target.host}"
        ) from error
    except socket.gaierror as error:
        raise LinkLost(f"{where}no host of that name is found: is it on, and in this network?") from error
    except ConnectionRefusedError as error:
        raise LinkLost(
            f"{where}nothing there answers SSH; on a Raspberry Pi: sudo raspi-config nonint do_ssh 0"
        ) from error
    except TimeoutError as error:
        raise LinkLost(
            f"{where}no answer within {CONNECT_S:.0f} s: is it on, and in this network? try: ping {target.host}"
        ) from error
    except (asyncssh.Error, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
            raise LinkLost(
                f"{where}no way leads there: is it on, and in this network? try: ping {target.host}"
            ) from error
        why = str(error) or type(error).__name__
        raise LinkLost(f"{where}no connection: {why}; is that SSH's port? try: {target.command}") from error


def _ciphers(configured: Sequence[bytes]) -> list[str]:
    """AES-GCM before ChaCha20 in asyncssh's own order; an order of the user's own as it is.

    asyncssh sets ChaCha20 up four times for each packet, which halves the speed of a push; a server without the
    processor's instructions for AES still takes more than its SD card can write.
    """
    import asyncssh

    names = [name.decode() for name in configured]
    if configured == asyncssh.SSHClientConnectionOptions(config=None).encryption_algs:
        names.sort(key=lambda name: "gcm" not in name)
    return names


def _known_hosts(configured: Any) -> list[str]:
    """The files of known hosts that are there.

    Never None, which is asyncssh's word for "trust any", and what it makes of `UserKnownHostsFile none`.
    """
    own = [str(Path("~/.ssh/known_hosts").expanduser())]
    names = [str(name) for name in configured] if isinstance(configured, (list, tuple)) else []
    candidates = [Path(name).expanduser() for name in names or own]
    return [str(path) for path in (*candidates, SYSTEM_KNOWN_HOSTS) if path.is_file()]


async def _strange_key(target: Target, options: Any, known: list[str], tunnel: Any) -> str:
    """What to tell of a host key that is not trusted, and what to do."""
    import asyncssh

    try:
        key = await asyncssh.get_server_host_key(target.host, target.port or (), tunnel=tunnel)
    except (asyncssh.Error, OSError) as error:
        raise LinkLost(f"{target.address}: no connection: {error}") from error
    assert key is not None
    shown = f"{key.get_algorithm().removeprefix('ssh-')} {key.get_fingerprint()}"
    port = None if options.port == 22 else options.port
    listed = (
        asyncssh.match_known_hosts(known, options.host_key_alias or options.host, "", port)[0] if known else ()
    )
    if listed:
        return (
            f"its host key is {shown}, and not the one that you know: it was set up anew, or somebody listens in. "
            f"If you set it up anew: ssh-keygen -R {_entry(target, options)}"
        )
    return (
        f"its host key is not known to you: {shown}. Compare it with what `ssh-keygen -lf "
        f"/etc/ssh/ssh_host_{key.get_algorithm().removeprefix('ssh-').partition('-')[0]}_key.pub` prints there, "
        f"and accept it: {target.command} true"
    )


def _entry(target: Target, options: Any) -> str:
    host = options.host_key_alias or options.host or target.host
    return f"'[{host}]:{options.port}'" if options.port not in (None, 22) else host
