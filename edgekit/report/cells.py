"""The variants of one group as an HTML table, whole without JavaScript: columns, cells, escaped text."""

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from edgekit import units
from edgekit.report.accuracy import Accuracy
from edgekit.report.compare import Group
from edgekit.report.rows import NOT_MEASURED, Row
from edgekit.report.words import figure, p_text, size_words

NONE = "–"


class Cell(NamedTuple):
    """*main* and, smaller below it, *detail* are plain text; *order* is what the column sorts by."""

    main: str
    detail: str = ""
    order: float | str | None = None


class Column(NamedTuple):
    title: str
    hint: str
    cell: Callable[[Row], Cell]


def typeset(text: str) -> str:
    """Figures with the signs of print: times, en dash, minus. For text that holds no names."""
    text = re.sub(r"(?<=\d)x(?=\s)", "×", text)
    text = re.sub(r"(?<=\d)-(?=\d)", "–", text)
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def prose(text: str, names: Sequence[str]) -> str:
    """*text* as HTML: escaped, its figures typeset, and each of *names* in it marked up and left as it is."""
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    parts = re.split(f"({pattern})", text) if names else [text]  # odd places hold the names
    return "".join(
        f'<b class="name">{escape(part)}</b>' if i % 2 else _plain(part) for i, part in enumerate(parts)
    )


def _plain(text: str) -> str:
    return re.sub(r"--[\w-]+", r"<code>\g<0></code>", escape(typeset(text)))


def _size(row: Row) -> Cell:
    detail = "" if row.is_reference or row.size_ratio is None else typeset(size_words(row.size_ratio))
    return Cell(units.size(row.artifact.size_bytes), detail, row.artifact.size_bytes)


def _latency(row: Row) -> Cell:
    found = row.latency
    if found is None:
        return Cell(NOT_MEASURED if row.result is None else "no samples")
    quantiles = (("p90", found.p90_ms), ("p99", found.p99_ms))
    tail = ", ".join(f"{name} {figure(value)}" for name, value in quantiles if value is not None)
    return Cell(f"{figure(found.p50_ms)} ms{' ?' if row.reasons else ''}", tail, found.p50_ms)


def _speed(row: Row) -> Cell:
    if row.result is None:
        return Cell(NONE)
    order = 1.0 if row.is_reference else row.speed.ratio if row.speed else None
    main, _, interval = typeset(row.speed_words).partition(" (")
    return Cell(main, interval.replace(")", ""), order)


def _share(found: Accuracy | None) -> Cell:
    if found is None:
        return Cell(NONE)
    return Cell(units.percent(found.share), f"{100 * found.low:.1f}–{100 * found.high:.1f}", found.share)


def _change(row: Row) -> Cell:
    pair = row.paired
    if row.result is None:
        return Cell(NONE)
    if pair is None:
        return Cell("the reference", "", 0.0) if row.is_reference else Cell("not comparable")
    shift = f"{units.points(pair.difference)} pt" if pair.difference else "0 pt"
    return Cell(row.accuracy_words.partition(" (")[0], typeset(f"{shift}, {p_text(pair.p)}"), pair.difference)


def _flips(row: Row) -> Cell:
    if row.paired is None:
        return Cell(NONE)
    return Cell(units.percent(row.paired.flip_rate), f"of {row.paired.count}", row.paired.flip_rate)


def _parity(row: Row) -> Cell:
    found = row.artifact.parity
    if found is None:
        return Cell(NONE)
    agreement = "broken" if row.broken else f"{100 * found.top1_agreement:.4g} % agree"
    return Cell(f"{found.sqnr_db:.0f} dB", agreement, found.sqnr_db)


def _load(row: Row) -> Cell:
    if row.result is None:
        return Cell(NONE)
    time_ms = row.result.measurement.load_ms
    first = f"first inference {units.milliseconds(row.result.measurement.first_ms)}"
    return Cell(units.milliseconds(time_ms), first, time_ms)


def _memory(row: Row) -> Cell:
    used = row.result.measurement.peak_memory_bytes if row.result else None
    return Cell(NONE) if used is None else Cell(units.size(used), "", used)


COLUMNS = (
    Column("Size", "the file", _size),
    Column("Latency", "median of one inference", _latency),
    Column("Speed", "against the reference, 95 % interval", _speed),
    Column("Top-1", "95 % Wilson interval", lambda row: _share(row.top1)),
    Column("Top-1 change", "against the reference, exact McNemar test", _change),
    Column("Flips", "images with another answer than the reference's", _flips),
    Column("Top-5", "95 % Wilson interval", lambda row: _share(row.top5)),
    Column("Parity", "SQNR and top-1 agreement with the float model", _parity),
    Column("Load", "time to load the file, and of the first inference", _load),
    Column("Memory", "peak of the process", _memory),
)


def table(group: Group) -> str:
    """The HTML table of *group*; the first column holds the names, badges and runtimes."""
    used = [c for c in COLUMNS if any(c.cell(row).main != NONE for row in group.rows)]
    heads = "".join(f'<th scope="col" title="{escape(c.hint)}">{escape(c.title)}</th>' for c in used)
    rows = "\n".join(_row(row, group, used) for row in group.rows)
    return (
        f'<table class="variants"><caption class="hidden">Variants on {escape(group.title)}</caption>\n'
        f'<thead><tr><th scope="col">Variant</th>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>'
    )


def _row(row: Row, group: Group, columns: Sequence[Column]) -> str:
    badges = (
        ("pick", row.name == group.choice.pick),
        ("reference", row.is_reference),
        ("Pareto", row.name in group.choice.pareto and row.name != group.choice.pick),
        ("invalid", bool(row.reasons)),
        ("broken", bool(row.broken)),
    )
    tags = "".join(f'<span class="badge {name.lower()}">{name}</span>' for name, holds in badges if holds)
    runtime = _runtime(row)
    cells = "".join(_td(column.cell(row)) for column in columns)
    kind = "pick" if row.name == group.choice.pick else "out" if row.left_out else ""
    return (
        f'<tr class="{kind}"><th scope="row" data-order="{escape(row.name)}">'
        f'<span class="name">{escape(row.name)}</span> {tags}'
        f"<small>{escape(runtime)}</small></th>{cells}</tr>"
    )


def _runtime(row: Row) -> str:
    if row.result is None:
        return f"{row.artifact.target}, {row.artifact.precision}"
    settings = row.result.settings
    return " ".join(part for part in (settings.runtime, settings.runtime_version, settings.delegate) if part)


def _td(cell: Cell) -> str:
    order = "" if cell.order is None else f' data-order="{escape(str(cell.order))}"'
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    return f"<td{order}>{escape(cell.main)}{detail}</td>"


def plain_table(label: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of text as HTML, for what is folded away; *label* names it to who cannot see it."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="costs">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
