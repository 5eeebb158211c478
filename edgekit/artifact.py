"""An artifact: a model file (or ``.mlpackage`` folder) and the sidecar ``FILE.json`` that says what it is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from edgekit import files
from edgekit.errors import ArtifactError
from edgekit.preprocess import Preprocess
from edgekit.schema import Between, SchemaError, decode, encode

FORMAT = 1
FLOAT_PRECISIONS = ("fp32", "sparse", "fp16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A model's input or output. ``scale`` and ``zero_point`` are set where it is quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Which images set the ranges: *images_sha256* is the hash of their list.

    ``rules``: how many tensors each rule set. ``divergence``: of the files that the method ``auto`` compared, the
    mean Kullback-Leibler divergence of their class probabilities from the float file's on these images, in nats.
    ``repairs``: what was done to the float weights, such as ``equalize``.
    """

    count: int
    seed: int
    method: str
    images_sha256: str
    rules: dict[str, int] = field(default_factory=dict)
    divergence: dict[str, float] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The artifact against the float torch model on the same images.

    ``sqnr_db``: signal to quantization noise of the logits, 10 log10(sum ref^2 / sum diff^2), at most 150.
    """

    images: int
    sqnr_db: float
    top1_agreement: float
    largest_difference: float

    def broken(self, precision: str) -> str:
        """Why the artifact counts as broken, or an empty string."""
        floor_db = {"fp32": 60.0, "sparse": 60.0, "fp16": 40.0}.get(precision)
        if floor_db is not None and self.sqnr_db < floor_db:
            return f"SQNR {self.sqnr_db:.1f} dB is below the {floor_db:g} dB of a sound {precision} file"
        if self.top1_agreement < 0.9:
            return f"top-1 agrees with the float model on {100 * self.top1_agreement:.1f} % of images, below 90 %"
        return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairStep:
    """A file that was tried: its top-1, and by how many percentage points that is below the float file's.

    ``repairs``: what was done to the float weights. ``gain``: points of top-1 more than the best file before it.
    ``kept``: later steps build on it, or it is the artifact. ``p_value``: as in `Repair`. ``seconds``: to make it
    and to measure it.
    """

    tried: str
    float_layers: tuple[str, ...]
    top1: float
    drop: float
    size_bytes: int
    repairs: tuple[str, ...] = ()
    gain: float = 0.0
    kept: bool = False
    p_value: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What was tried to keep the drop of top-1 within ``max_drop`` percentage points, on labelled held-out images.

    Where the budget is not ``met``, the artifact is the best that was reached.
    ``p_value``: of the exact McNemar test of its answers against the float file's.
    ``weighed_by``: what the layers in float were chosen to cost little of; empty where none were looked for.
    """

    max_drop: float
    met: bool
    drop: float
    p_value: float
    float_top1: float
    images: int
    images_sha256: str
    float_layers: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    weighed_by: Literal["", "latency", "products"] = ""
    steps: tuple[RepairStep, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """``input_is``: edgekit's own files take raw RGB ``pixels``; a foreign one may want them ``normalized``."""

    format: int = FORMAT
    file: str
    target: str
    precision: str
    input: TensorSpec
    output: TensorSpec
    input_is: Literal["pixels", "normalized"] = "pixels"
    labels: tuple[str, ...]
    preprocess: Preprocess
    size_bytes: Annotated[int, Between(1)]
    sha256: str
    parent: str = ""  # hash of the checkpoint it was made from
    tools: dict[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    parity: Parity | None = None
    repair: Repair | None = None
    notes: tuple[str, ...] = ()
    path: Path = field(default=Path(), metadata={"skip": True}, compare=False)

    @property
    def name(self) -> str:
        return self.file.removesuffix(Path(self.file).suffix)


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def unfinished(path: Path) -> Path:
    """Where the state of a training stands that is to give the file at *path*, until it is there."""
    return path.with_name(f"{path.stem}.training")


@contextmanager
def replacing(path: Path) -> Iterator[tuple[Path, Path]]:
    """Temporary paths for the sidecar and the file at *path*; once whole, they replace older ones together."""
    beside = sidecar(path)
    with files.replacing(beside) as description, files.replacing(path) as temporary:
        yield description, temporary
        # An older file and its sidecar stand until here. The sidecar goes first: none describes another file.
        files.remove(beside)


def write_sidecar(artifact: Artifact) -> None:
    files.write_json(sidecar(artifact.path), encode(artifact))


def read(path: Path, *, verify: bool = True) -> Artifact:
    """The artifact at *path*. Raises ArtifactError: no file, no sidecar, a damaged one, another hash."""
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"no such file: {path}")
    beside = sidecar(path)
    if not beside.is_file():
        raise ArtifactError(
            f"{path} has no sidecar {beside.name}: give --preprocess and --labels to use a file that edgekit "
            "did not make, or convert it again"
        )
    try:
        artifact = decode(Artifact, json.loads(beside.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{beside} is damaged: {error}; convert the model again") from error
    except SchemaError as error:
        raise ArtifactError(f"{beside} is not a sidecar of format {FORMAT}: {error.faults[0]}") from error
    if artifact.format != FORMAT:
        raise ArtifactError(f"{beside} has format {artifact.format}; this edgekit reads format {FORMAT}")
    if verify and (found := files.sha256(path)) != artifact.sha256:
        raise ArtifactError(
            f"{path} is not the file that its sidecar describes: SHA-256 {found[:12]}, expected "
            f"{artifact.sha256[:12]}; convert the model again"
        )
    return replace(artifact, path=path, file=path.name)  # it may have been renamed
