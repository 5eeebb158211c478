"""The comparison of results: one group a device and thread count, never merged or ranked across them."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.artifact import Artifact
from edgekit.errors import ResultError, unknown
from edgekit.report.advice import Advice, advise
from edgekit.report.against import Against, against
from edgekit.report.budget import Budget
from edgekit.report.choice import NO_BUDGET, Choice, choose, mark_left_out
from edgekit.report.rows import Row, build, names
from edgekit.report.words import count, sentence
from edgekit.result import DeviceInfo, Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What may be compared: rows of one device and thread count. *device* is None where nothing was measured."""

    device: DeviceInfo | None
    threads: int | None
    reference: str  # a row's name; empty where the reference was not measured here
    rows: tuple[Row, ...]
    choice: Choice
    advice: tuple[Advice, ...] = ()

    @property
    def title(self) -> str:
        if self.device is None or self.threads is None:
            return "Not measured"
        return f"{self.device.model}, {count(self.threads, 'thread')}"

    def chief(self, limit: int) -> tuple[Row, ...]:
        """At most *limit* rows, in order: pick, reference and Pareto set before the others, the fastest first."""
        if len(self.rows) <= limit:
            return self.rows
        first = {self.choice.pick, self.reference, *self.choice.pareto}

        def rank(row: Row) -> tuple[bool, bool, float]:
            return row.name not in first, bool(row.left_out), row.p50_ms if row.latency else float("inf")

        chosen = {row.name for row in sorted(self.rows, key=rank)[:limit]}
        return tuple(row for row in self.rows if row.name in chosen)

    def advice_on(self, rows: Sequence[Row]) -> tuple[Advice, ...]:
        names = {row.name for row in rows}
        return tuple(one for one in self.advice if one.name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """*sustained*: runs of minutes without a pause, which are told and never ranked."""

    groups: tuple[Group, ...]
    allow_invalid: bool = False
    sustained: tuple[Result, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence or two over all groups."""
        if not self.groups:
            return "No choice can be made: sustained runs are not ranked."
        if len(self.groups) == 1:
            return self.groups[0].choice.conclusion
        picks = [group.choice.pick for group in self.groups]
        if len(set(picks)) == 1 and picks[0]:
            return f"Ship {picks[0]}: it is the pick in all {len(picks)} settings."
        each = "; ".join(f"{g.title}: {g.choice.pick or 'no choice'}" for g in self.groups)
        return sentence(f"the pick depends on the device and the threads: {each}")


def compare(
    results: Sequence[Result],
    artifacts: Sequence[Artifact] = (),
    *,
    reference: str = "",
    allow_invalid: bool = False,
    budget: Budget = NO_BUDGET,
) -> Comparison:
    """The comparison of *results*, and of *artifacts* that have none (they stand as not measured).

    *reference* names the file that the others are compared with; empty for the fp32 TFLite file, else any
    fp32 file, else the first. *budget*: what the pick has to meet; without one it is the fastest that loses no
    accuracy. Raises UsageError for an unknown one and ResultError for nothing to compare.
    """
    if not results and not artifacts:
        raise ResultError("nothing to compare: no results and no model files were given")
    sustained = tuple(one for one in results if one.settings.sustained_min and one.measurement.samples_ns)
    results = [one for one in results if not one.settings.sustained_min]
    if reference and not any(_is_named(result, reference) for result in results):
        raise unknown("reference", reference, {result.name for result in results} or {"(no results)"})
    settings: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        settings.setdefault((result.device.fingerprint, result.settings.threads), []).append(result)
    groups = [_group(found, artifacts, reference, allow_invalid, budget) for found in settings.values()]
    if not groups and artifacts:
        groups = [_group([], artifacts, "", allow_invalid, budget)]
    return Comparison(groups=tuple(groups), allow_invalid=allow_invalid, sustained=sustained)


def _group(
    results: list[Result], artifacts: Sequence[Artifact], reference: str, allow_invalid: bool, budget: Budget
) -> Group:
    base = _reference(results, reference)
    rows = [
        build(name, result.artifact, result, base, stands, allow_invalid=allow_invalid)
        for name, result, stands in zip(names(results), results, against(base, results), strict=True)
    ]
    measured = {result.artifact.sha256 for result in results}
    taken = {row.name for row in rows}
    for artifact in artifacts:
        if artifact.sha256 not in measured:
            # Files of another run may have the names of these.
            name = artifact.name if artifact.name not in taken else f"{artifact.name} {artifact.sha256[:7]}"
            taken.add(name)
            rows.append(build(name, artifact, None, base, Against(), allow_invalid=allow_invalid))
    rows = [mark_left_out(row, allow_invalid=allow_invalid) for row in rows]
    return Group(
        device=results[0].device if results else None,
        threads=results[0].settings.threads if results else None,
        reference=next((row.name for row in rows if row.is_reference), ""),
        rows=tuple(rows),
        choice=choose(rows, allow_invalid=allow_invalid, budget=budget),
        advice=advise(rows),
    )


def _is_named(result: Result, name: str) -> bool:
    """A recipe names its variants ``target-precision``, whatever their files are called."""
    return name in (result.name, f"{result.artifact.target}-{result.artifact.precision}")


def _reference(results: Sequence[Result], name: str) -> Result | None:
    if name:
        exact = [result for result in results if result.name == name]
        return next(iter(exact or [result for result in results if _is_named(result, name)]), None)
    fp32 = [result for result in results if result.artifact.precision == "fp32"]
    tflite = [result for result in fp32 if result.artifact.target == "tflite"]
    return next(iter([*tflite, *fp32, *results]), None)
