"""An int8 file within a budget of accuracy: the search over real files, and where its result lies."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit import artifact as artifacts
from edgekit import files
from edgekit.artifact import Artifact, Repair
from edgekit.errors import ArtifactError, UsageError
from edgekit.parity import divergence
from edgekit.preprocess import Pixels
from edgekit.profile import costs
from edgekit.recipe import QAT, REPAIRED, REPAIRS, CalibrationSpec, Variant
from edgekit.schema import encode
from edgekit.search import MOST_FLOAT, Classes, Names, Step, Task, Trial, search
from edgekit.sensitivity import IMAGES, Remedy, rank, remedies, sensitivity

if TYPE_CHECKING:
    from edgekit.export import Logits, Source

NO_LABELS = (
    "to measure what int8 loses (max_drop, int8-mixed) edgekit needs labelled images that were not trained on: "
    "give --data DIR, a folder that holds one folder of images a class"
)
ENDS = (*REPAIRED, QAT)  # the precisions that a search may end in


@dataclass(frozen=True, kw_only=True, slots=True)
class LastResort:
    """What is tried when neither repairs nor layers in float suffice. *make* gives its artifact, in *folder*.

    It takes long: what it leaves there when it is cut off, it goes on with the next time.
    """

    name: str
    make: Callable[[], Artifact]
    folder: Path


def repair(
    source: "Source",
    variant: Variant,
    out: Path,
    *,
    make: Callable[[Variant, Path], Artifact],
    predict: Callable[[Artifact, Pixels], "Logits"],
    tell: Callable[[str], None],
    last: LastResort | None = None,
) -> Artifact:
    """The artifact of a variant with a budget. Raises UsageError where no labelled images are.

    *make* converts the source into a folder. All files of the search are made elsewhere; the best comes to *out*,
    byte for byte as it was measured. What a search by *last* left there goes with it.
    """
    assert variant.budget is not None
    if source.held_out is None:
        raise UsageError(NO_LABELS)
    held_out = source.once("held-out images", source.held_out)
    made: list[Artifact] = []  # by step
    weighed: list[Literal["latency", "products"]] = []

    def predicted(artifact: Artifact) -> Classes:
        return np.asarray(predict(artifact, held_out.pixels_NHWC).argmax(1), np.int64)

    def measured(artifact: Artifact) -> Trial:
        made.append(artifact)
        return Trial(predicted=predicted(artifact), size_bytes=artifact.size_bytes)

    def trial(repairs: Names, layers: Names) -> Trial:
        precision = "int8-mixed" if layers else "int8"
        calibration = variant.calibration.repaired(repairs)
        asked = replace(variant, precision=precision, max_drop=None, keep_float=layers, calibration=calibration)
        return measured(make(asked, Path(folder, str(len(made)))))

    def ranked(repairs: Names) -> tuple[Remedy, ...]:
        assert source.calibrate is not None, "there is an int8 file, but nothing to calibrate it on"
        images = source.calibrate(replace(variant.calibration, images=IMAGES)).pixels_NHWC
        kept = variant.calibration.repaired(repairs)

        def like(precision: str, calibration: CalibrationSpec, keep_float: Names = ()) -> Artifact:
            plain = replace(variant, max_drop=None, keep_float=keep_float, precision=precision)
            return make(replace(plain, calibration=calibration), Path(folder, "like"))

        wanted, int8 = like("fp32", kept.exact), like("int8", kept.uncorrected)
        layers = sensitivity(wanted.path, int8.path, images)
        shares = costs(wanted.path, int8.path)
        weighed.append("latency" if shares.sound else "products")
        found = remedies(layers, shares.shares if shares.sound else None)
        logits, harms = predict(wanted, images), list[float]()
        for number, one in enumerate(found, 1):
            tell(f"alone in integers: {one.name}, {number} of {len(found)}")
            others = tuple(layer.name for layer in layers if layer.name not in one.float_layers)
            alone = like("int8-mixed", kept.uncorrected, others)
            harms.append(divergence(logits, predict(alone, images)))
        return rank(found, harms, MOST_FLOAT * sum(layer.macs for layer in layers))

    def resort() -> Trial:
        assert last is not None
        return measured(last.make())

    with tempfile.TemporaryDirectory() as folder:
        plain = replace(variant, precision="fp32", max_drop=None, calibration=variant.calibration.repaired(()))
        reference = make(plain, Path(folder))
        found, place = search(
            Task(
                max_drop=variant.budget,
                truth=held_out.truth,
                images_sha256=held_out.images_sha256,
                reference=predicted(reference),
                make=trial,
                remedies=ranked,
                given=variant.calibration.repairs,
                repairs=[(key, name) for key, name in REPAIRS.items() if key not in variant.calibration.repairs],
                last=Step(name=last.name, make=resort) if last else None,
                tell=tell,
            )
        )
        found = replace(found, weighed_by=weighed[0] if weighed else "")
        notes = (*made[place].notes, *_notes(found), *_unmeasured(source.labels, held_out.truth))
        best = _put(replace(made[place], repair=found, notes=notes), out)
    if last:
        files.remove(last.folder)
    return best


def _notes(found: Repair) -> tuple[str, ...]:
    """What a user should know beside the figures."""
    notes, point = [], 100 / found.images
    if found.repairs:
        notes.append(f"repaired: {', '.join(REPAIRS[name] for name in found.repairs)}")
    if found.weighed_by == "products":
        notes.append("layers in float were weighed by their products: the machine was too busy to time them")
    if not found.met:
        notes.append(
            f"the budget is NOT met: {found.drop:.2f} points of top-1 are lost, more than {found.max_drop:g}; the "
            f"best of {len(found.steps)} files with at most {100 * MOST_FLOAT:.0f} % of the products in float. "
            "Calibrate on more images, train int8-qat for longer, or ship fp16 or w8"
        )
    if point > found.max_drop:
        notes.append(
            f"{found.images} held-out images are few for a budget of {found.max_drop:g} points: one is {point:.2f}"
        )
    return tuple(notes)


def _unmeasured(labels: tuple[str, ...], truth: Classes) -> tuple[str, ...]:
    """A note on classes of which no held-out image tells what they lose."""
    shown = {int(place) for place in truth}
    names = [label for place, label in enumerate(labels) if place not in shown]
    listed = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    said = f"no held-out image of {len(names)} of {len(labels)} classes, whose loss is not known: {listed}"
    return (said,) if names else ()


def _put(artifact: Artifact, out: Path) -> Artifact:
    """The artifact, copied to *out*; what an earlier search left there under the other name goes."""
    path = out / artifact.path.name
    with artifacts.replacing(path) as (description, temporary):
        shutil.copyfile(artifact.path, temporary)
        artifact = replace(artifact, path=path)
        files.write_json(description, encode(artifact))
    for precision in ENDS:
        other = out / f"{artifact.target}-{precision}{path.suffix}"
        if other != path and _was_searched(other):
            _remove(other)
    return artifact


def _remove(path: Path) -> None:
    files.remove(artifacts.sidecar(path))
    files.remove(path)


def path_of(variant: Variant, suffix: str, out: Path) -> Path:
    """Where in *out* the variant's file is or will be: a search may end under either precision's name."""
    if variant.budget is not None:
        for precision in ENDS:
            if _was_searched(path := out / f"{variant.target}-{precision}{suffix}"):
                return path
    return out / f"{variant.name}{suffix}"


def _was_searched(path: Path) -> bool:
    try:
        return artifacts.read(path, verify=False).repair is not None
    except ArtifactError:  # missing or damaged: it is not known to be one
        return False
