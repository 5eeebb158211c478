"""A compressed Core ML file within a budget of accuracy: `edgekit.search` with Core ML's own means.

    as made -> a table for every few outputs (palettes; iOS18) -> layers in fp16, most error for their bytes first

Every step is a file, made and measured on labelled held-out images with edgekit's reference.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import artifact as artifacts
from edgekit import files
from edgekit.artifact import Artifact
from edgekit.coreml import layers, plan, program
from edgekit.coreml.layers import Judged
from edgekit.errors import UsageError
from edgekit.preprocess import Pixels
from edgekit.quiet import quiet
from edgekit.recipe import Variant
from edgekit.repair import NO_LABELS
from edgekit.schema import encode
from edgekit.search import Classes, Names, Task, Trial, search
from edgekit.sensitivity import Layer, Remedy

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
        pixels = source.calibrate(variant.calibration).pixels_NHWC if source.calibrate else held_out.pixels_NHWC
        with quiet():
            bench = layers.bench(source, program.floats(source, "fp16"), pixels)
            form = plan.scheme_of(asked(repairs, ()))
            judged = bench.judge(form.encode)
        return remedies(plan.choose(judged, variant.keep_float).stored)

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


def remedies(stored: Mapping[str, Judged]) -> tuple[Remedy, ...]:
    """Layers to leave in fp16, the most error for its bytes first, while half of what is saved stays saved."""
    extra = {name: max(one.layer.size_bytes - one.stored.size_bytes, 1) for name, one in stored.items()}
    saved, spent, found = sum(extra.values()), 0, []
    for name, one in sorted(stored.items(), key=lambda item: -item[1].noise / extra[item[0]]):
        if one.own_db >= plan.SOUND_DB or spent + extra[name] > MOST * saved:
            continue
        spent += extra[name]
        layer = Layer(
            name=name,
            kind=one.layer.kind,
            sqnr_db=one.own_db,
            own_db=one.own_db,
            rounding=0.0,
            macs=one.layer.macs,
        )
        found.append(Remedy(layer=layer, float_layers=(name,), cost=extra[name] / saved))
    return tuple(found)
