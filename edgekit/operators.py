"""What a runtime did with a file's operators: which of them its delegate took, and what each of them cost."""

from dataclasses import dataclass, field


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
