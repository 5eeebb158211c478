"""The runs over time: of each file its latency block by block, clock and temperature beside it, folded away."""

from collections.abc import Sequence
from html import escape

from edgekit.report.cells import typeset
from edgekit.report.rows import Row
from edgekit.report.sustained import readings
from edgekit.report.timeline import chart
from edgekit.report.words import count, figure
from edgekit.result import Result

BESIDE = (("temperature_c", "°C"), ("clock_mhz", "MHz"))


def section(rows: Sequence[Row]) -> str:
    """The page's charts, one for each file that was timed."""
    parts = [_details(row, row.result) for row in rows if row.result and row.latency]
    return "<h3>Latency over time</h3>\n" + "\n".join(parts) if parts else ""


def _details(row: Row, result: Result) -> str:
    drawn = chart(result)
    note = "The gaps are the turns of the other files." if len(set(result.measurement.blocks)) > 1 else ""
    untold = [word for name, word in (("temperature_c", "temperature"), ("clock_mhz", "clock"))
              if not readings(result, name)]  # fmt: skip
    told = f" The device does not tell its {' and '.join(untold)}." if untold else ""
    red = " Red: the device throttled." if any(value for _, value in readings(result, "throttled")) else ""
    return (
        f'<details class="series"><summary><b class="name">{escape(row.name)}</b>: {escape(_summary(row, result))}'
        f'</summary>\n<figure><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(row.name)} over time">{drawn}</div>'
        f"<figcaption>{note}{red}{told}</figcaption></figure></details>"
    )


def _summary(row: Row, result: Result) -> str:
    """``5 blocks, medians 0.391 to 0.394 ms, 51 to 55 °C, 1800 MHz``."""
    assert row.latency is not None
    medians = row.latency.block_medians_ms
    parts = [count(len(medians), "block"), f"medians {_range([float(figure(one)) for one in medians])} ms"]
    for name, unit in BESIDE:
        if values := [value for _, value in readings(result, name)]:
            parts.append(f"{_range([round(value) for value in values])} {unit}")
    return typeset(", ".join(parts))


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
