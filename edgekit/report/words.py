"""Claims in words. They follow the test: a difference is stated only where p, for so many tests, is below 0.05."""

from collections.abc import Sequence

from edgekit.measure import Cooling
from edgekit.report.speed import LEVEL, Speed
from edgekit.stats import Paired, images_needed, paired_reach

MARGIN = 0.005  # a difference in top-1 that matters: half a point


def p_text(p_value: float) -> str:
    """``p = 0.62``, ``p = 0.003``, ``p < 0.001``."""
    if p_value < 0.001:
        return "p < 0.001"
    if p_value >= 0.1:
        return f"p = {p_value:.2g}"
    # Never a rounding across the level: 0.0496 must not read 0.05.
    return f"p = {p_value:.3f}" if p_value < 0.0495 or p_value >= LEVEL else f"p = {p_value:.4f}"


def accuracy_words(found: Paired) -> str:
    """``loses 1.4 pt (p = 0.003)``, ``gains ...``, or what can be said where the test finds nothing.

    That is ``the same answers``, ``no real difference (p = 0.62)`` where half a point would have shown, and
    ``cannot tell with 500 images: 4,000 would (p = 0.62)`` where it would not.
    """
    if not found.flips:
        return "the same answers"
    if found.p < LEVEL:
        verb = "loses" if found.difference < 0 else "gains"
        return f"{verb} {100 * abs(found.difference):.1f} pt ({p_text(found.p)})"
    if needed := images_that_would_tell(found):
        return f"cannot tell with {found.count:,} images: {needed:,} would ({p_text(found.p)})"
    return f"no real difference ({p_text(found.p)})"


def images_that_would_tell(found: Paired) -> int:
    """About how many images would show a difference of half a point; 0 where these are enough, or never differ."""
    if not found.flips or paired_reach(found) <= MARGIN:
        return 0
    needed = images_needed(found, MARGIN)
    unit = int(10 ** max(0, len(str(needed)) - 2))
    return -(-needed // unit) * unit  # two digits, rounded up


def speed_words(found: Speed) -> str:
    """``1.8x faster (1.7-1.9)``, ``4.1 % slower (3.0-5.2)``, ``no real difference in speed``."""
    if found.low is None or found.high is None:
        return f"{_times(found.ratio, None, None)}, not tested: {found.untested}"
    if not found.real:
        return "no real difference in speed"
    return _times(found.ratio, found.low, found.high)


def size_words(ratio: float) -> str:
    """``3.7x smaller``; *ratio* is the file's size over the reference's. Small differences are not told."""
    if 0.95 < ratio < 1.05:
        return "the same size"
    return f"{1 / ratio:.1f}x smaller" if ratio < 1 else f"{ratio:.1f}x larger"


def _times(ratio: float, low: float | None, high: float | None) -> str:
    word = "faster" if ratio < 1 else "slower"
    factor = 1 / ratio if ratio < 1 else ratio
    ends = sorted((1 / low, 1 / high) if ratio < 1 else (low, high)) if low and high else None
    if factor >= 1.1:
        # As many digits as tell the two ends apart.
        width = ends[1] - ends[0] if ends else 1.0
        digits = 1 if width >= 0.1 or factor >= 10 else 2 if width >= 0.005 else 3
        text = f"{factor:.{digits}f}x {word}"
        return f"{text} ({ends[0]:.{digits}f}-{ends[1]:.{digits}f})" if ends else text
    text = f"{100 * (factor - 1):.1f} % {word}"
    return f"{text} ({100 * (ends[0] - 1):.1f}-{100 * (ends[1] - 1):.1f})" if ends else text


def figure(value: float) -> str:
    """Three significant digits, zeros kept so that a column lines up: ``0.400``, ``12.0``, ``123``."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def count(number: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def cooling_words(pauses: Sequence[Cooling]) -> str:
    """``cooled down for 35 s in 2 pauses``."""
    text = f"cooled down for {sum(pause.seconds for pause in pauses):.0f} s in {count(len(pauses), 'pause')}"
    hot = sum(not pause.enough for pause in pauses)
    return f"{text}, {hot} of them too short" if hot else text


def sentence(text: str) -> str:
    """*text* with a capital first letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
