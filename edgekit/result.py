"""A result: one artifact on one device with one setting, raw samples and per-image predictions kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt

from edgekit import files
from edgekit.artifact import Artifact
from edgekit.errors import ResultError
from edgekit.integers import integers
from edgekit.measure import Cooling, Measurement, Telemetry, Validity, judge
from edgekit.operators import Delegation, Placed, Profile
from edgekit.processor import Cluster
from edgekit.schema import Between, SchemaError, decode, encode

FORMAT = 1
MOST_CLASSES = 1_000_000  # more is no classifier, but a damaged file


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceInfo:
    """What a device is. *emulated* and *fake* devices are never ranked; of a *reference* only accuracy counts."""

    address: str
    model: str
    cpu: str
    architecture: str
    cores: int
    memory_bytes: int | None = None
    os: str = ""
    kernel: str = ""
    emulated: bool = False
    fake: bool = False
    reference: bool = False
    soc: str = ""
    clusters: tuple[Cluster, ...] = ()
    features: tuple[str, ...] = ()  # of the processor, those that kernels look for

    @property
    def fingerprint(self) -> str:
        """Equal for results that may be compared: the hardware and its system, not the way to reach it."""
        told = encode(self, defaults=False)
        return files.sha256_of({key: value for key, value in told.items() if key != "address"})[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    threads: Annotated[int, Between(1)]
    runtime: str
    runtime_version: str
    delegate: str
    input: str  # what the latency was measured on: the name of the data, or "noise"
    sustained_min: Annotated[float, Between(0, 1440)] = (
        0.0  # minutes without a pause; 0 for blocks in turn with others
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Per image the true class and the *k* likeliest, row by row, as indices into the artifact's labels."""

    dataset: str
    images_sha256: str
    truth: Sequence[int]
    k: int
    top: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("truth", "top"):
            object.__setattr__(self, name, integers(getattr(self, name)))
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be at least 1")
        if np.min(self.top, initial=0) < 0 or np.min(self.truth, initial=0) < 0:
            raise ValueError("a class index is negative")
        if max(np.max(self.top, initial=0), np.max(self.truth, initial=0)) > MOST_CLASSES:
            raise ValueError(f"a class index is beyond {MOST_CLASSES:,}")
        if len(self.top) != self.k * len(self.truth):
            raise ValueError(f"{len(self.top)} predictions for {len(self.truth)} images of {self.k}")

    @property
    def top_NK(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.top, np.int64).reshape(len(self.truth), self.k)

    def correct(self, k: int) -> int:
        """How many images have the true class among the *k* likeliest."""
        return int((self.top_NK[:, :k] == np.asarray(self.truth)[:, None]).any(axis=1).sum())


@dataclass(frozen=True, kw_only=True)  # without slots: the verdict is kept
class Result:
    """``visit``: results of one interleaved visit to a device share it. ``notes``: doubts the device gave."""

    format: int = FORMAT
    edgekit: str
    created: str
    visit: str
    artifact: Artifact
    device: DeviceInfo
    settings: Settings
    measurement: Measurement
    telemetry: tuple[Telemetry, ...] = ()
    cooling: tuple[Cooling, ...] = ()
    notes: tuple[str, ...] = ()
    predictions: Predictions | None = None
    delegation: Delegation | None = None  # None where there is no delegate, or it was not told
    profile: Profile | None = None  # None where none was asked for
    plan: tuple[Placed, ...] = ()  # of Core ML: where each operator is to run

    @property
    def name(self) -> str:
        return self.artifact.name

    @cached_property
    def validity(self) -> Validity:
        sustained = bool(self.settings.sustained_min)
        return judge(self.measurement, self.telemetry, self.notes, sustained=sustained)


def write(result: Result, path: Path) -> None:
    files.write_json(path, encode(result), compact=True)


def read(path: Path) -> Result:
    """The result in *path*. Raises ResultError for a missing, truncated or foreign file, or another format."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))  # of a long file faster than to read it as text
    except FileNotFoundError as error:
        raise ResultError(f"no such result: {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ResultError(f"{path} is damaged: {error}; run the benchmark again") from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise ResultError(
            f"{path} is not a result of format {FORMAT}, which this edgekit reads: format is {found!r}"
        )
    try:
        return decode(Result, value)
    except SchemaError as error:
        raise ResultError(f"{path} is not a whole result: {error.faults[0]}") from error
