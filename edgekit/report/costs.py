"""What the operators of each file cost: lines for the terminal, a folded table for the page."""

from collections.abc import Sequence
from html import escape

from edgekit.operators import Profile
from edgekit.report.cells import plain_table
from edgekit.report.compare import Comparison
from edgekit.report.rows import Row
from edgekit.report.words import count

DEAREST, KINDS = 10, 3
LAYER = 44  # characters of a layer's name in the terminal


def as_lines(comparison: Comparison) -> list[str]:
    """The dearest operators of each file, for a terminal of 100 columns."""
    lines = []
    for group in comparison.groups:
        for row, profile in _profiled(group.rows):
            lines += [*_lines(row, profile, f" ({group.title})" if len(comparison.groups) > 1 else ""), ""]
    return lines


def _profiled(rows: Sequence[Row]) -> list[tuple[Row, Profile]]:
    found = [(row, row.result.profile) for row in rows if row.result and row.result.profile]
    return [(row, profile) for row, profile in found if profile.costs or profile.absent]


def _lines(row: Row, profile: Profile, where: str) -> list[str]:
    if profile.absent:
        return [f"{row.name}{where}: no profile: {profile.absent}"]
    dearest = profile.dearest(DEAREST)
    share = profile.share(sum(cost.mean_us for cost in dearest))
    head = f"{row.name}{where}: {len(dearest)} of {count(len(profile.costs), 'operator')} take {100 * share:.0f} %"
    lines = [f"{head} of {profile.sum_us / 1e3:.3g} ms ({_how(profile)})"]
    kinds = [f"{kind} x{number} {100 * profile.share(us):.0f} %" for kind, number, us in profile.kinds()[:KINDS]]
    lines.append(f"  by kind: {', '.join(kinds)}")
    for cost in dearest:
        name = cost.layer if len(cost.layer) <= LAYER else "..." + cost.layer[3 - LAYER :]
        by = "" if cost.delegated or not _split(profile) else ", not delegated"
        lines.append(
            f"{100 * profile.share(cost.mean_us):5.1f} %  {cost.mean_us:8.1f} us  {name or '-':<{LAYER}}  "
            f"{cost.operator}{by}".rstrip()
        )
    return lines


def _how(profile: Profile) -> str:
    return f"profiled in {count(profile.runs, 'run')} apart from the timed ones"


def _split(profile: Profile) -> bool:
    """Whether a delegate took a part of the operators, so that it is worth saying which."""
    return len({cost.delegated for cost in profile.costs}) > 1


def section(rows: Sequence[Row]) -> str:
    """The page's tables, one a file, each folded away."""
    found = _profiled(rows)
    if not found:
        return ""
    return "<h3>Operators</h3>\n" + "\n".join(_details(row, profile) for row, profile in found)


def _details(row: Row, profile: Profile) -> str:
    name = f'<b class="name">{escape(row.name)}</b>'
    if profile.absent:
        return f'<p class="note">{name}: no profile: {escape(profile.absent)}</p>'
    kind, number, us = profile.kinds()[0]
    most = f"{escape(kind)}{f' (×{number})' if number > 1 else ''} takes {100 * profile.share(us):.0f} %"
    split = _split(profile)
    kinds = [(kind, str(number), f"{us:.1f}", _percent(profile, us)) for kind, number, us in profile.kinds()]
    costs = [
        (
            cost.layer or "–",
            cost.operator,
            f"{cost.mean_us:.1f}",
            _percent(profile, cost.mean_us),
            *(["delegate" if cost.delegated else "builtin"] if split else []),
        )
        for cost in profile.dearest()
    ]
    how = (
        f"Each operator's time is the mean of the middle half of {count(profile.runs, 'run')} under the runtime's "
        f"profiler, apart from the timed inferences. Together {profile.sum_us / 1e3:.3g} ms; the whole inference "
        f"took {profile.total_us / 1e3:.3g} ms there."
    )
    heads = ("Layer", "Operator", "µs", "Share", *(["By"] if split else []))
    of_kinds = plain_table(f"{row.name}: kinds", ("Kind", "Count", "µs", "Share"), kinds)
    return (
        f'<details class="operators"><summary>{name}: {count(len(costs), "operator")}, {most}</summary>\n'
        f'<p class="facts">{how}</p>\n{of_kinds}\n'
        f"{plain_table(f'{row.name}: layers', heads, costs)}</details>"
    )


def _percent(profile: Profile, us: float) -> str:
    return f"{100 * profile.share(us):.1f} %"
