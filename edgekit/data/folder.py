"""A user's folder of class folders as a dataset: unreadable images left out, then split."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from edgekit.data.dataset import Dataset, Reader, Split
from edgekit.data.listing import Item, listing, splittable
from edgekit.data.memory import read_files
from edgekit.errors import DataError
from edgekit.preprocess import Preprocess
from edgekit.recipe import DataSpec

MAX_UNREADABLE = 0.01

Part = Literal["train", "val", "all"]


def check(root: Path, *, split: bool) -> None:
    """Raise DataError for a folder that cannot be used, without decoding an image."""
    found = listing(root)
    if split and found.val is None:
        splittable(found.train, found.classes, root)


def load(root: Path, spec: DataSpec) -> Dataset:
    """The dataset in *root*. Raises DataError."""
    found = listing(root)
    if found.val is None:
        splittable(found.train, found.classes, root)
    items = (*found.train, *(found.val or ()))
    reader, rows, unreadable = _readable(items, spec.preprocess, root)
    if found.val is None:
        kept = [items[row] for row in rows]
        splittable(kept, found.classes, root)
        held_out = stratified([item.id for item in kept], [item.label for item in kept], spec)
        is_val = dict(zip(rows, held_out, strict=True))
    else:
        is_val = {row: row >= len(found.train) for row in rows}
    train = _split(items, reader, [row for row in rows if not is_val[row]], found.classes, root)
    val = _split(items, reader, [row for row in rows if is_val[row]], found.classes, root)
    return Dataset(
        name=root.resolve().name,
        classes=found.classes,
        train=train,
        val=val,
        preprocess=spec.preprocess,
        unreadable=unreadable,
        ignored=found.ignored,
    )


def stores_val(root: Path) -> bool:
    """Whether the held-out images stand in a folder of their own."""
    return listing(root).val is not None


def evaluation(root: Path, spec: DataSpec, part: Part | None) -> tuple[tuple[str, ...], Split]:
    """The classes and the images of one *part*; without one, the held-out images, or all where none are."""
    found = listing(root)
    if found.val is None and part in ("train", "val"):
        dataset = load(root, spec)
        return dataset.classes, dataset.train if part == "train" else dataset.val
    if part == "all" or found.val is None:
        items = (*found.train, *(found.val or ()))
    else:
        items = found.train if part == "train" else found.val
    reader, rows, _ = _readable(items, spec.preprocess, root)
    return found.classes, _split(items, reader, rows, found.classes, root)


def stratified(ids: Sequence[str], labels: Sequence[int], spec: DataSpec) -> list[bool]:
    """Whether each image is held out: *val_fraction* of every class, at least one image on either side.

    The order is that of a hash of seed and id: the same on every machine and version, and an image that is
    added later moves hardly any other.
    """
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        classes.setdefault(label, []).append(row)
    held_out = [False] * len(ids)
    for rows in classes.values():
        rows.sort(key=lambda row: hashlib.sha256(f"{spec.split_seed}:{ids[row]}".encode()).digest())
        count = min(max(round(len(rows) * spec.val_fraction), 1), len(rows) - 1)
        for row in rows[:count]:
            held_out[row] = True
    return held_out


def _readable(
    items: Sequence[Item], preprocess: Preprocess, root: Path
) -> tuple[Reader, list[int], tuple[str, ...]]:
    """The reader, the rows that can be read, and the names of the others with their reasons."""
    reader, faults = read_files([item.path for item in items], preprocess)
    unreadable = tuple(
        f"{items[row].path.relative_to(root).as_posix()}: {reason}" for row, reason in sorted(faults.items())
    )
    if len(faults) == len(items):
        raise DataError(f"none of the {len(items)} images in {root} can be read: {_first(unreadable)}")
    if len(faults) > MAX_UNREADABLE * len(items):
        raise DataError(
            f"{len(faults)} of {len(items)} images in {root} cannot be read, more than "
            f"{100 * MAX_UNREADABLE:g} %: {_first(unreadable)}; repair or remove them"
        )
    return reader, [row for row in range(len(items)) if row not in faults], unreadable


def _split(
    items: Sequence[Item], reader: Reader, rows: Iterable[int], classes: tuple[str, ...], root: Path
) -> Split:
    rows = list(rows)
    present = {items[row].label for row in rows}
    if gone := [name for label, name in enumerate(classes) if label not in present]:
        raise DataError(f"{root}: no image of the class {gone[0]} can be read; repair them, or remove the class")
    return Split(
        ids=tuple(items[row].id for row in rows),
        labels=tuple(items[row].label for row in rows),
        reader=reader,
        rows=np.asarray(rows, np.int64),
    )


def _first(names: tuple[str, ...]) -> str:
    return "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
