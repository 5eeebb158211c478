"""The errors that a user can meet, and the exit status that each one gives.

EdgekitError             1   something failed
├── UsageError           2   the command line or a file of the user's asks for what cannot be
│   └── RecipeError      2   a recipe does not decode; holds every fault of the file
├── MissingDependency    1   an optional package is needed; names the command that installs it
├── DataError            1   images or labels cannot be used
├── CheckpointError      1   a checkpoint is missing, damaged or of another model
├── TrainingError        1   a training cannot go on: its loss is no number
├── ArtifactError        1   a model file or its sidecar is missing, damaged or changed
├── ConversionError      1   a model cannot be converted
├── ResultError          1   a result file is damaged, or results cannot be compared
└── DeviceError          1   a device cannot be reached or cannot run the job
    └── DeviceBusy       1   somebody else measures there; says who
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class EdgekitError(Exception):
    """A failure told to the user in one line, without a traceback."""

    exit_status = 1


class UsageError(EdgekitError):
    exit_status = 2


class RecipeError(UsageError):
    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source, self.faults = source, tuple(faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {fault}" for fault in faults)]))


class MissingDependency(EdgekitError): ...


class DataError(EdgekitError): ...


class CheckpointError(EdgekitError): ...


class TrainingError(EdgekitError): ...


class ArtifactError(EdgekitError): ...


class ConversionError(EdgekitError): ...


class ResultError(EdgekitError): ...


class DeviceError(EdgekitError): ...


class DeviceBusy(DeviceError):
    """*lost*: after how long the visit of a host that is gone ends by itself."""

    def __init__(self, address: str, holder: str, *, lost: str = "") -> None:
        self.address, self.holder = address, holder
        ends = f" (one that lost its link ends by itself within {lost})" if lost else ""
        super().__init__(f"{address}: {self.words(holder)}; one visit at a time{ends}: --wait waits its turn")

    @staticmethod
    def words(holder: str) -> str:
        return f"in use by {holder or 'somebody'}"


def nearest(value: str, choices: Iterable[str]) -> str:
    """A hint like ``; did you mean 'tflite'?``, or an empty string when nothing is near."""
    match = get_close_matches(value, list(choices), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def unknown(kind: str, value: str, choices: Iterable[str]) -> UsageError:
    """The error for a name that is not one of *choices*: value, choices and nearest name."""
    known = sorted(choices)
    return UsageError(f"unknown {kind} {value!r}; choose from {', '.join(known)}{nearest(value, known)}")
