"""`edgekit device setup`: the right runtime on a machine, in a folder of edgekit's own, and away again.

Wheels are fetched here and pushed, so that the machine needs no internet, no pip and no compiler. They are
unpacked into a folder that the agent's PYTHONPATH names; nothing else on the machine is touched.
"""

import hashlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgekit import files, units
from edgekit.errors import DeviceError
from edgekit.preflight import RUNTIME, Facts
from edgekit.remote import python_program
from edgekit.runtimes import Runtime
from edgekit.transport import Transport, check, output
from edgekit.transport.push import Progress, parcel, push

FETCH_S = 900.0
UNPACK_S = 600.0
MARK = ".edgekit"  # in a folder that is ours to remove

# Run by the machine's Python: FOLDER, then wheels. The folder is whole or absent.
UNPACK = """
import os, shutil, sys, zipfile
folder, wheels = sys.argv[1], sys.argv[2:]
part = folder + ".part"
shutil.rmtree(part, ignore_errors=True)
needed = sum(one.file_size for wheel in wheels for one in zipfile.ZipFile(wheel).infolist())
free = shutil.disk_usage(os.path.dirname(os.path.dirname(folder))).free
if needed + 50e6 > free:
    sys.exit("the runtime takes %d MB, and %d MB are free" % (needed / 1e6 + 50, free / 1e6))
for wheel in wheels:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(part)
shutil.rmtree(folder, ignore_errors=True)
os.rename(part, folder)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `install` would do. *there*: the packages that stand there already, as `setup` left them."""

    runtime: Runtime
    wheels: tuple[Path, ...]
    folder: str
    there: tuple[str, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        """``ai_edge_litert-2.3.0`` and so on."""
        return tuple(sorted("-".join(wheel.name.split("-")[:2]) for wheel in self.wheels))

    @property
    def done(self) -> bool:
        return set(self.packages) == set(self.there)

    @property
    def size_bytes(self) -> int:
        return sum(wheel.stat().st_size for wheel in self.wheels)

    def __str__(self) -> str:
        names = ", ".join(name.replace("-", " ").replace("_", "-") for name in self.packages)
        return (
            f"{names} ({units.size(self.size_bytes)}) into {self.folder}, for Python {self.runtime.python.version}"
        )


def plan(facts: Facts, runtime: Runtime, address: str, cache: Path | None = None) -> Plan:
    """What is to be installed; its wheels are fetched here. Raises DeviceError when they cannot be."""
    requirements = [_pinned(one) for one in runtime.requirements]
    named = json.dumps([requirements, runtime.python.minor, runtime.tags])
    root = cache or files.cache() / "wheels"
    folder = root / hashlib.sha256(named.encode()).hexdigest()[:16]
    if not folder.is_dir():
        _fetch(requirements, runtime, folder, address)
    wheels = tuple(sorted(folder.glob("*.whl")))
    there = facts.runtime.get("packages", ()) if facts.runtime.get("python") == runtime.python.path else ()
    return Plan(runtime=runtime, wheels=wheels, folder=facts.folder, there=tuple(there))


def install(transport: Transport, facts: Facts, plan: Plan, progress: Progress) -> None:
    """Bring the runtime there and try it. What was there before stays until it works. Raises DeviceError."""
    base, python = facts.folder, plan.runtime.python.path
    output(transport, f"mkdir -p {shlex.quote(base)}/site && : > {shlex.quote(f'{base}/{MARK}')}")
    sent = push(transport, f"{base}/cache", [parcel(wheel) for wheel in plan.wheels], progress)
    digest = hashlib.sha256("".join(sorted(one.sha256 for one in sent)).encode()).hexdigest()[:16]
    site = f"{base}/site/{digest}"
    progress("unpacking there", 1.0)
    words = [python, "-c", UNPACK.strip(), site, *sent.values()]
    ended = transport.run(f"exec {shlex.join(words)}", limit_s=UNPACK_S)
    check(transport, "unpacking", ended)
    progress("trying it", 1.0)
    _try(transport, plan, site)
    note = {"python": python, "version": plan.runtime.python.version, "site": site, "packages": plan.packages}
    content = json.dumps({"format": 1, **note})
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        file = Path(folder, RUNTIME)
        file.write_text(content, encoding="utf-8")
        transport.send(file, f"{base}/{RUNTIME}.part", offset=0, sent=lambda count: None)
    quoted = shlex.quote(base)
    output(
        transport,
        f"cd {quoted} && mv {RUNTIME}.part {RUNTIME} && "
        f"find site -mindepth 1 -maxdepth 1 ! -name {digest} -exec rm -rf {{}} + && "
        f"cd cache && rm -f {' '.join(shlex.quote(one.name) for one in sent)}",
    )


def remove(transport: Transport, facts: Facts) -> None:
    """Take away all that edgekit has put there. Raises DeviceError for a folder that is not its own."""
    folder = shlex.quote(facts.folder)
    known = "agent cache visits site lock phone.lock runtime.json runtime.json.part .edgekit"
    listed = output(
        transport,
        f"cd {folder} 2>/dev/null || exit 0; for name in $(ls -A); do case ' {known} ' in *\" $name \"*) ;; "
        '*) echo "strange $name";; esac; done',
    )
    if strange := [line.partition(" ")[2] for line in listed.splitlines() if line.startswith("strange ")]:
        raise DeviceError(
            f"{transport.address}: {facts.folder} holds more than edgekit put there ({strange[0]}): "
            "remove it yourself"
        )
    output(transport, f"rm -rf {folder}", limit_s=UNPACK_S)


def _pinned(requirement: str) -> str:
    """The requirement at this machine's own version where that fits: the files were checked with it."""
    match = re.fullmatch(r"([\w-]+)>=([\d.]+),<([\d.]+)", requirement)
    if not match:
        return requirement
    try:
        own = version(match[1])
    except PackageNotFoundError:
        return requirement
    low, number, high = (tuple(int(part) for part in text.split(".")[:3]) for text in (match[2], own, match[3]))
    return f"{match[1]}=={own}" if low <= number < high else requirement


def _fetch(requirements: Sequence[str], runtime: Runtime, folder: Path, address: str) -> None:
    """The wheels for another machine, in *folder*."""
    python = ".".join(map(str, runtime.python.minor))
    platforms = [word for tag in runtime.tags for word in ("--platform", tag)]
    with files.replacing(folder) as part:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--dest", str(part), "--only-binary", ":all:", "--implementation", "cp"]
        command += ["--python-version", python, *platforms, *requirements]
        # What tflite-runtime needs, NumPy, has no wheel for 32-bit ARM: the machine has its own.
        command += ["--no-deps"] if "tflite-runtime" in requirements[0] else []
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=True)
        except subprocess.CalledProcessError as error:
            words = [line for line in error.stderr.splitlines() if "ERROR" in line] or error.stderr.splitlines()
            said = words[-1] if words else f"status {error.returncode}"
            raise DeviceError(f"{address}: the wheels for it cannot be fetched here: {said}") from error
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"{address}: the wheels for it were not fetched within {FETCH_S:.0f} s; is this machine online?"
            ) from error


def _try(transport: Transport, plan: Plan, site: str) -> None:
    """Import the runtime there: a wheel that is for another machine shows it here. Raises DeviceError."""
    module = plan.runtime.requirements[0].partition(">")[0].replace("-", "_")
    code = f"import numpy; from {module}.interpreter import Interpreter"
    program = python_program(plan.runtime.python.path, site)
    ended = transport.run(f"exec {program} -c {shlex.quote(code)}", limit_s=120.0)
    if ended.status:
        words = ended.stderr.strip().splitlines() or [f"status {ended.status}"]
        raise DeviceError(f"{transport.address}: {plan.runtime.label} does not work there: {words[-1]}")
