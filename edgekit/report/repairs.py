"""What was tried to keep an int8 file's accuracy, as rows for a terminal and as a section of the page."""

from collections.abc import Sequence
from html import escape

from edgekit import units
from edgekit.artifact import Artifact, Repair
from edgekit.report.cells import typeset
from edgekit.report.words import count, p_text

HEADS = ("tried", "float layers", "top-1", "drop", "gain", "test", "size", "seconds", "kept")
NAMED = 12  # layers in float that the page names


def conclusion(found: Repair) -> str:
    """One line: what was reached, and whether that is within the budget."""
    verdict = "within" if found.met else "NOT within"
    layers = len(found.float_layers)
    kept = f" with {count(layers, 'layer')} in float" if layers else ""
    return (
        f"{100 * (found.float_top1 - found.drop / 100):.2f} % top-1{kept}, {found.drop:.2f} points below float "
        f"({p_text(found.p_value)}): {verdict} the budget of {found.max_drop:g} ({found.images} held-out images)"
    )


def rows(found: Repair) -> list[tuple[str, ...]]:
    """The float file, then each file that was tried; cells as in `HEADS`. *drop* and *gain* are in points."""
    blank = ("",) * (len(HEADS) - 3)
    listed: list[tuple[str, ...]] = [("float", "", f"{100 * found.float_top1:.2f} %", *blank)]
    for number, step in enumerate(found.steps):
        listed.append(
            (
                step.tried,
                str(len(step.float_layers)),
                f"{100 * step.top1:.2f} %",
                f"{step.drop:.2f}",
                f"{step.gain:+.2f}" if number else "",
                "" if step.p_value is None else p_text(step.p_value),
                units.size(step.size_bytes),
                "" if step.seconds is None else f"{step.seconds:.1f}",
                "yes" if step.kept else "no",
            )
        )
    return listed


def sections(artifacts: Sequence[Artifact]) -> str:
    """The page's sections of all that were repaired, each once; empty where none was."""
    once = {artifact.sha256: artifact for artifact in artifacts if artifact.repair}
    return "\n".join(
        _section(one.name, one.repair, place) for place, one in enumerate(once.values()) if one.repair
    )


def _section(name: str, found: Repair, place: int) -> str:
    heads = "".join(f'<th scope="col">{escape(head.capitalize())}</th>' for head in HEADS)
    body = "".join(_row(cells) for cells in rows(found))
    title = f"How {name} keeps its accuracy" if found.met else f"What was tried to keep the accuracy of {name}"
    return (
        f'<section class="repair" aria-labelledby="repair-{place}">\n'
        f'<h2 id="repair-{place}">{escape(title)}</h2>\n'
        f'<p class="conclusion">{escape(typeset(conclusion(found)))}.</p>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="Steps"><table class="steps">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>\n"
        f'<p class="note">Drop: points of top-1 below the float file, by the file that ships, on the same '
        f"{found.images} images; test: the exact McNemar test of that. Gain: against the best file before. A step "
        f"that gains is kept for the next ones.{_layers(found)}</p>\n</section>"
    )


def _row(cells: tuple[str, ...]) -> str:
    first, *others = cells
    rest = "".join(f"<td>{escape(typeset(cell))}</td>" for cell in others)
    return f'<tr><th scope="row">{escape(first)}</th>{rest}</tr>'


def _layers(found: Repair) -> str:
    names = found.float_layers
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    weighed = f", chosen for the error that they add and the {found.weighed_by} that they cost"
    listed = ", ".join(f'<b class="name">{escape(name)}</b>' for name in names[:NAMED])
    return f" In float{weighed if found.weighed_by else ''}: {listed}{more}."
