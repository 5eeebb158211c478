"""The convert stage: a model becomes files, each checked against the model on real images."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from edgekit import __version__, files, plugins, sensitivity
from edgekit import artifact as artifacts
from edgekit.artifact import Artifact, Calibration, TensorSpec
from edgekit.coreml import systems
from edgekit.errors import ArtifactError, ConversionError, DataError, EdgekitError, UsageError, unknown
from edgekit.flatbuffer import Operator
from edgekit.parity import faint, parity
from edgekit.preprocess import Pixels, Preprocess
from edgekit.recipe import QAT, REPAIRED, Variant
from edgekit.repair import LastResort, repair
from edgekit.schema import encode

if TYPE_CHECKING:
    from edgekit.export import Logits, Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What a converter tells of the file that it wrote."""

    input: TensorSpec
    output: TensorSpec
    tools: dict[str, str]
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Constants in a model file: of which *layer*, the *kind* of operator that takes them, how they are stored."""

    layer: str
    kind: str
    dtype: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What stands in a model file. ``operators``: name and count, most frequent first.

    ``details``: each operator in the order in which they run, for formats that tell. ``parts``: what takes the
    space, in the file's order; what several operators share stands at the first of them.
    """

    input: TensorSpec
    output: TensorSpec
    operators: tuple[tuple[str, int], ...]
    weights: tuple[tuple[str, int], ...]  # type of the stored constants and their bytes
    details: tuple[Operator, ...] = ()
    parts: tuple[Part, ...] = ()
    labels: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    sparsity: str = ""  # whether the runtime's sparse kernels will take it, where it has zeros
    needs: str = ""  # the oldest systems that can run the file, for formats that tell


class Precision(NamedTuple):
    """What it *does*, its usual *size*, fp32 being 1, and what it *lacks*: what stays in fp32."""

    does: str
    size: str
    lacks: str


class Converter(Protocol):
    """A module in converters/ that gives these names."""

    target: str
    suffix: str
    precisions: dict[str, Precision]
    extra: str  # the extra of edgekit that brings its packages

    def check(self) -> None:
        """Raises MissingDependency when a package that converting needs is not installed."""

    def convert(self, source: "Source", variant: Variant, out: Path) -> Conversion: ...

    def predict(self, artifact: Artifact, pixels_NHWC: Pixels) -> "Logits":
        """The file's logits (N, K) on this machine."""
        ...

    def inspect(self, path: Path) -> Inspection: ...


@contextmanager
def converting(tool: str) -> Iterator[None]:
    """Inside it whatever *tool* raises becomes a ConversionError of one line; the traceback stays as the cause."""
    try:
        yield
    except (EdgekitError, OSError):  # a full disk is no fault of the model
        raise
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:  # exporters wrap theirs in pages of advice
            root = root.__cause__
        line = (str(root).strip().splitlines() or [""])[0]
        raise ConversionError(f"{tool} cannot convert this model: {type(root).__name__}: {line}") from error


def converter(target: str) -> Converter:
    """The converter of a target. Raises UsageError for an unknown one."""
    if target not in plugins.names("converters"):
        raise unknown("target", target, plugins.names("converters"))
    module: Converter = plugins.load("converters", target)
    return module


def for_file(path: Path) -> Converter:
    """The converter whose files end as *path* does. Raises UsageError for another suffix."""
    known = {found.suffix: found for found in map(converter, plugins.names("converters"))}
    if path.suffix == ".mlmodel":
        raise UsageError(
            f"{path} is Core ML's older kind of file (a neural network, or no network at all), which edgekit does "
            "not read: make an ML program of the original model (.mlpackage), for instance with edgekit convert"
        )
    if path.suffix not in known:
        raise unknown("kind of model file", path.suffix or path.name, known)
    return known[path.suffix]


def check(variants: Sequence[Variant]) -> None:
    """Raises UsageError or MissingDependency for what cannot be converted, before any long work."""
    searched: set[str] = set()
    for variant in variants:
        target = converter(variant.target)
        if variant.precision not in target.precisions:
            raise unknown(f"precision for {variant.target}", variant.precision, target.precisions)
        if variant.target == "coreml":
            systems.target(variant)
        if variant.budget is not None:
            if variant.target != "coreml" and target.suffix != sensitivity.SUFFIX:
                raise UsageError(f"max_drop works for {sensitivity.SUFFIX} files, not for {variant.target}")
            if variant.target != "coreml" and variant.target in searched:
                raise UsageError(
                    f"{' with max_drop and '.join(REPAIRED)} give the same file: leave out one of them"
                )
            searched.add(variant.target)
        target.check()
    trained = {one.target for one in variants if one.precision == QAT}
    if both := trained & {one.target for one in variants if one.precision == "int8" and one.budget is not None}:
        raise UsageError(
            f"max_drop may end in {both.pop()}-{QAT}, which another variant gives: leave out one of them, or give "
            "each a folder of its own"
        )


def convert(
    source: "Source",
    variants: Sequence[Variant],
    images_NHWC: Pixels,
    out: Path,
    progress: Callable[[str, float], None],
) -> list[Artifact]:
    """One artifact per variant in *out*, with its sidecar; parity is measured on *images_NHWC*.

    Where a variant's search for layers ends in the file that another variant gave before, it is one artifact.
    Raises ConversionError; files made before stay.
    """
    made: dict[Path, Artifact] = {}
    # A search comes last: what it ends in takes the place of what another variant gave under the name.
    for done, variant in enumerate(sorted(variants, key=lambda one: one.budget is not None)):
        progress(variant.name, done / len(variants))
        one = _convert(source, variant, images_NHWC, out, partial(_tell, progress, variant, done / len(variants)))
        made[one.path] = one
    progress("converted", 1.0)
    return list(made.values())


def _tell(progress: Callable[[str, float], None], variant: Variant, share: float, text: str) -> None:
    progress(f"{variant.name}: {text}", share)


def _convert(
    source: "Source", variant: Variant, images_NHWC: Pixels, out: Path, tell: Callable[[str], None]
) -> Artifact:
    def make(variant: Variant, folder: Path) -> Artifact:
        return _convert_one(source, variant, images_NHWC, folder)

    if variant.budget is None:
        return make(variant, out)
    predict = converter(variant.target).predict
    if variant.target == "coreml":
        from edgekit.coreml.repair import repair as repair_coreml  # it loads torch

        return repair_coreml(source, variant, out, make=make, predict=predict, tell=tell)
    # Who asks for int8-mixed asks for no training.
    last, why_not = _training(source, variant, out, make) if variant.precision == "int8" else (None, "")
    artifact = repair(source, variant, out, make=make, predict=predict, tell=tell, last=last)
    if why_not and artifact.repair and not artifact.repair.met:
        artifact = replace(artifact, notes=(*artifact.notes, why_not))
        artifacts.write_sidecar(artifact)
    return artifact


def _training(
    source: "Source", variant: Variant, out: Path, make: Callable[[Variant, Path], Artifact]
) -> tuple[LastResort | None, str]:
    """The last resort of a search, or why there is none: found out before the search, which takes long."""
    if source.lessons is None:
        return None, ""
    try:
        source.lessons()
    except DataError as error:  # images of any kind may calibrate
        return None, f"it was not trained with its rounding in place: {error}"
    # It learns from the float network as it is.
    qat = replace(variant, precision=QAT, max_drop=None, calibration=variant.calibration.exact)
    folder = out / f".{variant.name}"
    name = "trained with its rounding in place"
    return LastResort(name=name, make=lambda: make(qat, folder), folder=folder), ""


def _convert_one(source: "Source", variant: Variant, images_NHWC: Pixels, out: Path) -> Artifact:
    target = converter(variant.target)
    path = out / f"{variant.name}{target.suffix}"
    images_sha256 = hashlib.sha256(images_NHWC.tobytes()).hexdigest()
    reference = source.once(f"reference logits {images_sha256}", lambda: source.logits(images_NHWC))
    with artifacts.replacing(path) as (description, temporary):
        conversion = target.convert(source, variant, temporary)
        artifact = replace(described(source, variant, conversion, temporary), file=path.name)
        try:
            measured = parity(reference, target.predict(artifact, images_NHWC))
        except ValueError as error:
            raise ConversionError(f"{variant.name} is broken: {error}") from error
        faults: tuple[str, ...] = ()
        if why := measured.broken(variant.precision):
            silent = faint(reference)
            guilty = (silent,) if silent else _guilty(source, artifact, variant, images_NHWC)
            faults = (f"broken: {why}", *guilty)
        artifact = replace(artifact, parity=measured, path=path, notes=(*artifact.notes, *faults))
        files.write_json(description, encode(artifact))
    files.remove(artifacts.unfinished(path))
    return artifact


def described(source: "Source", variant: Variant, conversion: Conversion, path: Path) -> Artifact:
    """The file at *path* that a converter has made; its parity is not measured yet."""
    return Artifact(
        file=path.name,
        target=variant.target,
        precision=variant.precision,
        input=conversion.input,
        output=conversion.output,
        labels=source.labels,
        preprocess=source.preprocess,
        size_bytes=files.size_bytes(path),
        sha256=files.sha256(path),
        parent=source.parent,
        tools={"edgekit": __version__, **conversion.tools},
        calibration=conversion.calibration,
        notes=conversion.notes,
        path=path,
    )


def _guilty(source: "Source", artifact: Artifact, variant: Variant, images_NHWC: Pixels) -> tuple[str, ...]:
    """A note that names the layers of a broken file, where its format lets us look inside."""
    target = converter(variant.target)
    if target.suffix != sensitivity.SUFFIX or variant.precision == "fp32":
        return ()
    with tempfile.TemporaryDirectory() as folder:
        float_file, quantized = Path(folder, f"fp32{target.suffix}"), artifact.path
        like = Variant(target=variant.target, precision="fp32", calibration=variant.calibration.exact)
        target.convert(source, like, float_file)
        if variant.calibration.correct_biases:
            quantized = Path(folder, f"uncorrected{target.suffix}")
            target.convert(source, replace(variant, calibration=variant.calibration.uncorrected), quantized)
        layers = sensitivity.sensitivity(float_file, quantized, images_NHWC[: sensitivity.IMAGES])
    named = ", ".join(map(str, sensitivity.worst(layers)))
    return (f"guilty, by the error that each layer adds: {named}",) if named else ()


def labels_in(metadata: dict[str, str]) -> tuple[str, ...]:
    """The class names that edgekit embedded as JSON; none where the entry is another tool's."""
    try:
        names = json.loads(metadata.get("labels", "[]"))
    except json.JSONDecodeError:
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def noise(shape_HWC: tuple[int, int, int], count: int, seed: int = 0) -> Pixels:
    """Seeded random pixels, for parity where no images are given: smooth blobs rather than grey mud."""
    height, width, channels = shape_HWC
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, channels))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return coarse[:, rows][:, :, columns].astype(np.uint8)


def foreign(path: Path, preprocess: Callable[[int, int], Preprocess], labels: tuple[str, ...]) -> Artifact:
    """A model file of another tool as an artifact; *preprocess* is called with the file's height and width.

    It takes raw pixels where its input is an image or plain uint8 (or uint8 with scale 1, or int8 that stands for
    the same), else normalized values. Raises UsageError or ArtifactError for a file that is no image classifier.
    """
    if not path.exists():
        raise ArtifactError(f"no such file: {path}")
    target = for_file(path)
    found = target.inspect(path)
    shape, outputs = found.input.shape, (found.output.shape or (0,))[-1]
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ArtifactError(f"{path} takes {shape}; an image classifier takes (1, height, width, 3)")
    height, width = shape[1:3] if shape[3] == 3 else shape[2:4]
    if min(height, width) < 1:
        raise ArtifactError(f"{path} takes pictures of any size: fix its height and width before it is measured")
    if outputs < 2:
        raise ArtifactError(f"{path} gives {found.output.shape}; an image classifier gives scores (1, classes)")
    if labels and len(labels) != outputs:
        raise UsageError(f"{path} gives {outputs} scores, but there are {len(labels)} labels")
    stored = (found.input.dtype, found.input.scale, found.input.zero_point)
    raw = stored[0] == "image" or stored[:2] in (("uint8", None), ("uint8", 1.0)) or stored == ("int8", 1.0, -128)
    return Artifact(
        file=path.name,
        target=target.target,
        precision="foreign",
        input=found.input,
        output=found.output,
        input_is="pixels" if raw else "normalized",
        labels=labels or tuple(str(index) for index in range(outputs)),
        preprocess=preprocess(height, width),
        size_bytes=files.size_bytes(path),
        sha256=files.sha256(path),
        notes=("not made by edgekit",),
        path=path,
    )
