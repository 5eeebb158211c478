"""Whole numbers in bulk: the samples and predictions of a result, of which a comparison holds millions."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy.typing as npt


class Integers(Sequence[int]):
    """A sequence of whole numbers, 8 bytes each where a tuple needs up to 40. It equals any sequence of the same.

    NumPy takes it without a copy. Raises OverflowError for a number beyond 64 bits.
    """

    __slots__ = ("_held",)

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._held = array("q", values)

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> "Integers": ...
    def __getitem__(self, index: int | slice) -> "int | Integers":
        return Integers(self._held[index]) if isinstance(index, slice) else self._held[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Integers):
            return self._held == other._held
        return isinstance(other, tuple | list) and self._held.tolist() == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self._held))

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self._held[:6]))
        return f"Integers({shown}{f', ... {len(self)} in all' if len(self) > 6 else ''})"

    def __array__(self, dtype: "npt.DTypeLike | None" = None, copy: bool | None = None) -> "npt.NDArray[Any]":
        import numpy as np

        found: npt.NDArray[np.int64] = np.frombuffer(self._held, np.int64)
        found.flags.writeable = False
        return found if dtype in (None, np.int64) and not copy else found.astype(dtype)

    def tolist(self) -> list[int]:
        return self._held.tolist()


def integers(values: Iterable[int]) -> Integers:
    """*values* themselves where they are of the class already."""
    return values if isinstance(values, Integers) else Integers(values)
