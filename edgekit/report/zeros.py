"""Whether it paid to leave the zeros of a sparse network out."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.report.rows import Row
from edgekit.report.speed import Speed, speed
from edgekit.report.words import speed_words

SPARSE, KERNEL = "sparse", "SPMM"  # the precision, and what XNNPACK calls its sparse kernels


@dataclass(frozen=True, kw_only=True, slots=True)
class Zeros:
    """What ran of a sparse file, and how it stands to the dense file of the same network.

    *kernels*: how many of its *operators* ran as sparse kernels; None where the runtime does not tell. *dense*:
    the fp32 file of the same weights, where it was measured here, with the *speed* against it. *paid*: None where
    that cannot be told.
    """

    words: str
    kernels: int | None = None
    operators: int | None = None
    dense: str | None = None
    speed: Speed | None = None
    paid: bool | None = None


def zeros(row: Row, rows: Sequence[Row]) -> Zeros | None:
    """What is to be told of a sparse file that was measured; None of others."""
    if row.artifact.precision != SPARSE or row.result is None:
        return None
    profile = row.result.profile
    kernels = operators = None
    if profile is not None and profile.costs:
        operators = len(profile.costs)
        kernels = sum(KERNEL in cost.operator for cost in profile.costs)
    dense = _dense(row, rows)
    found, reason = _speed(row, dense)
    paid = None if found is None or found.low is None else found.real and found.ratio < 1
    verdict = "" if paid is None else "it paid: " if paid else "it did not pay: "
    told = reason if found is None or dense is None else f"{verdict}{speed_words(found)}, against {dense.name}"
    return Zeros(
        words="; ".join(filter(None, (_ran(kernels, operators, row.result.device.architecture), told))),
        kernels=kernels,
        operators=operators,
        dense=dense.name if dense else None,
        speed=found,
        paid=paid,
    )


def _ran(kernels: int | None, operators: int | None, machine: str) -> str:
    if kernels is None:
        return "whether sparse kernels ran, the runtime does not tell"
    if kernels:
        return f"{kernels} of {operators} operators ran as sparse kernels"
    why = "XNNPACK has them for ARM only" if machine == "x86_64" else "edgekit inspect says why"
    return f"no sparse kernels ran: its zeros were multiplied ({why})"


def _dense(row: Row, rows: Sequence[Row]) -> Row | None:
    """The fp32 file of the same weights, where it was measured."""
    return next(
        (
            one
            for one in rows
            if one.result and one.artifact.precision == "fp32" and one.artifact.target == row.artifact.target
            if one.artifact.parent and one.artifact.parent == row.artifact.parent
        ),
        None,
    )


def _speed(row: Row, dense: Row | None) -> tuple[Speed | None, str]:
    """The speed against the dense file, or why there is none."""
    if dense is None or dense.result is None or row.result is None:
        return None, "its fp32 file was not measured here, so whether that paid is not known"
    if not (row.latency and dense.latency):
        return None, ""
    if dense.reasons or row.reasons:
        return None, f"whether it paid against {dense.name} cannot be told: a run is invalid"
    return speed(dense.result, row.result), ""
