"""The comparison as plain data for ``--json`` and the page: the same figures as the table, without raw samples."""

from collections.abc import Sequence
from typing import Any

from edgekit.report.accuracy import Accuracy
from edgekit.report.compare import Comparison, Group
from edgekit.report.rows import Row
from edgekit.report.sustained import sustained, title
from edgekit.report.zeros import zeros
from edgekit.result import Result
from edgekit.schema import encode

FORMAT = 1


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Lists, dicts and scalars that survive JSON. Shares are in 0 to 1; what was not measured is null."""
    return {
        "format": FORMAT,
        "verdict": comparison.verdict,
        "allow_invalid": comparison.allow_invalid,
        "groups": [_group(group) for group in comparison.groups],
        "sustained": [_sustained(run) for run in comparison.sustained],
    }


def _sustained(run: Result) -> dict[str, Any]:
    return {
        "title": title(run),
        "name": run.name,
        "device": encode(run.device),
        "settings": encode(run.settings),
        "figures": encode(sustained(run)),
        "doubts": list(run.validity.reasons),
        "created": run.created,
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "title": group.title,
        "device": encode(group.device) if group.device else None,
        "fingerprint": group.device.fingerprint if group.device else None,
        "threads": group.threads,
        "reference": group.reference,
        "pareto": list(group.choice.pareto),
        "pick": group.choice.pick,
        "conclusion": group.choice.conclusion,
        "left_out": group.choice.left_out,
        "advice": [encode(one) for one in group.advice],
        "rows": [_row(row, group.rows) for row in group.rows],
    }


def _row(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    artifact, result = row.artifact, row.result
    measurement = result.measurement if result else None
    speed, pair, sparse = row.speed, row.paired, zeros(row, rows)
    return {
        "name": row.name,
        "file": artifact.file,
        "target": artifact.target,
        "precision": artifact.precision,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "size_ratio": row.size_ratio,
        "reference": row.is_reference,
        "measured": result is not None,
        "valid": row.valid,
        "reasons": list(row.reasons),
        "left_out": row.left_out,
        "settings": encode(result.settings) if result else None,
        "visit": result.visit if result else None,
        "created": result.created if result else None,
        "delegation": encode(result.delegation) if result and result.delegation else None,
        "profile": encode(result.profile) if result and result.profile else None,
        "latency": encode(row.latency) if row.latency else None,
        "load_ms": measurement.load_ms if measurement else None,
        "cooling": [encode(pause) for pause in result.cooling] if result else [],
        "first_ms": measurement.first_ms if measurement else None,
        "peak_memory_bytes": measurement.peak_memory_bytes if measurement else None,
        "speed": None if speed is None else {**encode(speed), "real": speed.real},
        "speed_words": row.speed_words,
        "sparse": encode(sparse) if sparse else None,
        "dataset": result.predictions.dataset if result and result.predictions else None,
        "top1": _accuracy(row.top1),
        "top5": _accuracy(row.top5),
        "paired": None
        if pair is None
        else {**encode(pair), "difference": pair.difference, "flip_rate": pair.flip_rate},
        "incomparable": row.incomparable,
        "accuracy_words": row.accuracy_words,
        "parity": encode(artifact.parity) if artifact.parity else None,
        "repair": encode(artifact.repair) if artifact.repair else None,
        "broken": row.broken,
    }


def _accuracy(accuracy: Accuracy | None) -> dict[str, Any] | None:
    return None if accuracy is None else {**encode(accuracy), "share": accuracy.share}
