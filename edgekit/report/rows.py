"""A row of the comparison: one file on one device, its figures and how they stand to the reference's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.artifact import Artifact
from edgekit.measure import Latency, latency
from edgekit.report.accuracy import Accuracy, accuracy
from edgekit.report.against import Against
from edgekit.report.speed import Speed
from edgekit.report.words import accuracy_words, speed_words
from edgekit.result import Result
from edgekit.stats import Paired

NOT_MEASURED = "not measured here"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """``result`` is None for a file that was not measured here. Ratios are the file's value over the reference's.

    ``left_out`` says why the row is not ranked; ``incomparable`` why its accuracy has no difference.
    """

    name: str
    artifact: Artifact
    result: Result | None = None
    is_reference: bool = False
    latency: Latency | None = None
    reasons: tuple[str, ...] = ()
    top1: Accuracy | None = None
    top5: Accuracy | None = None
    size_ratio: float | None = None
    speed: Speed | None = None
    paired: Paired | None = None
    incomparable: str = ""
    broken: str = ""
    speed_words: str = ""
    accuracy_words: str = ""
    left_out: str = ""

    @property
    def valid(self) -> bool:
        return self.result is not None and not self.reasons

    @property
    def p50_ms(self) -> float:
        assert self.latency is not None, f"{self.name} has no latency"
        return self.latency.p50_ms


def build(
    name: str,
    artifact: Artifact,
    result: Result | None,
    reference: Result | None,
    against: Against,
    *,
    allow_invalid: bool,
) -> Row:
    """The row of one file. *against*: its differences to the reference."""
    broken = artifact.parity.broken(artifact.precision) if artifact.parity else ""
    size_ratio = artifact.size_bytes / reference.artifact.size_bytes if reference else None
    if result is None:
        return Row(
            name=name,
            artifact=artifact,
            size_ratio=size_ratio,
            broken=broken,
            speed_words=NOT_MEASURED,
            accuracy_words=NOT_MEASURED,
            left_out=NOT_MEASURED,
        )
    is_reference = result is reference
    figures = latency(result.measurement) if result.measurement.count else None
    top1 = accuracy(result.predictions, 1)
    pair, incomparable, found = against.paired, against.incomparable, against.speed
    return Row(
        name=name,
        artifact=artifact,
        result=result,
        is_reference=is_reference,
        latency=figures,
        reasons=result.notes if result.device.reference else result.validity.reasons,
        top1=top1,
        top5=accuracy(result.predictions, 5),
        size_ratio=size_ratio,
        speed=found,
        paired=pair,
        incomparable="" if is_reference and top1 else incomparable,
        broken=broken,
        speed_words=_speed_claim(result, reference, found, allow_invalid=allow_invalid),
        accuracy_words="the reference" if is_reference else accuracy_words(pair) if pair else incomparable,
    )


def partly_delegated(row: Row) -> str:
    """What the delegate left to slower code, or nothing: a property of the file, so no reason against the run."""
    found = row.result.delegation if row.result else None
    if row.result is None or found is None or found.whole or not found.taken:
        return ""
    return found.words(row.result.settings.delegate)


def _speed_claim(result: Result, reference: Result | None, found: Speed | None, *, allow_invalid: bool) -> str:
    if result is reference:
        return "the reference"
    if result.device.reference:
        return "no claim: not timed"
    if found is None or reference is None:
        return "nothing to compare with"
    if result.device.fake or result.device.emulated:
        return f"no claim: {'a fake' if result.device.fake else 'an emulated'} device"
    blocked = ""
    if not result.validity.valid:
        blocked = "the run is invalid"
    elif not reference.validity.valid:
        blocked = "the reference's run is invalid"
    if blocked and not allow_invalid:
        return f"no claim: {blocked}"
    return f"{speed_words(found)}; {blocked}" if blocked else speed_words(found)


def names(results: Sequence[Result]) -> list[str]:
    """A name for each result, all different: the file's, and where two share it what they differ in."""
    found = [result.name for result in results]
    marks: tuple[Callable[[Result], str], ...] = (
        lambda r: r.settings.runtime,
        lambda r: r.settings.delegate,
        lambda r: r.settings.runtime_version,
        lambda r: r.artifact.target,
        lambda r: r.artifact.precision,
        lambda r: r.artifact.sha256[:7],
        lambda r: r.device.address,
        lambda r: r.created,
    )
    for mark in marks:
        for name in {n for n in found if found.count(n) > 1}:
            same = [i for i, n in enumerate(found) if n == name]
            values = [mark(results[i]) for i in same]
            if len(set(values)) > 1:
                for i, value in zip(same, values, strict=True):
                    found[i] = f"{name} {value}".rstrip()
    for name in {n for n in found if found.count(n) > 1}:
        for number, i in enumerate([i for i, n in enumerate(found) if n == name], start=1):
            found[i] = f"{name} #{number}"
    return found
