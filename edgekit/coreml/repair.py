"""A compressed Core ML file within a budget of accuracy: `edgekit.search` with Core ML's own means.

    as made -> a table for every few outputs (palettes; iOS18) -> layers in fp16, most error for their bytes first;
    for int8 the operators that do most to the answers

Every step is a file, made and measured on labelled held-out images with edgekit's reference.
"""

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import artifact as artifacts
from edgekit import files
from edgekit.artifact import Artifact
from edgekit.coreml import integers, layers, plan, program
from edgekit.coreml.integers import Integers
from edgekit.coreml.layers import Judged
from edgekit.errors import UsageError
from edgekit.preprocess import Pixels
from edgekit.quiet import quiet
from edgekit.recipe import Variant
from edgekit.repair import NO_LABELS
from edgekit.schema import encode
from edgekit.search import Classes, Names, Task, Trial, search
from edgekit.sensitivity import Remedy

if TYPE_CHECKING:
    from edgekit.export import Logits, Source

GROUP = 8  # outputs that share a table once one table for all does not do
MOST = 0.5  # of the bytes that compression saves: a file that gives back more is no compressed file any more
_GROUPS = ("groups", f"a table for every {GROUP} outputs (iOS 18)")


def repair(
    source: "Source",
    variant: Variant,
    out: Path,
    *,
    make: Callable[[Variant, Path], Artifact],
    predict: Callable[[Artifact, Pixels], "Logits"],
    tell: Callable[[str], None],
) -> Artifact:
    """The artifact of a variant with a budget, in *out*. Raises UsageError where no labelled images are."""
    assert variant.max_drop is not None
    if source.held_out is None:
        raise UsageError(NO_LABELS)
    held_out, scheme = source.once("held-out images", source.held_out), plan.SCHEMES[variant.precision]
    made: list[Artifact] = []  # by step

    def asked(repairs: Names, kept: Names) -> Variant:
        group = GROUP if _GROUPS[0] in repairs else variant.group
        names = tuple(dict.fromkeys((*variant.keep_float, *kept)))
        return replace(variant, max_drop=None, keep_float=names, group=group)

    def trial(repairs: Names, kept: Names) -> Trial:
        made.append(make(asked(repairs, kept), Path(folder, str(len(made)))))
        predicted: Classes = np.asarray(predict(made[-1], held_out.pixels_NHWC).argmax(1), np.int64)
        return Trial(predicted=predicted, size_bytes=made[-1].size_bytes)

    def ranked(repairs: Names) -> tuple[Remedy, ...]:
        images = source.calibrate(variant.calibration) if source.calibrate else None
        form = plan.scheme_of(asked(repairs, ()))
        with quiet():
            float_model = program.floats(source, "fp16")
            bench = layers.bench(source, float_model, images.pixels_NHWC if images else held_out.pixels_NHWC)
            if variant.precision == "int8" and images:
                return of_integers(integers.judge(source, float_model, bench, images), variant.keep_float)
            judged = bench.judge(form.encode)
        return of_weights(plan.choose(judged, variant.keep_float).stored)

    tables = scheme.table and not scheme.zeros and variant.group is None
    tables = tables and variant.deploy in (None, "iOS18")
    with tempfile.TemporaryDirectory() as folder:
        found, place = search(
            Task(
                max_drop=variant.max_drop,
                truth=held_out.truth,
                images_sha256=held_out.images_sha256,
                reference=np.asarray(source.logits(held_out.pixels_NHWC).argmax(1), np.int64),
                make=trial,
                remedies=ranked,
                repairs=[_GROUPS] if tables else [],
                tell=tell,
                first=f"{variant.precision} as made",
            )
        )
        best = replace(made[place], repair=found)
        if not found.met:
            note = (
                f"the budget is NOT met: {found.drop:.2f} points of top-1 are lost, more than {found.max_drop:g}; "
                "ship more bits, or train the network compressed"
            )
            best = replace(best, notes=(*best.notes, note))
        path = out / best.path.name
        with artifacts.replacing(path) as (description, temporary):
            shutil.copytree(best.path, temporary)
            best = replace(best, path=path)
            files.write_json(description, encode(best))
        return best


def of_integers(int8: Integers, keep: Collection[str]) -> tuple[Remedy, ...]:
    """Operators to leave in fp16 beside those that are: the most harm for its cost first, up to half of int8."""
    left = int8.left(keep)
    rest = [one for one in int8.operators if one.harm > 0 and one not in left and one.name not in keep]
    spent, found = sum(one.macs + one.weights for one in left), []
    for one in sorted(rest, key=lambda one: -one.harm / one.cost):
        if spent + one.macs + one.weights > 2 * MOST:  # of weights and products together
            continue
        spent += one.macs + one.weights
        found.append(Remedy(name=one.name, float_layers=(one.name,), cost=one.cost))
    return tuple(found)


def of_weights(stored: Mapping[str, Judged]) -> tuple[Remedy, ...]:
    """Layers to leave in fp16, the most error for its bytes first, while half of what is saved stays saved."""
    extra = {name: max(one.layer.size_bytes - one.stored.size_bytes, 1) for name, one in stored.items()}
    saved, spent, found = sum(extra.values()), 0, []
    for name, one in sorted(stored.items(), key=lambda item: -item[1].noise / extra[item[0]]):
        if one.own_db >= plan.SOUND_DB or spent + extra[name] > MOST * saved:
            continue
        spent += extra[name]
        found.append(Remedy(name=name, float_layers=(name,), cost=extra[name] / saved))
    return tuple(found)
