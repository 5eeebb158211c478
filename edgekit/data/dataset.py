"""Labelled pictures, and where their pixels come from.

Shapes: N images, H height, W width; pixels are uint8 RGB at the contract's size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit import files
from edgekit.errors import DataError
from edgekit.preprocess import Pixels, Preprocess, load_image, load_pixels, pixels, random_crop

Rows = npt.NDArray[np.int64]


class Reader(Protocol):
    """Pixels by row. *in_memory*: reading costs no more than a copy."""

    @property
    def in_memory(self) -> bool: ...

    def read(self, rows: Rows) -> Pixels: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Labelled pictures in a fixed order. ``ids`` are stable names, such as ``cat/01.jpg``."""

    ids: tuple[str, ...]
    labels: tuple[int, ...]
    reader: Reader = field(repr=False, compare=False)
    rows: Rows = field(repr=False, compare=False)  # where the images stand in the reader

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def in_memory(self) -> bool:
        return self.reader.in_memory

    @property
    def images_sha256(self) -> str:
        """The hash of the list of ids and labels: equal for the same choice of images."""
        return files.sha256_of([list(self.ids), list(self.labels)])

    def read(self, indices: Sequence[int] | npt.NDArray[Any] | None = None) -> Pixels:
        """The pixels (N, H, W, 3) of the images at *indices*, of all without. Raises DataError."""
        return self.reader.read(self.rows if indices is None else self.rows[np.asarray(indices, np.int64)])

    @property
    def has_files(self) -> bool:
        """Whether each picture is decoded from its file when it is read: random crops come from all of it then."""
        return isinstance(self.reader, Files)

    def read_crops(self, indices: npt.NDArray[Any], draws: npt.NDArray[np.float32], least: float) -> Pixels:
        """Random resized crops (N, H, W, 3) of files, see `preprocess.random_crop`. Raises DataError."""
        assert isinstance(self.reader, Files)
        return self.reader.read_crops(self.rows[np.asarray(indices, np.int64)], draws, least)

    def sample(self, count: int, seed: int = 0) -> Pixels:
        """The pixels of a seeded choice of *count* images, of all where there are fewer."""
        order = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.read(np.sort(order))

    def take(self, indices: Sequence[int]) -> "Split":
        """The images at *indices*, in that order."""
        return Split(
            ids=tuple(self.ids[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            reader=self.reader,
            rows=self.rows[np.asarray(indices, np.int64)],
        )


def joined(first: Split, second: Split) -> Split:
    """The images of both splits of one dataset."""
    assert first.reader is second.reader
    return Split(
        ids=first.ids + second.ids,
        labels=first.labels + second.labels,
        reader=first.reader,
        rows=np.concatenate([first.rows, second.rows]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """``unreadable``: images that were left out, with the reason; ``ignored``: files that are no images."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    preprocess: Preprocess
    unreadable: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Memory:
    """Pixels that are all there (N, H, W, 3)."""

    pixels: Pixels

    @property
    def in_memory(self) -> bool:
        return True

    def read(self, rows: Rows) -> Pixels:
        return self.pixels[rows]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Files:
    """Image files, decoded each time that they are read."""

    paths: tuple[Path, ...]
    preprocess: Preprocess

    @property
    def in_memory(self) -> bool:
        return False

    def read(self, rows: Rows) -> Pixels:
        return self._each(rows, lambda _, path: load_pixels(path, self.preprocess))

    def read_crops(self, rows: Rows, draws: npt.NDArray[np.float32], least: float) -> Pixels:
        return self._each(
            rows, lambda number, path: random_crop(load_image(path), self.preprocess, draws[number], least)
        )

    def _each(self, rows: Rows, load: Callable[[int, Path], Pixels]) -> Pixels:
        out = np.empty((len(rows), self.preprocess.height, self.preprocess.width, 3), np.uint8)
        for number, row in enumerate(rows):
            path = self.paths[row]
            try:
                out[number] = load(number, path)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} could be read before and cannot be now: {error}") from error
        return out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scans:
    """Small pictures in memory (N, h, w) or (N, h, w, 3), brought to the contract's size when they are read."""

    pictures: npt.NDArray[np.uint8]
    preprocess: Preprocess

    @property
    def in_memory(self) -> bool:
        return False

    def read(self, rows: Rows) -> Pixels:
        from PIL import Image

        out = np.empty((len(rows), self.preprocess.height, self.preprocess.width, 3), np.uint8)
        for image, row in zip(out, rows, strict=True):
            image[:] = pixels(Image.fromarray(self.pictures[row]), self.preprocess)
        return out
