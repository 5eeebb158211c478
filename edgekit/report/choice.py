"""The choice among rows: what may be ranked, the Pareto set, the pick and its reason."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit import units
from edgekit.report.budget import Budget, most_accurate
from edgekit.report.rows import Row
from edgekit.report.speed import LEVEL, speed
from edgekit.report.words import count, figure, images_that_would_tell, p_text, sentence, size_words, speed_words

NO_BUDGET = Budget()
NEAR = 0.05  # medians that lie closer may count as equally fast


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """``pick`` is empty where no choice can be made; ``reason`` then says why and what to do."""

    pareto: tuple[str, ...]
    pick: str
    reason: str
    left_out: str

    @property
    def conclusion(self) -> str:
        return sentence(f"Ship {self.pick}: {self.reason}" if self.pick else self.reason)


def mark_left_out(row: Row, *, allow_invalid: bool) -> Row:
    """The row with the reason, if any, for which it is not ranked. A fake or emulated device never is."""
    if row.result is None:
        return row
    if row.result.device.fake or row.result.device.emulated:
        why = "measured on a fake device" if row.result.device.fake else "measured on an emulated device"
    elif row.result.device.reference:
        why = "executed by edgekit, not timed"
    elif row.latency is None:
        why = "no samples"
    elif row.reasons and not allow_invalid:
        why = "; ".join(row.reasons)
    elif row.broken:
        why = f"broken: {row.broken}"
    else:
        why = row.incomparable
    return replace(row, left_out=why)


def choose(rows: Sequence[Row], *, allow_invalid: bool, budget: Budget = NO_BUDGET) -> Choice:
    """The choice among the rows of one device and thread count."""
    ranked = [row for row in rows if not row.left_out]
    # A run that is shown but not ranked is named with its reason; a file that did not run is no run.
    out = [row for row in rows if row.left_out and row.result]
    pick, reason = _pick(rows, ranked, budget, allow_invalid=allow_invalid)
    return Choice(
        pareto=pareto(ranked),
        pick=pick,
        reason=reason,
        left_out=_left_out_line(out, len(out) + len(ranked)),
    )


def pareto(ranked: Sequence[Row]) -> tuple[str, ...]:
    """The names, fastest first, of the rows that no other row beats in both latency and top-1."""
    best: list[str] = []
    top = -1
    for row in sorted((r for r in ranked if r.top1), key=lambda r: (r.p50_ms, -_correct(r))):
        if _correct(row) > top:
            best.append(row.name)
            top = _correct(row)
    return tuple(best)


def _correct(row: Row) -> int:
    return row.top1.correct if row.top1 else -1


def _left_out_line(out: Sequence[Row], runs: int) -> str:
    if not out:
        return ""
    if len({row.left_out for row in out}) == 1 and len(out) > 1:
        return f"Left out of the ranking: {len(out)} of {count(runs, 'run')}: {out[0].left_out}."
    each = ", ".join(f"{row.name} ({row.left_out})" for row in out)
    return f"Left out of the ranking: {len(out)} of {count(runs, 'run')}: {each}."


def loses(row: Row) -> bool:
    """Whether the test says that the row is less accurate than the reference."""
    return row.paired is not None and row.paired.difference < 0 and row.paired.p < LEVEL


def _pick(rows: Sequence[Row], ranked: Sequence[Row], budget: Budget, *, allow_invalid: bool) -> tuple[str, str]:
    reference = next((row for row in rows if row.is_reference), None)
    candidates = [row for row in ranked if budget.text or not loses(row)]
    doubtful = reference is not None and bool(reference.reasons) and not allow_invalid
    if not candidates or reference is None or doubtful:
        return "", _no_choice(rows, ranked, reference, allow_invalid=allow_invalid)
    able = candidates
    candidates = [row for row in able if budget.admits(row)]
    if not candidates:
        return "", f"no ranked file meets the budget ({budget.text}): {budget.nearest(able)}"
    if budget.room_only:
        candidates = most_accurate(candidates)
    fastest = min(candidates, key=lambda row: row.p50_ms)
    chosen = min((row for row in candidates if _ties(fastest, row)), key=lambda row: row.artifact.size_bytes)
    caution = _caution(rows, chosen)
    if budget.text:
        what = "the most accurate" if budget.room_only else "the fastest"
        figures = f"{figure(chosen.p50_ms)} ms, {units.size(chosen.artifact.size_bytes)}"
        accuracy = "the reference itself" if chosen.is_reference else _accuracy_reason(chosen)
        return chosen.name, f"it is {what} with {budget.text}: {figures}, {accuracy}{caution}"
    if chosen.is_reference:
        if len(ranked) == 1:
            return chosen.name, f"it is the only run that can be ranked{caution}"
        return (
            chosen.name,
            f"no other ranked file is faster, or as fast and smaller, without losing accuracy{caution}",
        )
    clauses = [_speed_reason(chosen)]
    if chosen.size_ratio is not None:
        clauses.append(size_words(chosen.size_ratio))
    return chosen.name, f"against {reference.name}, {', '.join(clauses)}, {_accuracy_reason(chosen)}{caution}"


def _caution(rows: Sequence[Row], chosen: Row) -> str:
    """Names what looked faster than the pick in a run that does not count."""
    faster = [
        row.name
        for row in rows
        if row.left_out and row.reasons and row.latency and row.p50_ms < chosen.p50_ms * (1 - NEAR)
    ]
    return f". In invalid runs {', '.join(faster)} looked faster: measure again to be sure" if faster else ""


def _ties(fastest: Row, other: Row) -> bool:
    """Whether *other* is as fast as *fastest* for all that the test can tell; the smaller file then wins.

    A weak test must not call 30 % nothing, so the medians have to be near too.
    """
    if other is fastest:
        return True
    assert fastest.result is not None
    assert other.result is not None
    near = other.p50_ms <= fastest.p50_ms * (1 + NEAR)
    return near and not speed(fastest.result, other.result).real


def _speed_reason(chosen: Row) -> str:
    return (
        speed_words(chosen.speed) if chosen.speed else f"the fastest of the ranked at {figure(chosen.p50_ms)} ms"
    )


def _accuracy_reason(chosen: Row) -> str:
    pair = chosen.paired
    assert pair is not None, "a ranked row is comparable"
    points = f"{100 * pair.difference:+.1f}" if pair.difference else "0"
    shift = f"{points} pt on {count(pair.count, 'image')}, {p_text(pair.p)}"
    if pair.p < LEVEL:
        return f"{'gains' if pair.difference > 0 else 'loses'} accuracy ({shift})"
    if needed := images_that_would_tell(pair):
        return f"no loss shown ({shift}; {needed:,} images would tell half a point)"
    return f"no real difference in accuracy ({shift})"


def _no_choice(rows: Sequence[Row], ranked: Sequence[Row], reference: Row | None, *, allow_invalid: bool) -> str:
    runs = [row for row in rows if row.result]
    if not runs:
        return "no choice can be made: no file was measured here"
    if any(row.result and (row.result.device.fake or row.result.device.emulated) for row in runs):
        return "no choice can be made: a fake or emulated device is never ranked; measure on a real one"
    if all(row.result and row.result.device.reference for row in runs):
        return "no choice can be made: edgekit's execution gives accuracy and no latency; measure on a Mac"
    if not allow_invalid and all(row.reasons for row in runs):
        what = "the only run is invalid" if len(runs) == 1 else f"none of the {len(runs)} runs is valid"
        return (
            f"no choice can be made: {what}. Close other programs and run again, or rank the runs as they are "
            "with --allow-invalid"
        )
    if reference is not None and reference.reasons and not allow_invalid:
        return (
            f"no choice can be made: the run of the reference {reference.name} is invalid, so nothing can be said "
            "to be faster. Close other programs and run again, or rank the runs as they are with --allow-invalid"
        )
    if reference is None:
        return "no choice can be made: the reference was not measured on this device with these threads"
    timed = [row for row in runs if row.latency and (row.valid or allow_invalid) and not row.broken]
    if reference.top1 is None and timed:
        fastest = min(timed, key=lambda row: row.p50_ms)
        return (
            f"no choice can be made: no accuracy was measured for the reference {reference.name}. The fastest is "
            f"{fastest.name} at {figure(fastest.p50_ms)} ms; give --data to measure accuracy too"
        )
    if ranked:
        return (
            f"no choice can be made: every ranked file loses accuracy against {reference.name}, itself not ranked"
        )
    return "no choice can be made: no run can be ranked"
