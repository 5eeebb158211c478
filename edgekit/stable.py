"""Repeats a visit until its latencies are stable: valid, and the medians near those of the try before."""

from pathlib import Path

from edgekit import files
from edgekit.device import Progress
from edgekit.measure import latency
from edgekit.visit import Plan, Say, Visited, visit, write

TRIES = 5
NEAR = 0.05


def until_stable(plan: Plan, folder: Path, progress: Progress, say: Say) -> tuple[Visited, str]:
    """The last try, and nothing; or, where none is stable, the last valid one (else the last) and why.

    Every try is written to ``folder/NUMBER``. One that fails or is interrupted ends it.
    """
    files.remove(folder)
    before: dict[str, float] = {}
    kept, kept_number = None, 0
    for number in range(1, TRIES + 1):

        def tell(text: str, share: float, number: int = number) -> None:
            progress(f"try {number}: {text}", share)

        found = visit(plan, tell)
        write(found, folder / str(number))
        if found.stop or found.failed:
            return found, ""
        medians = {name: latency(one.measurement).p50_ms for name, one in found.whole.items()}
        changes = {name: median / before[name] - 1 for name, median in medians.items() if name in before}
        doubts = {name: one.validity.reasons for name, one in found.whole.items() if not one.validity.valid}
        said = "; ".join(
            _figure(name, median, changes.get(name), doubts.get(name, ())) for name, median in medians.items()
        )
        say(f"try {number} of at most {TRIES}: {said}")
        apart = {name: change for name, change in changes.items() if abs(change) > NEAR}
        if not doubts:
            kept, kept_number = found, number
            if changes and not apart:
                return found, ""
        before = medians
    text = f"not stable after {TRIES} tries: {_why(doubts, apart)}"
    if kept is None:
        return found, f"{text}; no try was valid, and the last one is kept"
    return kept, f"{text}; kept is try {kept_number}, the last valid one"


def _figure(name: str, median_ms: float, change: float | None, reasons: tuple[str, ...]) -> str:
    text = f"{name} {median_ms:.3g} ms" + ("" if change is None else f" ({100 * change:+.1f} %)")
    return f"{text}, invalid: {', '.join(reasons)}" if reasons else text


def _why(doubts: dict[str, tuple[str, ...]], apart: dict[str, float]) -> str:
    """Of the last try."""
    if doubts:
        name, reasons = next(iter(doubts.items()))
        return f"the last was invalid ({name}: {reasons[0]})"
    name, change = max(apart.items(), key=lambda item: abs(item[1]))
    return f"in the last {name} lay {100 * change:+.1f} % from the try before"
