"""Whether it paid to leave the zeros of a sparse network out."""

from collections.abc import Sequence

from edgekit.report.rows import Row
from edgekit.report.speed import speed
from edgekit.report.words import speed_words

SPARSE, KERNEL = "sparse", "SPMM"  # the precision, and what XNNPACK calls its sparse kernels


def zeros_words(row: Row, rows: Sequence[Row]) -> str:
    """What ran of a sparse file, and how it stands to the dense file of the same network; nothing of others."""
    if row.artifact.precision != SPARSE or row.result is None:
        return ""
    return "; ".join(part for part in (_kernels(row), _paid(row, rows)) if part)


def _kernels(row: Row) -> str:
    assert row.result is not None
    profile = row.result.profile
    if profile is None or not profile.costs:
        return "whether sparse kernels ran, the runtime does not tell"
    count = sum(KERNEL in cost.operator for cost in profile.costs)
    if count:
        return f"{count} of {len(profile.costs)} operators ran as sparse kernels"
    machine = row.result.device.architecture
    why = "XNNPACK has them for ARM only" if machine == "x86_64" else "edgekit inspect says why"
    return f"no sparse kernels ran: its zeros were multiplied ({why})"


def _paid(row: Row, rows: Sequence[Row]) -> str:
    """Against the fp32 file of the same weights."""
    dense = next(
        (
            one
            for one in rows
            if one.result and one.artifact.precision == "fp32" and one.artifact.target == row.artifact.target
            if one.artifact.parent and one.artifact.parent == row.artifact.parent
        ),
        None,
    )
    if dense is None or dense.result is None or row.result is None:
        return "its fp32 file was not measured here, so whether that paid is not known"
    if not (row.latency and dense.latency):
        return ""
    if dense.reasons or row.reasons:
        return f"whether it paid against {dense.name} cannot be told: a run is invalid"
    found = speed(dense.result, row.result)
    verdict = "it paid" if found.real and found.ratio < 1 else "it did not pay" if found.low is not None else ""
    told = f"{speed_words(found)}, against {dense.name}"
    return f"{verdict}: {told}" if verdict else told
