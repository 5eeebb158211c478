"""The `adb` program and its server: which devices it sees, and how one of them is reached.

What goes wrong is told in one line, with its cure. The server is the user's own and stays when we leave.
"""

import shutil
import subprocess
import time
from dataclasses import dataclass

from edgekit.errors import DeviceError, MissingDependency, UsageError
from edgekit.transport import LinkLost

START_S = 20.0  # for the server to start
ANSWER_S = 15.0  # for a device to answer `true`, and for `adb connect`
SETTLE_S = 5.0  # a device that has just come is offline at first
PASSING = ("offline", "authorizing", "connecting", "host")  # states that may become `device` by themselves

# What to do about a state of `adb devices` that stays.
CURES = {
    "offline": "it is offline: unlock it, plug it in anew or switch its USB debugging off and on",
    "unauthorized": "it does not know this computer: unlock it, say yes to 'Allow USB debugging?', then again",
    "authorizing": "it does not know this computer: unlock it, say yes to 'Allow USB debugging?', then again",
    "no permissions": "this computer may not use it: sudo apt install android-sdk-platform-tools-common, then "
    "plug it in anew",
    "recovery": "it is in recovery mode: boot it",
    "sideload": "it waits for an update: boot it",
    "bootloader": "it is in its boot loader: boot it",
    "rescue": "it is in rescue mode: boot it",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A device of `adb devices`. *serial*: nothing for the only one there is."""

    serial: str

    @property
    def address(self) -> str:
        return f"adb://{self.serial}"

    @property
    def over_network(self) -> bool:
        """Whether it is to be reached with `adb connect`."""
        host, colon, port = self.serial.rpartition(":")
        return bool(colon and host) and port.isdigit()


def parse(place: str) -> Target:
    """The target in ``SERIAL``, ``HOST:PORT`` or nothing. Raises UsageError."""
    target = Target(serial=place)
    port = place.rpartition(":")[2]
    wrong_port = ":" in place and not place.endswith("]") and not (port.isdigit() and 0 < int(port) < 65536)
    if place.startswith("-") or set(place) & set(" /?#@\t\n") or wrong_port:
        raise UsageError(
            f"adb://{place}: an address is adb://SERIAL, as `adb devices` shows it, or adb://HOST:PORT"
        )
    return target


def program() -> str:
    """The path of `adb`. Raises MissingDependency."""
    if found := shutil.which("adb"):
        return found
    raise MissingDependency(
        "Reaching devices over adb needs the program adb: sudo apt install adb (macOS: brew install "
        "android-platform-tools)"
    )


def ask(*words: str, limit_s: float = ANSWER_S, address: str = "adb") -> tuple[int, str]:
    """The status and all that `adb WORDS` says. Raises LinkLost when it does not answer."""
    try:
        # A session of its own: Ctrl-C here must not end a server that it starts.
        done = subprocess.run(
            [program(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise LinkLost(f"{address}: `adb {words[0]}` did not answer within {limit_s:.0f} s") from error
    return done.returncode, done.stdout.decode(errors="replace").strip()


def devices() -> dict[str, str]:
    """The state of each device that the server sees, as `adb devices` says it. Raises DeviceError."""
    status, text = ask("start-server", limit_s=START_S)
    if status:
        raise DeviceError(f"adb: its server does not start: {_last(text)}")
    status, text = ask("devices")
    if status:
        raise DeviceError(f"adb: {_last(text)}")
    pairs = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {serial.strip(): state.partition(" (")[0].strip() for serial, state in pairs}


def reach(target: Target) -> Target:
    """The target with its serial, once it answers. Raises DeviceError, LinkLost where it may pass."""
    seen = devices()
    if not target.serial:
        target = _only(seen)
    # A state of `device` is no proof: after a link that died silently it stays for a while.
    if seen.get(target.serial) == "device" and answers(target):
        return _able(target)
    if target.over_network:
        _connect(target)
    end = time.monotonic() + SETTLE_S
    while (state := devices().get(target.serial, "")) in PASSING and time.monotonic() < end:
        time.sleep(0.2)
    if state != "device":
        raise _refused(target, state)
    if not answers(target):
        raise LinkLost(f"{target.address}: it is there, but runs no command: plug it in anew, or boot it")
    return _able(target)


def answers(target: Target) -> bool:
    """Whether a command can be run there now."""
    try:
        status, _ = ask("-s", target.serial, "shell", "-n", "-T", "true", address=target.address)
    except LinkLost:
        return False
    return status == 0


def _only(seen: dict[str, str]) -> Target:
    if len(seen) == 1:
        return Target(serial=next(iter(seen)))
    if seen:
        raise UsageError(f"adb sees several devices, name one: {', '.join(f'adb://{name}' for name in seen)}")
    raise LinkLost(
        "adb sees no device: plug it in, and switch on USB debugging (Settings, About phone: tap the build number "
        "seven times; then Developer options)"
    )


def _connect(target: Target) -> None:
    """`adb connect` returns 0 whether it did or not, and does nothing about a link that it takes for alive."""
    ask("disconnect", target.serial, address=target.address)
    _, text = ask("connect", target.serial, address=target.address)
    if "connected to" in text:
        return
    if "failed to authenticate" in text:
        raise DeviceError(f"{target.address}: {CURES['unauthorized']}")
    raise LinkLost(f"{target.address}: {_last(text)}: is it on, in this network, and listening (adb tcpip 5555)?")


def _refused(target: Target, state: str) -> DeviceError:
    if not state:
        others = ", ".join(f"{name} ({is_})" for name, is_ in devices().items() if name != target.serial)
        return LinkLost(f"{target.address}: no such device; adb sees {others or 'none'}")
    text = f"{target.address}: {CURES.get(state, f'adb says that it is in the state {state!r}')}"
    return LinkLost(text) if state in PASSING else DeviceError(text)


def _able(target: Target) -> Target:
    """Without the newer shell protocol there is no exit status and no clean output."""
    _, text = ask("-s", target.serial, "features", address=target.address)
    if "shell_v2" not in text:
        raise DeviceError(f"{target.address}: its adb is too old to tell how a command ended: Android 7 is needed")
    return target


def _last(text: str) -> str:
    return (text.splitlines() or ["no word"])[-1].removeprefix("error: ").removeprefix("adb: ")
