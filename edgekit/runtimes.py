"""Which build of LiteRT runs on a machine: by its processor, C library and Python.

    64-bit, glibc >= 2.34, Python 3.10-3.14    ai-edge-litert 2.1.2 to 2.3
    64-bit, glibc >= 2.27, Python 3.9-3.13     ai-edge-litert 2.1.0
    32-bit ARM v7, Python 3.9-3.11             tflite-runtime 2.13 or 2.14, a NumPy before 2 of the system's own
    anything else                              none, and why

The tags of ai-edge-litert's wheels say glibc 2.27, but from 2.1.2 on they need 2.34. NumPy has no wheel for 32-bit
ARM on PyPI.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.errors import DeviceError
from edgekit.preflight import Facts, Python

WHEELS_64 = ("x86_64", "aarch64")
NAMES = {"arm64": "aarch64", "amd64": "x86_64"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """A Python of the machine, and what it needs. *tags*: the platforms of wheels that it takes, as pip says."""

    python: Python
    requirements: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.requirements[0]} with Python {self.python.version}"


def choose(facts: Facts, address: str) -> Runtime:
    """The best that the machine can run. Raises DeviceError: why there is none, and what would help."""
    machine, cause = NAMES.get(facts.machine.lower(), facts.machine), ""
    glibc = _number(facts.glibc)
    if facts.system == "Android":
        cause = "there is no LiteRT wheel for Android, and nothing to set up: ADDRESS?benchmark_model=PATH"
    elif facts.system != "Linux":
        cause = f"it runs {facts.system}: install ai-edge-litert there yourself, in the Python that runs first"
    elif not facts.glibc:
        cause = "its C library is not glibc, and no wheel of LiteRT is for another: use Debian, Ubuntu or Fedora"
    elif facts.bits == 64 and machine in WHEELS_64:
        if found := _of_64_bits(facts, machine, glibc):
            return found
        cause = (
            f"glibc {facts.glibc} is older than 2.27, which LiteRT needs: upgrade its system"
            if glibc < (2, 27)
            else f"no LiteRT for {_pythons(facts)} with glibc {facts.glibc}: "
            + ("Python 3.10 to 3.14" if glibc >= (2, 34) else "Python 3.9 to 3.13, or a newer system,")
            + " is needed"
        )
    elif facts.bits == 32 and (machine in ("armv7l", "armv8l") or machine == "aarch64"):
        return _of_32_bits(facts, glibc, address)
    else:
        cause = f"there is no LiteRT for {facts.machine} with {facts.bits} bits: a 64-bit system is needed"
    raise DeviceError(f"{address}: {cause}")


def _of_64_bits(facts: Facts, machine: str, glibc: tuple[int, int]) -> Runtime | None:
    tags = (f"manylinux2014_{machine}", *(f"manylinux_2_{n}_{machine}" for n in range(17, min(glibc[1], 40) + 1)))
    rows: tuple[tuple[tuple[int, int], str, Callable[[int], bool]], ...] = (
        ((2, 34), "ai-edge-litert>=2.1.2,<2.4", lambda minor: 10 <= minor <= 14),
        ((2, 27), "ai-edge-litert>=2.0,<=2.1.0", lambda minor: 9 <= minor <= 13),
    )
    for needed, requirement, fits in rows:
        for python in facts.pythons:
            if glibc >= needed and python.minor[0] == 3 and fits(python.minor[1]) and python.bits == 64:
                return Runtime(python=python, requirements=(requirement, "numpy"), tags=tuple(reversed(tags)))
    return None


def _of_32_bits(facts: Facts, glibc: tuple[int, int], address: str) -> Runtime:
    where = f"{address}: a 32-bit system"
    better = "; a 64-bit system runs the current one"
    found = [one for one in facts.pythons if (3, 9) <= one.minor <= (3, 11)]
    if not found:
        raise DeviceError(
            f"{where} needs Python 3.9 to 3.11 for LiteRT, and this has {_pythons(facts)}: put a 64-bit one on it"
        )
    if found[0].minor == (3, 11) and glibc < (2, 34):
        raise DeviceError(f"{where} needs glibc 2.34, and this has {facts.glibc}: upgrade its system{better}")
    numpy = found[0].numpy
    if not numpy:
        raise DeviceError(f"{where} takes NumPy from its own packages: sudo apt install python3-numpy{better}")
    if _number(numpy) >= (2, 0):
        raise DeviceError(f"{where}'s tflite-runtime needs a NumPy before 2, and this has {numpy}{better}")
    tags = tuple(f"manylinux_2_{n}_armv7l" for n in range(min(glibc[1], 40), 16, -1))
    tags = (*tags, "manylinux2014_armv7l", "linux_armv7l")
    return Runtime(python=found[0], requirements=("tflite-runtime>=2.13,<2.15",), tags=tags)


def _number(version: str) -> tuple[int, int]:
    """``2.36`` and ``2.36.1`` as numbers; (0, 0) for what is none."""
    parts = [part for part in version.split(".")[:2] if part.isdigit()]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 else (0, 0)


def _pythons(facts: Facts) -> str:
    return "Python " + (", ".join(one.version for one in facts.pythons) or "(none)")
