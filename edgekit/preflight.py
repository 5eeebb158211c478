"""What a machine brings, asked before anything is put on it, with nothing but its POSIX shell."""

import json
import shlex
import subprocess
from dataclasses import dataclass
from typing import Any

from edgekit import units
from edgekit.errors import DeviceError
from edgekit.transport import Transport, check

FOLDER = "~/.edgekit"
NEEDED_FREE_BYTES = 300_000_000  # a runtime takes 150 MB, a model and its images the rest
OLDEST = (3, 9)  # that the agent runs on
# A second `python3` is often older or newer than the one that has a wheel.
NAMES = ("python3", *(f"python3.{minor}" for minor in range(15, 8, -1)))
RUNTIME = "runtime.json"  # what `edgekit device setup` leaves in the folder

PYTHON = """
import platform, struct, sys
try:
    from importlib.metadata import version
    numpy = version("numpy")
except Exception:
    numpy = ""
print("python", sys.argv[1], platform.python_version(), 8 * struct.calcsize("P"), numpy)
"""

# On Linux, and on macOS.
BOOT = "cat /proc/sys/kernel/random/boot_id 2>/dev/null || sysctl -n kern.bootsessionuuid 2>/dev/null"

SCRIPT = """
echo "home $HOME"
echo "boot $(BOOTID)"
sdk=$(getprop ro.build.version.sdk 2>/dev/null)
echo "system $([ -n "$sdk" ] && echo Android || uname -s)"
echo "machine $(uname -m)"
echo "bits $(getconf LONG_BIT 2>/dev/null)"
echo "glibc $(getconf GNU_LIBC_VERSION 2>/dev/null)"
echo "features $(sed -n -e 's/^Features[^:]*://p' -e 's/^flags[^:]*://p' /proc/cpuinfo 2>/dev/null | head -n 1)"
folder=FOLDER
# Android's shell has a home folder that is not its own, and may run programs in one place only.
[ -z "$sdk" ] || [ "$folder" != "$HOME/.edgekit" ] || folder=/data/local/tmp/edgekit
echo "folder $folder"
if mkdir -p "$folder" 2>/dev/null && probe="$folder/.probe$$" && printf '#!/bin/sh\\n' 2>/dev/null > "$probe"; then
    echo "writable yes"
    chmod +x "$probe" && "$probe" 2>/dev/null && echo "executable yes"
    rm -f "$probe"
fi
near=$folder
while [ ! -e "$near" ]; do near=$(dirname "$near"); done
echo "free $(df -Pk "$near" 2>/dev/null | awk 'NR == 2 { print $4 }')"
[ ! -f "$folder/RUNTIME" ] || echo "runtime $(tr -d '\\n' < "$folder/RUNTIME")"
echo "sites $(ls "$folder/site" 2>/dev/null | tr '\\n' ' ')"
for name in NAMES; do
    path=$(command -v "$name") && "$path" -c PYTHON "$path" 2>/dev/null
done
true
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Python:
    """*numpy*: the version that it has by itself, or nothing."""

    path: str
    version: str
    bits: int
    numpy: str = ""

    @property
    def minor(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """*glibc*: its version; nothing where the C library is another. *runtime*: what `setup` left, or nothing.

    *boot*: the same for all addresses of a machine that runs; nothing where it does not tell.
    """

    home: str
    folder: str
    system: str
    machine: str
    bits: int
    glibc: str
    features: tuple[str, ...]
    free_bytes: int | None
    writable: bool
    executable: bool
    pythons: tuple[Python, ...]
    runtime: dict[str, Any]
    boot: str = ""
    wanted: str = ""  # the only Python to look at


def boot_id() -> str:
    """What stands in `Facts.boot` for this machine."""
    done = subprocess.run(["sh", "-c", BOOT], capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip()


def read(transport: Transport, folder: str = FOLDER, python: str = "") -> Facts:
    """The facts about the machine. *python*: the only one to look at. Raises DeviceError."""
    place = (
        '"$HOME"' + shlex.quote(folder[1:]) if folder == "~" or folder.startswith("~/") else shlex.quote(folder)
    )
    names = shlex.quote(python) if python else " ".join(NAMES)
    script = (
        SCRIPT.replace("FOLDER", place).replace("NAMES", names).replace("RUNTIME", RUNTIME).replace("BOOTID", BOOT)
    )
    lines: list[bytes] = []
    command = script.replace("PYTHON", shlex.quote(PYTHON.strip()))
    ended = transport.run(command, limit_s=60.0, feed=lines.append)
    text = b"".join(lines).decode(errors="replace")
    if ended.status and "home " not in text:  # as /usr/sbin/nologin does
        words = [*ended.stderr.strip().splitlines(), *text.strip().splitlines()] or [f"status {ended.status}"]
        raise DeviceError(
            f"{transport.address}: no commands run there for this user: {words[-1].rstrip('.')}; name another one"
        )
    check(transport, "what it is and has", ended)
    found: dict[str, str] = {}
    pythons: dict[str, Python] = {}
    for line in text.splitlines():  # a login shell may have greeted
        key, _, value = line.partition(" ")
        if key == "python" and len(parts := value.split()) >= 3 and parts[2].isdigit():
            one = Python(path=parts[0], version=parts[1], bits=int(parts[2]), numpy="".join(parts[3:4]))
            pythons.setdefault(one.version, one)
        else:
            found[key] = value.strip()
    if "machine" not in found or not found.get("folder", "").startswith("/"):
        raise DeviceError(f"{transport.address}: its shell does not answer as a POSIX shell does: {text[:200]!r}")
    return Facts(
        home=found["home"],
        folder=found["folder"],
        system=found["system"],
        machine=found["machine"],
        bits=int(found["bits"]) if found["bits"].isdigit() else next((one.bits for one in pythons.values()), 64),
        glibc=found["glibc"].rpartition(" ")[2],
        features=tuple(found["features"].split()),
        free_bytes=int(found["free"]) * 1024 if found["free"].isdigit() else None,
        writable="writable" in found,
        executable="executable" in found,
        pythons=tuple(pythons.values()),
        wanted=python,
        runtime=_runtime(found.get("runtime", ""), found.get("sites", "").split(), tuple(pythons.values())),
        boot=found.get("boot", ""),
    )


def _runtime(text: str, sites: list[str], pythons: tuple[Python, ...]) -> dict[str, Any]:
    """What `setup` left, where it still stands: nothing when the note, the folder or the Python is gone."""
    try:
        value: dict[str, Any] = {key: json.loads(text)[key] for key in ("python", "version", "site", "packages")}
    except (json.JSONDecodeError, KeyError, TypeError):
        return {}
    # A new Python, as after an upgrade of the system, does not take the packages of the old one.
    then = tuple(str(value["version"]).split(".")[:2])
    fits = any(one.path == value["python"] and tuple(map(str, one.minor)) == then for one in pythons)
    return value if fits and str(value["site"]).rpartition("/")[2] in sites else {}


def faults(facts: Facts) -> list[str]:
    """What keeps edgekit from working there, each with its cure."""
    found = []
    if not facts.writable:
        found.append(f"{facts.folder} cannot be written: name another folder: ADDRESS?folder=/path")
    elif not facts.executable and facts.system == "Linux":
        # Wheels hold libraries, which are not loaded from a noexec mount either.
        found.append(f"nothing can be executed in {facts.folder} (mounted noexec?): ADDRESS?folder=/path")
    elif facts.free_bytes is not None and facts.free_bytes < NEEDED_FREE_BYTES:
        found.append(
            f"{units.size(facts.free_bytes)} are free in {facts.folder}, and {units.size(NEEDED_FREE_BYTES)} are "
            "needed: make room, or ADDRESS?folder=/path"
        )
    if not facts.pythons and facts.system == "Android":
        found.append("a phone has no Python: name the program that measures: ADDRESS?benchmark_model=PATH")
    elif not facts.pythons and facts.wanted:
        found.append(f"{facts.wanted} is no Python 3: ADDRESS?python=/path names another one")
    elif not facts.pythons:
        found.append("it has no Python 3: sudo apt install python3")
    elif all(one.minor < OLDEST for one in facts.pythons):
        newest = max(facts.pythons, key=lambda one: one.minor)
        found.append(f"its Python {newest.version} is too old: 3.9 or newer is needed: sudo apt install python3")
    return found
