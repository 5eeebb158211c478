"""An int8 file within a budget of accuracy: the search over real files, and where its result lies."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import artifact as artifacts
from edgekit import files
from edgekit.artifact import Artifact, Repair
from edgekit.errors import ArtifactError, UsageError
from edgekit.preprocess import Pixels
from edgekit.recipe import REPAIRED, Variant
from edgekit.schema import encode
from edgekit.search import MOST_FLOAT, Classes, Task, Trial, search
from edgekit.sensitivity import IMAGES, Remedy, remedies, sensitivity

if TYPE_CHECKING:
    from edgekit.export import ExportSource, Logits

NO_LABELS = (
    "to measure what int8 loses (max_drop, int8-mixed) edgekit needs labelled images that were not trained on: "
    "give --data DIR, a folder that holds one folder of images a class"
)


def repair(
    source: "ExportSource",
    variant: Variant,
    out: Path,
    *,
    make: Callable[[Variant, Path], Artifact],
    predict: Callable[[Artifact, Pixels], "Logits"],
    tell: Callable[[str], None],
) -> Artifact:
    """The artifact of a variant with a budget. Raises UsageError where no labelled images are.

    *make* converts the source into a folder. All files of the search are made elsewhere; the best comes to *out*,
    byte for byte as it was measured.
    """
    assert variant.budget is not None
    if source.held_out is None:
        raise UsageError(NO_LABELS)
    held_out = source.once("held-out images", source.held_out)
    trials: dict[tuple[str, ...], Artifact] = {}

    def predicted(artifact: Artifact) -> Classes:
        return np.asarray(predict(artifact, held_out.pixels_NHWC).argmax(1), np.int64)

    def trial(layers: tuple[str, ...]) -> Trial:
        precision = "int8-mixed" if layers else "int8"
        asked = replace(variant, precision=precision, max_drop=None, keep_float=layers)
        trials[layers] = made = make(asked, Path(folder, str(len(trials))))
        return Trial(predicted=predicted(made), size_bytes=made.size_bytes)

    def ranked() -> tuple[Remedy, ...]:
        assert source.calibrate is not None, "there is an int8 file, but nothing to calibrate it on"
        images = source.calibrate(replace(variant.calibration, images=IMAGES)).pixels_NHWC
        return remedies(sensitivity(reference.path, trials[()].path, images), MOST_FLOAT)

    with tempfile.TemporaryDirectory() as folder:
        reference = make(replace(variant, precision="fp32", max_drop=None), Path(folder))
        found = search(
            Task(
                max_drop=variant.budget,
                truth=held_out.truth,
                images_sha256=held_out.images_sha256,
                reference=predicted(reference),
                make=trial,
                remedies=ranked,
                tell=tell,
            )
        )
        best = trials[found.float_layers]
        return _put(replace(best, repair=found, notes=(*best.notes, *_notes(found))), out)


def _notes(found: Repair) -> tuple[str, ...]:
    """What a user should know beside the figures."""
    notes, point = [], 100 / found.images
    if not found.met:
        notes.append(
            f"the budget is NOT met: {found.drop:.2f} points of top-1 are lost, more than {found.max_drop:g}; the "
            f"best of {len(found.steps)} files with at most {100 * MOST_FLOAT:.0f} % of the products in float. "
            "Calibrate on more images or by another method, or ship fp16 or w8"
        )
    if point > found.max_drop:
        notes.append(
            f"{found.images} held-out images are few for a budget of {found.max_drop:g} points: one is {point:.2f}"
        )
    return tuple(notes)


def _put(artifact: Artifact, out: Path) -> Artifact:
    """The artifact, copied to *out*; what an earlier search left there under the other name goes."""
    path = out / artifact.path.name
    with artifacts.replacing(path) as (description, temporary):
        shutil.copyfile(artifact.path, temporary)
        artifact = replace(artifact, path=path)
        files.write_json(description, encode(artifact))
    for precision in REPAIRED:
        other = out / f"{artifact.target}-{precision}{path.suffix}"
        if other != path and _was_searched(other):
            files.remove(artifacts.sidecar(other))
            files.remove(other)
    return artifact


def path_of(variant: Variant, suffix: str, out: Path) -> Path:
    """Where in *out* the variant's file is or will be: a search may end under either precision's name."""
    if variant.budget is not None:
        for precision in REPAIRED:
            if _was_searched(path := out / f"{variant.target}-{precision}{suffix}"):
                return path
    return out / f"{variant.name}{suffix}"


def _was_searched(path: Path) -> bool:
    try:
        return artifacts.read(path, verify=False).repair is not None
    except ArtifactError:  # missing or damaged: it is not known to be one
        return False
