"""The report page: one HTML file that opens from disk, asks the network for nothing and reads without scripts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from string import Template
from typing import Any

from edgekit import __version__, files, units
from edgekit.artifact import Artifact
from edgekit.report import classes, contents, costs, flips, series
from edgekit.report.advice import Advice
from edgekit.report.cells import prose, table, typeset
from edgekit.report.charts import chart_data
from edgekit.report.compare import Comparison, Group
from edgekit.report.contents import Contents
from edgekit.report.flips import Flips
from edgekit.report.repairs import sections
from edgekit.report.rows import Row, partly_delegated
from edgekit.report.sustained import facts as run_facts
from edgekit.report.sustained import title as run_title
from edgekit.report.timeline import chart
from edgekit.report.words import cooling_words, count, sentence
from edgekit.report.zeros import zeros
from edgekit.result import Result

FOLDED = 8  # lines of a value from which on it is folded away
DETAILED = 40  # files of a device at most are shown with all that is folded away
LIBRARIES = (("d3", "d3.min.js"), ("plot", "plot.umd.min.js"))  # Plot finds d3 as a global: order matters


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """What a page shows besides the comparison: *contents* of the model files that are at hand, *flips*."""

    contents: Contents = field(default_factory=dict)
    flips: Flips | None = None


NO_EXTRAS = Extras()


def write_page(
    comparison: Comparison, path: Path, *, title: str, provenance: Mapping[str, str], extras: Extras = NO_EXTRAS
) -> None:
    """Write the page to *path*. *provenance* is shown below all else; a value of several lines as a listing."""
    files.write_text(path, page(comparison, title=title, provenance=provenance, extras=extras))


def page(comparison: Comparison, *, title: str, provenance: Mapping[str, str], extras: Extras = NO_EXTRAS) -> str:
    """The page's HTML. All that users can name (labels, files, devices, *title*) is escaped."""
    libraries = [(_asset(f"vendor/{script}"), _asset(f"vendor/{name}.LICENSE")) for name, script in LIBRARIES]
    names = [row.name for group in comparison.groups for row in group.rows]
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        css=_asset("page.css"),
        verdict=prose(comparison.verdict, names),
        verdict_kind="chosen" if any(group.choice.pick for group in comparison.groups) else "open",
        groups="\n".join(
            [
                *(_group(group, i, len(comparison.groups), extras) for i, group in enumerate(comparison.groups)),
                *map(_sustained, comparison.sustained),
            ]
        ),
        repairs=sections([row.artifact for group in comparison.groups for row in group.rows]),
        provenance=_provenance(comparison, provenance),
        version=escape(__version__),
        data=_script_json(chart_data(comparison, DETAILED)),
        libraries="\n".join(f"<!--\n{text.strip()}\n-->\n<script>{source}</script>" for source, text in libraries),
        js=_asset("page.js"),
    )


def _asset(name: str) -> str:
    return package_files("edgekit.report").joinpath(name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """JSON that cannot end its script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _group(group: Group, index: int, groups: int, extras: Extras) -> str:
    names = [row.name for row in group.rows]
    parts = [f'<section class="group" data-group="{index}" aria-labelledby="group-{index}">']
    parts.append(f'<h2 id="group-{index}">{escape(group.title)}</h2>')
    if facts := _device_facts(group):
        parts.append(f'<p class="facts">{escape(" · ".join(facts))}</p>')
    if groups > 1:
        parts.append(f'<p class="conclusion">{prose(group.choice.conclusion, names)}</p>')
    if group.choice.left_out:
        parts.append(f'<p class="note">{prose(group.choice.left_out, names)}</p>')
    if any(row.latency and row.top1 for row in group.rows):
        parts.append(_scatter(group))
    long = " long" if len(group.rows) > DETAILED else ""
    parts.append(f'<h3>Variants</h3>\n<div class="scroll{long}" tabindex="0" role="region" aria-label="Variants">')
    parts.append(f"{table(group)}</div>")
    if group.advice:
        parts.append(_advice(group, names))
    parts.append(_doubts(group))
    rows = group.chief(DETAILED)
    if len(rows) < len(group.rows):
        parts.append(_only(rows, group))
    if any(row.latency for row in rows):
        parts.append(_strips())
    parts.append(series.section(rows))
    parts.append(costs.section(rows))
    parts.append(contents.section(rows, extras.contents))
    parts.append(classes.section(group, rows))
    if extras.flips:
        parts.append(flips.section(group, rows, extras.flips))
    parts.append("</section>")
    return "\n".join(part for part in parts if part)


def _sustained(run: Result) -> str:
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(typeset(text))}</dd>" for name, text in run_facts(run))
    return (
        f'<section class="sustained"><h2>{escape(run_title(run))}</h2>\n<figure>{chart(run)}<figcaption>'
        "Red: the device throttled. Such a run is not ranked: what heat does to it is what was asked for."
        f"</figcaption></figure>\n<dl>{told}</dl></section>"
    )


def _device_facts(group: Group) -> list[str]:
    device = group.device
    if device is None:
        return []
    runtimes = sorted(
        {f"{r.result.settings.runtime} {r.result.settings.runtime_version}" for r in group.rows if r.result}
    )
    kind = "fake device: the figures are made up" if device.fake else "emulated" if device.emulated else ""
    memory = units.size(device.memory_bytes) + " memory" if device.memory_bytes else ""
    return [
        fact
        for fact in (
            kind,
            device.soc if device.soc != device.cpu else "",
            device.cpu,
            device.architecture,
            count(device.cores, "core"),
            *(cluster.words for cluster in device.clusters),
            " ".join(device.features),
            memory,
            device.os,
            *runtimes,
        )
        if fact
    ]


def _scatter(group: Group) -> str:
    missing = [row.name for row in group.rows if not (row.latency and row.top1)]
    hollow = " Hollow: not ranked." if any(row.left_out and row.latency for row in group.rows) else ""
    line = " The line joins the files that no other beats in both, the Pareto set." if group.choice.pareto else ""
    absent = f" Not drawn: {prose(', '.join(missing), missing)}." if missing else ""
    return (
        '<h3>Latency against accuracy</h3>\n<figure><div class="chart scatter"></div><figcaption>'
        "Up and to the left is better. Vertical bars: 95 % interval of the accuracy; horizontal bars: range of "
        f"the block medians.{line}"
        f"{hollow}{absent} Files are compared on the same images, so bars may overlap and a difference still be "
        "real: the table has the test."
        "</figcaption></figure>"
    )


def _strips() -> str:
    return (
        '<h3>Distribution of the latency</h3>\n<figure><div class="chart strips"></div><figcaption>Each thin tick '
        "is one of 200 quantiles of a run's inferences, the tall tick its median. The fastest and slowest "
        "0.25 % lie outside.</figcaption></figure>"
    )


def _only(rows: Sequence[Row], group: Group) -> str:
    return (
        f'<p class="facts">What follows is of {len(rows)} of the {len(group.rows)} files: the pick, the '
        "reference, the Pareto set and the fastest of the others. Compare fewer results to see it of each.</p>"
    )


def _advice(group: Group, names: Sequence[str]) -> str:
    chief = group.advice_on(group.chief(DETAILED))
    others = [one for one in group.advice if one not in chief]
    more = f"<details><summary>The other {len(others)} files</summary>{_advised(others, names)}</details>"
    return f"<h3>Does it pay?</h3>\n{_advised(chief, names)}" + (more if others else "")


def _advised(advice: Sequence[Advice], names: Sequence[str]) -> str:
    lines = (
        f'<li class="{one.verdict.replace(" ", "-")}">'
        f"{prose(one.text, [one.name, *(name for name in names if name in one.text)])}</li>"
        for one in advice
    )
    return f'<ul class="advice">{"".join(lines)}</ul>'


def _doubts(group: Group) -> str:
    items = []
    for row in group.rows:
        partly = partly_delegated(row)
        doubts = [*row.reasons, *([partly] if partly else ()), *([f"broken: {row.broken}"] if row.broken else ())]
        if sparse := zeros(row, group.rows):
            doubts.append(sparse.words)
        if row.top1 and row.incomparable:
            doubts.append(row.incomparable)
        if row.result and row.result.cooling:
            doubts.append(cooling_words(row.result.cooling))
        doubts += (note for note in row.artifact.notes if note not in doubts)
        items += [f'<li><b class="name">{escape(row.name)}</b> {escape(sentence(doubt))}</li>' for doubt in doubts]
    return f'<h3>Doubts and notes</h3>\n<ul class="doubts">{"".join(items)}</ul>' if items else ""


def _provenance(comparison: Comparison, provenance: Mapping[str, str]) -> str:
    rows = [row for group in comparison.groups for row in group.rows]
    facts = [(key, value) for key, value in provenance.items() if value]
    if datasets := sorted(
        {f"{p.dataset}, {count(len(p.truth), 'image')}" for r in rows if r.result and (p := r.result.predictions)}
    ):
        facts.append(("Accuracy measured on", "; ".join(datasets)))
    if inputs := sorted({row.result.settings.input for row in rows if row.result}):
        facts.append(("Latency measured on", "; ".join(inputs)))
    if created := sorted({row.result.created for row in rows if row.result}):
        facts.append(("Measured", created[0] if len(created) == 1 else f"{created[0]} to {created[-1]}"))
    artifacts = [row.artifact for row in rows] + [run.artifact for run in comparison.sustained]
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{_value(value)}</dd>" for key, value in facts)
    return f"<dl>{listed}</dl>\n{_artifacts(artifacts)}"


def _value(value: str) -> str:
    if (lines := value.strip().count("\n")) > FOLDED:
        return f"<details><summary>{lines + 1} lines</summary><pre>{escape(value)}</pre></details>"
    return f"<pre>{escape(value)}</pre>" if "\n" in value else escape(value)


def _artifacts(artifacts: Sequence[Artifact]) -> str:
    once = {artifact.sha256: artifact for artifact in artifacts}
    rows = []
    for artifact in once.values():
        tools = ", ".join(f"{tool} {version}" for tool, version in artifact.tools.items())
        made = artifact.calibration
        calibration = (
            f"calibrated on {count(made.count, 'image')}, seed {made.seed}, {made.method}" if made else ""
        )
        cells = (artifact.file, artifact.sha256, "; ".join(part for part in (tools, calibration) if part))
        file, sha256, how = (escape(cell) for cell in cells)
        rows.append(f'<tr><th scope="row">{file}</th><td class="hash">{sha256}</td><td>{how}</td></tr>')
    return (
        '<h3>Files</h3>\n<div class="scroll" tabindex="0" role="region" aria-label="Files"><table class="files">'
        '<thead><tr><th scope="col">File</th><th scope="col">SHA-256</th><th scope="col">Made with</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
