"""The comparison for other programs: CSV with all figures, and the table as Markdown."""

import csv
from io import StringIO
from typing import Any

from edgekit import units
from edgekit.report.compare import Comparison, Group
from edgekit.report.data import as_json
from edgekit.report.rows import Row
from edgekit.report.words import figure

COLUMNS = [
    "device",
    "threads",
    "name",
    "file",
    "target",
    "precision",
    "size_bytes",
    "sha256",
    "reference",
    "pick",
    "pareto",
    "measured",
    "valid",
    "reasons",
    "left_out",
    "runtime",
    "runtime_version",
    "delegate",
    "count",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "min_ms",
    "load_ms",
    "first_ms",
    "peak_memory_bytes",
    "speed_ratio",
    "speed_low",
    "speed_high",
    "speed_p",
    "top1",
    "top1_low",
    "top1_high",
    "top5",
    "images",
    "top1_change",
    "flip_rate",
    "top1_p",
    "sqnr_db",
]


def as_csv(comparison: Comparison) -> str:
    """A line a row, with a head. Shares are in 0 to 1, ratios over the reference; what is not known is empty."""
    stream = StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    data = as_json(comparison)
    for group in data["groups"]:
        for row in group["rows"]:
            writer.writerow(_flat(group, row))
    return stream.getvalue()


def _flat(group: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    settings, latency, speed, pair = (row[key] or {} for key in ("settings", "latency", "speed", "paired"))
    top1, top5 = row["top1"] or {}, row["top5"] or {}
    flat = {
        **{key: row[key] for key in COLUMNS if key in row},
        **{key: latency.get(key) for key in ("count", "p50_ms", "p90_ms", "p99_ms", "min_ms")},
        **{key: settings.get(key) for key in ("runtime", "runtime_version", "delegate")},
        "device": (group["device"] or {}).get("model"),
        "threads": group["threads"],
        "pick": row["name"] == group["pick"],
        "pareto": row["name"] in group["pareto"],
        "reasons": "; ".join(row["reasons"]),
        "speed_ratio": speed.get("ratio"),
        "speed_low": speed.get("low"),
        "speed_high": speed.get("high"),
        "speed_p": _p(speed),
        "top1": top1.get("share"),
        "top1_low": top1.get("low"),
        "top1_high": top1.get("high"),
        "top5": top5.get("share"),
        "images": top1.get("count"),
        "top1_change": pair.get("difference"),
        "flip_rate": pair.get("flip_rate"),
        "top1_p": _p(pair),
        "sqnr_db": (row["parity"] or {}).get("sqnr_db"),
    }
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in flat.items()}


def _p(test: dict[str, Any]) -> float | None:
    """The p-value, corrected where it is one of several."""
    corrected = test.get("p_corrected")
    return test.get("p_value") if corrected is None else corrected


def as_markdown(comparison: Comparison) -> str:
    """A heading, a table and the conclusion for each device and thread count."""
    return "\n".join(_section(group) for group in comparison.groups)


def _section(group: Group) -> str:
    lines = [
        f"## {_escaped(group.title)}",
        "",
        "| file | size | p50 ms | p90 ms | speed | top-1 % | top-1 change |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(map(_escaped, _cells(row, group)))} |" for row in group.rows),
        "",
    ]
    doubts = [f"- ? {row.name}: {'; '.join(row.reasons)}" for row in group.rows if row.reasons]
    lines += map(_escaped, doubts)
    told = [f"- {_escaped(one.text)}" for one in group.advice]
    lines += [*told, ""] if doubts or told else []
    return "\n".join([*lines, f"**{_escaped(group.choice.conclusion)}**", ""])


def _cells(row: Row, group: Group) -> tuple[str, ...]:
    found, doubt = row.latency, " ?" if row.reasons else ""
    top1 = row.top1
    return (
        row.name + (" (the pick)" if row.name == group.choice.pick else ""),
        units.size(row.artifact.size_bytes),
        f"{figure(found.p50_ms)}{doubt}" if found else "",
        f"{figure(found.p90_ms)}{doubt}" if found and found.p90_ms is not None else "",
        row.speed_words,
        f"{100 * top1.share:.1f} ({100 * top1.low:.1f}-{100 * top1.high:.1f})" if top1 else "",
        row.accuracy_words if row.paired or row.is_reference or row.result is None else "not comparable",
    )


def _escaped(text: str) -> str:
    """Text as it is: no markup, no cell of its own, no HTML."""
    for mark in "\\`*_[]|#<>":
        text = text.replace(mark, f"&#{ord(mark)};" if mark in "<>" else f"\\{mark}")
    return text.replace("\n", " ")
