"""The grid of a sweep: one recipe for each budget of multiply-accumulates, with the files to make of each."""

import math
from collections.abc import Sequence
from dataclasses import replace

from edgekit.convert import converter
from edgekit.errors import UsageError, unknown
from edgekit.prunespec import PruneSpec
from edgekit.recipe import BY_NAME, Recipe, ReportSpec, Variant

DENSE, LEAST = "dense", 0.001


def grid(followed: Recipe, keep: Sequence[float], precisions: Sequence[str], target: str) -> dict[str, Recipe]:
    """A recipe for each budget, by the name of its folder, the largest budget first.

    *precisions* of *target*, each as the recipe's variant has it; without any the recipe's own variants.
    Raises UsageError for what is no grid.
    """
    if twice := sorted({f"{share:g}" for share in keep if keep.count(share) > 1}):
        raise UsageError(f"--keep-macs names {', '.join(twice)} twice")
    for share in keep:
        if not (math.isfinite(share) and LEAST <= share <= 1):
            raise UsageError(f"--keep-macs {share:g}: a share of the multiply-accumulates, from {LEAST:g} to 1")
    variants = followed.variant if not precisions else _variants(followed, precisions, target)
    if not variants:
        raise UsageError("the recipe has no [[variant]]: give --quantize fp32,int8")
    if len(keep) * len(variants) < 2:
        raise UsageError(
            f"one budget and one precision are no grid: edgekit {'run' if keep[0] == 1 else 'prune'} does that; "
            "give more of either, as --keep-macs 1.0,0.5"
        )
    if len(followed.prune) > 1 and any(one.keep_latency is not None for one in followed.prune):
        raise UsageError(
            "the recipe prunes in several sections and to a latency, which says nothing of multiply-accumulates "
            "on the way: give each [[prune]] keep_macs, or leave one section"
        )
    plain = replace(followed, variant=variants, report=ReportSpec())
    return {
        DENSE if share == 1 else f"keep{share:g}": replace(
            plain, prune=() if share == 1 else sections(followed.prune, share)
        )
        for share in sorted(keep, reverse=True)
    }


def sections(written: Sequence[PruneSpec], share: float) -> tuple[PruneSpec, ...]:
    """The recipe's prunings to a budget of *share*: each takes as large a part of what goes as in the recipe.

    So all budgets are trained as long. The first section gets the budget where none has one.
    """
    if len(written) < 2:
        spec = written[0] if written else PruneSpec(keep_macs=0.5)
        return (replace(spec, keep_macs=share, keep_latency=None, device="local", precision="fp32"),)
    budgets = [one.keep_macs for one in written if one.keep_macs is not None]
    if not budgets:
        return replace(written[0], keep_macs=share), *written[1:]
    last = budgets[-1]

    def of(kept: float) -> float:
        return share if kept == last else round(1 - (1 - share) * (1 - kept) / (1 - last), 6)

    return tuple(one if one.keep_macs is None else replace(one, keep_macs=of(one.keep_macs)) for one in written)


def _variants(followed: Recipe, precisions: Sequence[str], target: str) -> tuple[Variant, ...]:
    if twice := sorted({name for name in precisions if precisions.count(name) > 1}):
        raise UsageError(f"--quantize names {', '.join(twice)} twice")
    known = converter(target).precisions
    for name in precisions:
        if name not in known:
            raise unknown(f"precision for {target}", name, known)
    own = {one.precision: one for one in followed.variant if one.target == target}
    return tuple(own.get(name) or Variant(target=target, precision=name) for name in precisions)


def all_precisions(target: str) -> tuple[str, ...]:
    """Every precision of a target but those that are asked for by name, as `edgekit convert` takes ``all``."""
    return tuple(name for name in converter(target).precisions if name not in BY_NAME)
