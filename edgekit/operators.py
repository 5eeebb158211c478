"""What a runtime did with a file's operators: which of them its delegate took, and what each of them cost."""

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, kw_only=True, slots=True)
class Delegation:
    """How many of a file's operators the delegate took, as the runtime tells on the device.

    ``left``: the kinds that it did not take, with their counts; empty where the runtime names none.
    """

    total: int
    taken: int
    left: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.taken <= self.total:
            raise ValueError(f"{self.taken} of {self.total} operators were taken")

    @property
    def whole(self) -> bool:
        return self.taken == self.total

    def words(self, delegate: str) -> str:
        """``xnnpack took 93 of 112 operators; left: HARD_SWISH 19``."""
        left = ", ".join(f"{kind} {count}" for kind, count in sorted(self.left.items(), key=lambda item: -item[1]))
        return f"{delegate} took {self.taken} of {self.total} operators" + (f"; left: {left}" if left else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """An operator of a Core ML file: the *unit* it is planned for, CPU, GPU or NE; its *share* of the cost."""

    name: str
    kind: str
    unit: str
    share: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One operator that ran. ``operator`` as the runtime calls it; ``layer`` is empty where it cannot be told."""

    operator: str
    layer: str
    delegated: bool
    mean_us: float  # of the middle half of the runs


@dataclass(frozen=True, kw_only=True)  # without slots: the sum is kept
class Profile:
    """What each operator costs, in the order in which they run, apart from the timed inferences.

    ``total_us`` is the whole inference under the profiler. ``absent`` says why there is no profile.
    """

    runs: int = 0
    total_us: float = 0.0
    costs: tuple[Cost, ...] = ()
    absent: str = ""

    @cached_property
    def sum_us(self) -> float:
        return sum(cost.mean_us for cost in self.costs)

    def share(self, us: float) -> float:
        """Of the operators' time."""
        return us / self.sum_us if self.sum_us else 0.0

    def dearest(self, count: int | None = None) -> tuple[Cost, ...]:
        """The operators that cost most, the dearest first."""
        return tuple(sorted(self.costs, key=lambda cost: -cost.mean_us)[:count])

    def kinds(self) -> tuple[tuple[str, int, float], ...]:
        """Each kind of operator, how many there are, and their microseconds together; dearest first."""
        found: dict[str, list[float]] = {}
        for cost in self.costs:
            found.setdefault(cost.operator, []).append(cost.mean_us)
        rows = [(kind, len(times), sum(times)) for kind, times in found.items()]
        return tuple(sorted(rows, key=lambda row: -row[2]))
