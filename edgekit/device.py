"""The device protocol: what a file in devices/ gives, what it is asked to run, what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit import inventory, plugins
from edgekit.artifact import Artifact
from edgekit.errors import UsageError, nearest
from edgekit.measure import Cooling, Measurement, Telemetry
from edgekit.operators import Delegation, Placed, Profile
from edgekit.result import DeviceInfo

Progress = Callable[[str, float], None]  # what is being done, share done of the whole visit (0 to 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One artifact with one setting. *inputs*: a ``.npy`` file (N, ...) in the shape and type it takes."""

    artifact: Artifact
    threads: int
    inputs: Path
    predict: bool  # also give the likeliest classes of every input


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchJob:
    """One visit: every entry runs in a process of its own, its blocks in turn with the others' (A B A B).

    ``cool_down_seconds``: how long a block waits at most for a hot device. ``spacing_ms``: how far apart the
    inferences lie whose samples are kept. ``sustained``: one block without end is what is asked for.
    """

    entries: tuple[Entry, ...]
    samples: int
    seconds: float
    blocks: int
    warmup: int
    warmup_seconds: float
    top_k: int = 5
    profile: bool = False  # also what each operator costs, in a process apart, where the runtime tells
    cool_down_seconds: float = 0.0
    spacing_ms: float = 0.5
    sustained: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one entry gave. *error* is set when it could not run; what was measured before stands beside it."""

    measurement: Measurement | None
    runtime: str = ""
    runtime_version: str = ""
    delegate: str = ""
    top: tuple[int, ...] = ()  # top_k indices per input, row by row
    notes: tuple[str, ...] = ()
    telemetry: tuple[Telemetry, ...] = ()
    delegation: Delegation | None = None
    profile: Profile | None = None
    cooling: tuple[Cooling, ...] = ()
    error: str = ""
    plan: tuple[Placed, ...] = ()


class Interrupted(KeyboardInterrupt):
    """A visit that the user ended, with what was measured until then."""

    def __init__(self, outcomes: tuple[Outcome, ...]) -> None:
        self.outcomes = outcomes
        super().__init__()


class Device(Protocol):
    @property
    def info(self) -> DeviceInfo: ...

    @property
    def runtimes(self) -> Mapping[str, str]:
        """What runs each target here, with its version: ``{"tflite": "ai-edge-litert 2.3.0"}``."""
        ...

    @property
    def machine(self) -> str:
        """Equal for addresses of one machine, which would disturb each other; empty where it is not told."""
        ...

    def wait(self, limit_s: float, progress: Progress) -> None:
        """Return when nobody else measures there. Raises DeviceBusy when somebody does after *limit_s*."""
        ...

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        """One outcome an entry, in order. Raises DeviceError when the device cannot be used at all.

        DeviceBusy says that somebody else measures there, Interrupted that the user ended it.
        """
        ...

    def close(self) -> None: ...


def open_device(address: str) -> Device:
    """The device at *address*: ``local``, ``fake://pi5``, ``ssh://pi@raspberrypi.local``, a name in devices.toml.

    Raises UsageError for a scheme that has no file, DeviceError for a device that cannot be used.
    """
    address, scheme, rest = split(address)
    device: Device = plugins.load("devices", scheme).connect(address, rest)
    return device


def split(address: str) -> tuple[str, str, str]:
    """The address that a name stands for, its scheme, and what stands behind that. Raises UsageError."""
    full = inventory.resolve(address)
    scheme, colon, rest = full.partition("://")
    if not colon and scheme not in plugins.names("devices"):
        known = [*plugins.names("devices"), *inventory.read()]
        raise UsageError(
            f"unknown device {address!r}; choose from {', '.join(known)}{nearest(address, known)}; names of your "
            f"own stand in {inventory.path()}"
        )
    return full, scheme, rest
