"""What the page's charts draw, as plain data: points of latency against accuracy, quantiles of the samples."""

from typing import Any

import numpy as np

from edgekit import units
from edgekit.report.cells import typeset
from edgekit.report.compare import Comparison, Group
from edgekit.report.rows import Row
from edgekit.report.words import figure

QUANTILES = 200  # of up to some 10,000 samples: enough for the eye, and the page stays small


def chart_data(comparison: Comparison, limit: int) -> list[dict[str, Any]]:
    """Per group, in order, its points and its latency strips, these of at most *limit* files.

    Latencies are in ms, accuracies in percent.
    """
    return [
        {
            "points": [_point(row, group) for row in group.rows if row.latency and row.top1],
            "frontier": list(group.choice.pareto),
            "strips": [_strip(row, group) for row in group.chief(limit) if row.latency],
        }
        for group in comparison.groups
    ]


def _point(row: Row, group: Group) -> dict[str, Any]:
    assert row.latency is not None
    assert row.top1 is not None
    medians = row.latency.block_medians_ms
    return {
        "name": row.name,
        "x": row.latency.p50_ms,
        "x1": min(medians),
        "x2": max(medians),
        "y": 100 * row.top1.share,
        "y1": 100 * row.top1.low,
        "y2": 100 * row.top1.high,
        "ranked": not row.left_out,
        "reference": row.is_reference,
        "pick": row.name == group.choice.pick,
        "pareto": row.name in group.choice.pareto,
        "figures": [[label, text] for label, text in figures(row) if text],
    }


def figures(row: Row) -> list[tuple[str, str]]:
    """Every figure of a row as label and text, for the tip over its point."""
    found, result = row.latency, row.result
    assert found is not None
    assert result is not None
    quantiles = (("p90", found.p90_ms), ("p99", found.p99_ms), ("min", found.min_ms))
    tail = ", ".join(f"{name} {figure(value)}" for name, value in quantiles if value is not None)
    memory = result.measurement.peak_memory_bytes
    top1, top5, parity = row.top1, row.top5, row.artifact.parity
    return [
        ("Latency", f"{figure(found.p50_ms)} ms ({tail})"),
        ("Speed", "" if row.is_reference else typeset(row.speed_words)),
        ("Blocks", f"{len(found.block_medians_ms)}, medians at most {100 * found.spread:.1f} % off"),
        ("Top-1", f"{units.percent(top1.share)} ({100 * top1.low:.1f}–{100 * top1.high:.1f})" if top1 else ""),
        ("Change", "" if row.is_reference else typeset(row.accuracy_words) if row.paired else row.accuracy_words),
        ("Flips", f"{row.paired.flips} of {row.paired.count} images" if row.paired else ""),
        ("Top-5", units.percent(top5.share) if top5 else ""),
        ("Size", units.size(row.artifact.size_bytes)),
        ("Parity", f"{parity.sqnr_db:.1f} dB, {100 * parity.top1_agreement:.1f} % agree" if parity else ""),
        ("Load", units.milliseconds(result.measurement.load_ms)),
        ("Memory", "" if memory is None else units.size(memory)),
        ("Not ranked", row.left_out),
    ]


def _strip(row: Row, group: Group) -> dict[str, Any]:
    assert row.latency is not None
    assert row.result is not None
    measurement = row.result.measurement
    known = [(one.min_ns, one.p5_ns, one.median_ns, one.p95_ns, one.max_ns) for one in measurement.summaries]
    samples_ms = np.asarray(measurement.samples_ns or known, np.float64).reshape(-1) / 1e6
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    ticks = np.quantile(samples_ms, shares) if len(samples_ms) > QUANTILES else np.sort(samples_ms)
    return {
        "name": row.name,
        "p50": row.latency.p50_ms,
        "count": row.latency.count,
        "ticks": [float(f"{tick:.4g}") for tick in ticks],
        "ranked": not row.left_out,
        "pick": row.name == group.choice.pick,
    }
