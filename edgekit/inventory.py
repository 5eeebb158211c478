"""A user's own names for devices, in `devices.toml`, and what stands behind a ``?`` in an address.

[pi5]
address = "ssh://pi@raspberrypi.local"
folder = "/mnt/ssd/edgekit"      # where edgekit keeps its files there; default ~/.edgekit
python = "/usr/bin/python3.11"   # which Python runs there; default what fits

[phone]
address = "adb://R5CT1234567"
benchmark_model = "~/android/benchmark_model"   # the program that measures there
delegate = "gpu"                 # xnnpack (the default), gpu, nnapi or none

[mac]
address = "mac+ssh://me@mac.local"
unit = "CPU_AND_NE"              # what Core ML may use: ALL (the default), CPU_ONLY, CPU_AND_GPU or CPU_AND_NE
                                 # several, as CPU_ONLY,CPU_AND_NE, or each: edgekit bench does one after the other

[iphone]
address = "mac+ssh://me@mac.local"
iphone = "any"                   # the iPhone on that Mac is measured: any, or its UDID where there are several
team = "ABCDE12345"              # the Apple developer team that signs the app which measures
"""

import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

from edgekit.benchmark_model import DELEGATES
from edgekit.errors import UsageError, nearest
from edgekit.schema import SchemaError, decode

TAKES = ("folder", "python")  # what every device with a folder takes
UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")  # of a Mac: what Core ML may use
EACH = "each"  # unit=each: all of them, one after the other


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a device is used: ``ssh://pi@host?folder=/mnt/ssd&python=/usr/bin/python3.11``."""

    folder: str = "~/.edgekit"
    python: str = ""
    benchmark_model: str = ""
    delegate: str = ""
    unit: str = ""
    iphone: str = ""
    team: str = ""

    def __post_init__(self) -> None:
        if self.iphone and not re.fullmatch(r"any|[0-9A-Fa-f-]{24,40}", self.iphone):
            raise ValueError(
                f"iphone is {self.iphone!r}; it is any, or a UDID (Finder shows it, and xcrun devicectl)"
            )
        if self.team and not re.fullmatch(r"[A-Z0-9]{10}", self.team):
            raise ValueError(
                f"team is {self.team!r}; an Apple developer team has ten letters and digits: ABCDE12345"
            )
        if bool(self.iphone) != bool(self.team):
            raise ValueError("iphone and team go together: the phone, and who signs the app that measures on it")
        if self.delegate and self.delegate not in DELEGATES:
            hint = nearest(self.delegate, DELEGATES)
            raise ValueError(f"delegate is {self.delegate!r}; choose from {', '.join(DELEGATES)}{hint}")
        if self.unit and self.unit not in UNITS:
            several = "; only edgekit bench takes several" if EACH in self.unit or "," in self.unit else ""
            raise ValueError(
                f"unit is {self.unit!r}; choose from {', '.join(UNITS)}{nearest(self.unit, UNITS)}{several}"
            )
        if self.delegate and not self.benchmark_model:
            raise ValueError("delegate goes with benchmark_model: the agent takes XNNPACK")
        if self.python and self.benchmark_model:
            raise ValueError("python and benchmark_model exclude each other: the agent, or the program")
        if not self.folder.startswith(("/", "~/")):
            raise ValueError(f"folder is {self.folder!r}; it must begin with / or ~/")
        if self.folder.strip("/~") in ("", "home", "root", "usr", "tmp"):
            raise ValueError(
                f"folder is {self.folder!r}; name one of its own, as {self.folder.rstrip('/')}/edgekit"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    address: str
    folder: str | None = None
    python: str | None = None
    benchmark_model: str | None = None
    delegate: str | None = None
    unit: str | None = None
    iphone: str | None = None
    team: str | None = None

    @property
    def full(self) -> str:
        """The address with its options."""
        keys = [one.name for one in fields(Options)]
        given = [(key, value) for key in keys if (value := getattr(self, key)) is not None]
        return self.address + "".join(f"{'?&'[n > 0]}{key}={quote(value)}" for n, (key, value) in enumerate(given))


def path() -> Path:
    """The user's `devices.toml`, also where there is none."""
    if given := os.environ.get("EDGEKIT_DEVICES"):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgekit" / "devices.toml"


def read() -> dict[str, Named]:
    """The devices that the user named; none where there is no file. Raises UsageError for a faulty one."""
    file = path()
    if not file.is_file():
        return {}
    try:
        found = {
            name: decode(Named, value, name) for name, value in tomllib.loads(file.read_text("utf-8")).items()
        }
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, SchemaError) as error:
        raise UsageError(f"{file}: {error}") from error
    for name in found:
        if "://" in name or name == "local":
            raise UsageError(f"{file}: {name!r} is an address already: give the device another name")
    return found


def resolve(address: str) -> str:
    """The address that a name stands for; an address as it is."""
    if "://" in address or address == "local":
        return address
    known = read()
    return known[address].full if address in known else address


def by_unit(address: str) -> tuple[str, ...]:
    """The addresses that ``?unit=each``, or ``?unit=CPU_ONLY,CPU_AND_NE``, stands for; else the address alone.

    Raises UsageError for a unit that is none: the others would be measured before it was found.
    """
    full = resolve(address)
    if not (found := re.search(r"[?&]unit=([^&]*)", full)):
        return (address,)
    asked = unquote(found[1])
    names = UNITS if asked == EACH else tuple(dict.fromkeys(asked.split(",")))
    if len(names) < 2:
        return (address,)
    if strange := [name for name in names if name not in UNITS]:
        raise UsageError(
            f"{address}: unit names {strange[0]!r}; choose from {', '.join(UNITS)}{nearest(strange[0], UNITS)}"
        )
    return tuple(f"{full[: found.start(1)]}{quote(name)}{full[found.end(1) :]}" for name in names)


def split(rest: str, takes: Sequence[str] = TAKES) -> tuple[str, Options]:
    """The place and the options of what stands behind the scheme of an address. Raises UsageError.

    *takes*: which options the device knows.
    """
    place, _, query = rest.partition("?")
    try:
        given = parse_qsl(query, strict_parsing=True) if query else []
        if strange := [key for key, _ in given if key not in takes]:
            raise ValueError(
                f"unknown option {strange[0]!r}{nearest(strange[0], takes)}; it takes {', '.join(takes[:-1])} "
                f"and {takes[-1]}"
            )
        return place, Options(**dict(given))
    except ValueError as error:
        raise UsageError(f"{rest}: {error}") from error
