"""The comparison as tables for a terminal: 100 columns, colours on a terminal only."""

from typing import IO, TYPE_CHECKING

from edgekit import units
from edgekit.report.compare import Comparison, Group
from edgekit.report.costs import as_lines
from edgekit.report.rows import Row, partly_delegated
from edgekit.report.sustained import facts, title
from edgekit.report.words import cooling_words, figure, sentence
from edgekit.report.zeros import zeros

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 100
ADVISED = 20  # files at most are told to pay or not
STYLES = {"pays": "green", "does not pay": "red", "cannot tell": "dim"}

LEGEND = """\
>  the pick      *  no other ranked file is both faster and more accurate      =  the reference
?  the latency is doubtful: its run is invalid, for the reasons above
p50, p90: ms that half and nine tenths of the inferences stay below
speed, top-1 change: against the reference, claimed only at p < 0.05;  (low-high): 95 % intervals
sqnr: signal to noise of the outputs against the float model's, in dB; higher is closer"""


def make_console(stream: IO[str]) -> "Console":
    """A console that is as wide as the terminal, and 100 columns and plain when *stream* is a pipe or file."""
    from rich.console import Console

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, markup=False, emoji=False, width=WIDTH, color_system=None)
    return console


def render(comparison: Comparison, console: "Console") -> None:
    """Write one table a device and thread count, the verdict lines under each, and the legend."""
    from rich.text import Text

    for group in comparison.groups:
        console.print(_table(group))
        for line in _notes(group):
            console.print(Text(line, style="dim"))
        for advice in group.advice_on(group.chief(ADVISED)):
            console.print(Text(advice.text, style=STYLES.get(advice.verdict, "")))
        if (more := len(group.rows) - ADVISED) > 0:
            console.print(Text(f"Whether the other {more} files pay: --html, --json", style="dim"))
        style = "bold green" if group.choice.pick else "bold yellow"
        console.print(Text(group.choice.conclusion, style=style))
        console.print()
    for run in comparison.sustained:
        console.print(Text(f"{title(run)}, {run.measurement.count:,} inferences", style="bold"))
        for name, text in facts(run):
            console.print(Text(f"  {name:12} {text}", style="dim" if name == "doubt" else ""))
        console.print()
    if comparison.groups:
        console.print(Text(LEGEND, style="dim"))


def render_costs(comparison: Comparison, console: "Console") -> None:
    """Write the dearest operators of each file that was profiled."""
    from rich.text import Text

    for line in as_lines(comparison):
        console.print(Text(line), soft_wrap=True)


def as_text(comparison: Comparison) -> str:
    """What `render` writes to a pipe."""
    from io import StringIO

    stream = StringIO()
    render(comparison, make_console(stream))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _table(group: Group) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(group.title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("")
    table.add_column("variant", overflow="fold", min_width=12)
    for name in ("size", "p50", "p90"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("speed", width=18)
    table.add_column("top-1 %", justify="right", no_wrap=True)
    table.add_column("top-1 change", width=18)
    table.add_column("sqnr", justify="right", no_wrap=True)
    for row in group.rows:
        style = "green" if row.name == group.choice.pick else "dim" if row.left_out else ""
        table.add_row(*(Text(cell) for cell in _cells(row, group)), style=style)
    return table


def _cells(row: Row, group: Group) -> tuple[str, ...]:
    name, choice, found = row.name, group.choice, row.latency
    marks = (">", name == choice.pick), ("*", name in choice.pareto), ("=", row.is_reference)
    latency = ("-", "-")
    if found:
        doubt = "?" if row.reasons else ""
        latency = (
            f"{figure(found.p50_ms)}{doubt}",
            "-" if found.p90_ms is None else f"{figure(found.p90_ms)}{doubt}",
        )
    top1 = "-"
    if row.top1:
        top1 = f"{100 * row.top1.share:.1f}\n({100 * row.top1.low:.1f}-{100 * row.top1.high:.1f})"
    return (
        "".join(mark for mark, holds in marks if holds),
        name,
        units.size(row.artifact.size_bytes),
        *latency,
        row.speed_words.replace(" (", "\n("),
        top1,
        _difference(row).replace(" (", "\n("),
        "-" if row.artifact.parity is None else f"{row.artifact.parity.sqnr_db:.0f}",
    )


def _difference(row: Row) -> str:
    if row.result is None:
        return "-"
    return "not comparable" if row.paired is None and not row.is_reference else row.accuracy_words


def _notes(group: Group) -> list[str]:
    """Reasons behind marks and blanks, one a line; then who is left out of the ranking."""
    notes = []
    for row in group.rows:
        said = row.left_out if row.result else ""  # stands in the line of those left out
        doubts = [("?", reason) for reason in row.reasons]
        if row.latency and row.latency.summarized:
            blocks = len(row.latency.block_medians_ms)
            doubts.append(("~", f"p50 is the median of {blocks} block medians: the device gives no single times"))
        if partly := partly_delegated(row):
            doubts.append(("~", partly))
        if sparse := zeros(row, group.rows):
            doubts.append(("~", sparse.words))
        if row.result and (pauses := row.result.cooling):
            doubts.append(("~", cooling_words(pauses)))
        if row.top1 and row.incomparable:
            doubts.append(("!", row.incomparable))
        if row.broken:
            doubts.append(("!", f"broken: {row.broken}"))
        notes += [f"{mark} {row.name}: {doubt}" for mark, doubt in doubts if doubt not in said]
    if group.choice.left_out:
        notes.append(sentence(group.choice.left_out))
    return notes
