"""Quantities as text. Units live in names everywhere else."""


def size(size_bytes: int) -> str:
    """A file size in decimal units, as file managers show it: ``3.4 MB``."""
    value, units = float(size_bytes), ["B", "kB", "MB", "GB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def milliseconds(time_ms: float) -> str:
    """A duration with three significant digits: ``0.312 ms``."""
    return f"{time_ms:.3g} ms" if time_ms < 1000 else f"{time_ms:.0f} ms"


def percent(share: float) -> str:
    """A share of 1 with one decimal: ``97.5 %``."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, always signed: ``-0.6``."""
    return f"{100 * difference:+.1f}"
