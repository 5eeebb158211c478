"""What a latency run leaves: raw samples, telemetry beside them, and a verdict on whether they count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.integers import integers

MIN_SAMPLES = 128  # fewer tell nothing about a p90
P99_SAMPLES = 1_000
MAX_DRIFT = 0.05
MAX_SPREAD = 0.05
MAX_CLOCK_CHANGE = 0.10  # turbo clocks wander by some per cent all the time
MAX_OTHER_LOAD = 0.25  # cores that other processes kept busy


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """One reading of the device. None: the device does not tell."""

    time_ns: int
    temperature_c: float | None = None
    clock_mhz: float | None = None
    governor: str | None = None
    throttled: bool | None = None
    throttle: tuple[str, ...] = ()  # by what, where the device tells
    headroom_c: float | None = None  # to the temperature at which the system slows down
    other_load: float | None = None  # cores kept busy by anything but the agent since the last reading
    free_memory_bytes: int | None = None
    battery_percent: float | None = None
    battery_temperature_c: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cooling:
    """A pause before *block* on a hot device. *enough*: it was cool again, and not only the time over."""

    block: int
    seconds: float
    from_c: float | None
    to_c: float | None
    enough: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a tool tells of a block of *count* inferences that it does not give one by one. Times in ns."""

    block: int
    start_ns: int
    count: int
    min_ns: float
    p5_ns: float
    median_ns: float
    p95_ns: float
    max_ns: float
    mean_ns: float
    std_ns: float


@dataclass(frozen=True, kw_only=True)  # without slots: what is derived from the samples is kept
class Measurement:
    """Raw samples: per inference its duration, its start (ns on the device's monotonic clock), its block.

    Where the device's tool does not give them there are *summaries* instead, one a block, and no samples.
    *compile_ms*: what Core ML takes before the load.
    """

    samples_ns: Sequence[int]
    starts_ns: Sequence[int]
    blocks: Sequence[int]
    load_ms: float
    first_ms: float
    peak_memory_bytes: int | None = None
    summaries: tuple[Summary, ...] = ()
    compile_ms: float | None = None

    @property
    def count(self) -> int:
        """How many inferences were timed."""
        return len(self.samples_ns) or sum(one.count for one in self.summaries)

    @property
    def begin_ns(self) -> int:
        """When the first inference began."""
        return self.starts_ns[0] if self.starts_ns else min(one.start_ns for one in self.summaries)

    def __post_init__(self) -> None:
        for name in ("samples_ns", "starts_ns", "blocks"):
            object.__setattr__(self, name, integers(getattr(self, name)))
        if self.samples_ns and self.summaries:
            raise ValueError("samples and summaries exclude each other")
        if not len(self.samples_ns) == len(self.starts_ns) == len(self.blocks):
            raise ValueError("samples_ns, starts_ns and blocks differ in length")
        if np.min(self.samples_ns, initial=1) < 1:
            raise ValueError("a sample is not positive")

    @cached_property
    def _medians_ms(self) -> dict[int, float]:
        if self.summaries:
            return {one.block: one.median_ns / 1e6 for one in self.summaries}
        samples_ms, blocks = np.asarray(self.samples_ns, np.float64) / 1e6, np.asarray(self.blocks)
        return {int(block): float(np.median(samples_ms[blocks == block])) for block in np.unique(blocks)}

    @cached_property
    def _latency(self) -> "Latency":
        return _statistics(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Statistics of a measurement. *p99_ms* is None below 1,000 samples.

    *summarized*: no single inference is known. Then p50 is the median of the blocks' medians, and p90 and p99 are
    None; drift is that of the blocks, and a drift inside of one does not show.
    """

    count: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    min_ms: float
    block_medians_ms: tuple[float, ...]
    drift: float  # median of the second half of the samples over that of the first, minus 1
    spread: float  # how far a block median lies from the median of all, at most, as a share of it
    summarized: bool = False


def block_medians_ms(measurement: Measurement) -> Mapping[int, float]:
    """The median of each block."""
    return measurement._medians_ms


def latency(measurement: Measurement) -> Latency:
    """The statistics of at least one inference. Raises ValueError for none."""
    return measurement._latency


def _statistics(measurement: Measurement) -> Latency:
    medians = tuple(block_medians_ms(measurement).values())
    if measurement.summaries:
        p50 = float(np.median(medians))
        return Latency(
            count=measurement.count,
            p50_ms=p50,
            p90_ms=None,
            p99_ms=None,
            min_ms=min(one.min_ns for one in measurement.summaries) / 1e6,
            block_medians_ms=medians,
            drift=_drift(np.asarray(medians)),
            spread=max(abs(median - p50) for median in medians) / p50,
            summarized=True,
        )
    samples_ms = np.asarray(measurement.samples_ns, np.float64) / 1e6
    if not len(samples_ms):
        raise ValueError("no samples")
    p50, p90, p99 = (float(value) for value in np.percentile(samples_ms, (50, 90, 99)))
    return Latency(
        count=len(samples_ms),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99 if len(samples_ms) >= P99_SAMPLES else None,
        min_ms=float(samples_ms.min()),
        block_medians_ms=medians,
        drift=_drift(samples_ms),
        spread=max(abs(median - p50) for median in medians) / p50,
    )


def _drift(samples_ms: npt.NDArray[np.float64]) -> float:
    half = len(samples_ms) // 2
    if not half:
        return 0.0
    return float(np.median(samples_ms[half:]) / np.median(samples_ms[:half]) - 1)


def _heat(telemetry: Sequence[Telemetry]) -> list[str]:
    """Whether the device slowed down of heat or want of power, or was about to."""
    reasons = []
    known = [point for point in telemetry if point.throttled is not None]
    if slowed := [point for point in known if point.throttled]:
        names = dict.fromkeys(name for point in slowed for name in point.throttle)
        by = f" ({', '.join(names)})" if names else ""
        reasons.append(f"the device throttled{by} in {len(slowed)} of {len(known)} readings")
    limited = [point for point in telemetry if point.headroom_c is not None]
    if at_limit := [point for point in limited if point.headroom_c is not None and point.headroom_c <= 0]:
        hottest = max((point.temperature_c for point in at_limit if point.temperature_c is not None), default=None)
        degrees = "" if hottest is None else f" of {hottest:.0f} C"
        reasons.append(f"a temperature{degrees} at its limit in {len(at_limit)} of {len(limited)} readings")
    return reasons


@dataclass(frozen=True, kw_only=True, slots=True)
class Validity:
    """Whether a latency counts; each reason is one clause with its number."""

    reasons: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        return not self.reasons


def judge(
    measurement: Measurement, telemetry: Sequence[Telemetry], notes: Sequence[str] = (), *, sustained: bool = False
) -> Validity:
    """The verdict on a latency run. *notes* are reasons that the device itself gave (emulated, fell back).

    Of a *sustained* run heat is what is asked for, so what it does to latency and clock is no reason.
    """
    reasons = list(notes)
    if measurement.count < MIN_SAMPLES:
        reasons.append(f"too few samples: {measurement.count} of {MIN_SAMPLES}")
    if measurement.count:
        found = latency(measurement)
        if abs(found.drift) > MAX_DRIFT and not sustained:
            reasons.append(f"drift of {100 * found.drift:+.0f} % between the halves of the run")
        if found.spread > MAX_SPREAD:
            reasons.append(f"a block's median lies {100 * found.spread:.0f} % off")
    if not sustained:
        reasons += _heat(telemetry)
    if len(governors := _told(telemetry, "governor")) > 1:
        reasons.append(f"the clock governor changed: {', '.join(sorted(governors))}")
    clocks = [point.clock_mhz for point in telemetry if point.clock_mhz is not None]
    if clocks and (change := _change(clocks)) > MAX_CLOCK_CHANGE and not sustained:
        reasons.append(f"the clock changed by {100 * change:.0f} % ({min(clocks):.0f} to {max(clocks):.0f} MHz)")
    loads = [point.other_load for point in telemetry if point.other_load is not None]
    if loads and (mean := sum(loads) / len(loads)) > MAX_OTHER_LOAD:
        reasons.append(f"other programs kept {mean:.1f} cores busy")
    return Validity(reasons=tuple(reasons))


def _change(values: Sequence[float]) -> float:
    """How far the lower tenth lies below the upper one, as a share: a single odd reading does not count."""
    low, high = np.percentile(values, (10, 90))
    return float(1 - low / high) if high > 0 else 0.0


def _told(telemetry: Sequence[Telemetry], field: str) -> set[Any]:
    return {value for point in telemetry if (value := getattr(point, field)) is not None}
