"""The gate of a build: whether new results are worse than a baseline's, by more than they may and really so.

A check fails where the change is beyond its limit *and* the test says that there is a change at all: of latency
Student's t on the logs of the block medians (pairs of blocks within one visit, Welch's form between two), of top-1
the exact McNemar test on the same images. All tests of one gate share a level of 5 % (Holm). The size of a file
needs no test. Two visits differ by more than their blocks do (memory layout, temperature): the limit covers that.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import UsageError, unknown
from edgekit.measure import block_medians_ms
from edgekit.report.accuracy import compare_accuracy
from edgekit.report.speed import LEVEL, MIN_BLOCKS, speed
from edgekit.report.words import count, p_text
from edgekit.result import Result
from edgekit.stats import Paired, holm, images_needed, welch_interval

METRICS = {"latency": "'latency>5%'", "size": "'size>5%'", "top1": "'top1<-0.5' (points)"}
TIMELESS = ("size", "top1")  # known without a clock
LIMIT = re.compile(r"\s*(\w+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*(%|pt)?\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """How much worse a metric may be: percent for latency and size, points of top-1."""

    metric: str
    amount: float

    @property
    def text(self) -> str:
        return f"{self.amount:+g} {'pt' if self.metric == 'top1' else '%'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """*change* in the limit's unit; *low*, *high* its 95 % interval and *p_value* (of all checks) where tested."""

    name: str
    metric: str
    limit: float
    change: float
    failed: bool
    text: str
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    name: str
    limit: Limit
    change: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    pair: Paired | None = None

    @property
    def beyond(self) -> bool:
        worse = -1 if self.limit.metric == "top1" else 1
        return worse * self.change > worse * self.limit.amount


def parse(text: str) -> Limit:
    """The limit in ``latency>5%``, ``size>5%`` or ``top1<-0.5``. Raises UsageError."""
    found = LIMIT.fullmatch(text)
    if not found:
        raise UsageError(f"--fail-if {text!r}: write it as {' or '.join(METRICS.values())}")
    metric, sign, number, unit = found.groups()
    if metric not in METRICS:
        raise unknown("metric of --fail-if", metric, METRICS)
    amount = float(number)
    sound = (
        sign == "<" and amount <= 0 and unit in (None, "pt")
        if metric == "top1"
        else sign == ">" and amount >= 0 and unit in (None, "%")
    )
    if not sound:
        raise UsageError(f"--fail-if {text!r}: for {metric} write it as {METRICS[metric]}")
    return Limit(metric=metric, amount=amount)


def gate(
    baseline: Sequence[Result], new: Sequence[Result], limits: Sequence[Limit], *, allow_invalid: bool = False
) -> tuple[Check, ...]:
    """A check for each limit and each new result. Raises UsageError, naming what cannot be compared and why."""
    faults: list[str] = []
    changes: list[_Change] = []
    for result in new:
        old = _counterpart(baseline, result, faults)
        for limit in limits if old else ():
            assert old is not None
            if limit.metric not in TIMELESS and old.device.reference and result.device.reference:
                continue  # edgekit's execution of Core ML files: accuracy, and no latency that could change
            found = _change(old, result, limit, allow_invalid=allow_invalid)
            if isinstance(found, str):
                faults.append(f"{_name(result)}: {found}")
            else:
                changes.append(found)
    if not new:
        faults.append("there are no new results")
    judged = {change.limit for change in changes}
    if not faults and (idle := [limit for limit in limits if limit not in judged]):
        faults.append(
            f"no result tells {idle[0].metric}: edgekit's execution of Core ML files gives accuracy only"
        )
    if faults:
        lines = "\n  ".join(dict.fromkeys(faults))
        raise UsageError(f"the results cannot be compared with the baseline:\n  {lines}")
    tested = [change.p_value for change in changes if change.p_value is not None]
    corrected = iter(holm(tested))
    return tuple(_check(one, next(corrected) if one.p_value is not None else None) for one in changes)


def _name(result: Result) -> str:
    return f"{result.name}, {count(result.settings.threads, 'thread')}"


def _counterpart(baseline: Sequence[Result], new: Result, faults: list[str]) -> Result | None:
    """The newest result of the baseline for the same file name under the same conditions."""
    named = [old for old in baseline if old.name == new.name]
    if not named:
        known = ", ".join(sorted({old.name for old in baseline})) or "nothing"
        faults.append(f"{_name(new)}: it is not in the baseline, which holds {known}")
        return None
    differences = [_differences(old, new) for old in named]
    same = [old for old, found in zip(named, differences, strict=True) if not found]
    if not same:
        fewest = min(len(found) for found in differences)
        faults += [f"{_name(new)}: {'; '.join(found)}" for found in differences if len(found) == fewest]
        return None
    return max(same, key=lambda old: old.created)


def _differences(old: Result, new: Result) -> list[str]:
    """In what conditions the two were measured that make their figures incomparable."""
    a, b = old.settings, new.settings
    first, second = (f"{one.device.model} ({one.device.fingerprint})" for one in (old, new))
    pairs = (
        ("device", first, second),
        ("threads", str(a.threads), str(b.threads)),
        ("runtime", f"{a.runtime} {a.runtime_version}", f"{b.runtime} {b.runtime_version}"),
        ("delegate", a.delegate, b.delegate),
        ("input", a.input, b.input),
    )
    return [f"other {what}: {new_one} and not {old_one}" for what, old_one, new_one in pairs if old_one != new_one]


def _change(old: Result, new: Result, limit: Limit, *, allow_invalid: bool) -> _Change | str:
    """How the metric changed, or why that cannot be told."""
    name = _name(new)
    if limit.metric == "size":
        ratio = new.artifact.size_bytes / old.artifact.size_bytes
        return _Change(name=name, limit=limit, change=100 * (ratio - 1))
    if limit.metric == "top1":
        pair, why = compare_accuracy(old, new)
        if pair is None:
            return why.replace("the reference", "the baseline")
        return _Change(name=name, limit=limit, change=100 * pair.difference, p_value=pair.p_value, pair=pair)
    for which, one in (("baseline", old), ("new run", new)):
        if one.device.fake or one.device.emulated:
            kind = "fake" if one.device.fake else "emulated"
            return f"the {which} is of a device that is {kind}: its latency says nothing"
        if not one.validity.valid and not allow_invalid:
            return f"the {which} is invalid ({one.validity.reasons[0]}): measure again, or --allow-invalid"
    found = _ratio(old, new)
    if isinstance(found, str):
        return found
    middle, low, high, p_value = found
    as_percent = [100 * (value - 1) for value in (middle, low, high)]
    return _Change(
        name=name, limit=limit, change=as_percent[0], low=as_percent[1], high=as_percent[2], p_value=p_value
    )


def _ratio(old: Result, new: Result) -> tuple[float, float, float, float] | str:
    """The new latency over the old one, its interval and the p-value of a ratio of 1."""
    if old.visit and old.visit == new.visit:
        found = speed(old, new)
        if found.low is not None and found.high is not None and found.p_value is not None:
            return found.ratio, found.low, found.high, found.p_value
    first, second = (np.log(list(block_medians_ms(one.measurement).values())) for one in (old, new))
    if min(len(first), len(second)) < MIN_BLOCKS:
        return f"{min(len(first), len(second))} blocks were measured, and {MIN_BLOCKS} are needed"
    difference, low, high, p_value = welch_interval(first.tolist(), second.tolist())
    return float(np.exp(difference)), float(np.exp(low)), float(np.exp(high)), p_value


def _check(one: _Change, p_value: float | None) -> Check:
    metric, unit = one.limit.metric, "pt" if one.limit.metric == "top1" else "%"
    text = f"{'top-1' if metric == 'top1' else metric} {one.change:+.1f} {unit}"
    tests = [] if one.low is None or one.high is None else [f"{one.low:.1f} to {one.high:.1f}"]
    tests += [] if p_value is None else [p_text(p_value)]
    text += f" ({', '.join(tests)})" if tests else ""
    real = p_value is None or p_value < LEVEL
    if one.beyond and not real:
        text += f": beyond the limit of {one.limit.text}, but it may be chance"
        if one.pair:
            needed = max(images_needed(one.pair, abs(one.pair.difference)), one.pair.count + 1)
            text += f"; {one.pair.count} images cannot tell, about {needed:,} would"
    else:
        text += f", limit {one.limit.text}"
    return Check(
        name=one.name,
        metric=metric,
        limit=one.limit.amount,
        change=one.change,
        failed=one.beyond and real,
        text=text,
        low=one.low,
        high=one.high,
        p_value=p_value,
    )
