"""How many images are kept decoded, and decoding them: many files at a time, the damaged ones found."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from edgekit.data.dataset import Files, Memory, Reader, Scans
from edgekit.preprocess import Pixels, Preprocess, load_image, load_pixels, rgb

MEMORY_BYTES = 2**30
CHUNK = 32  # images that a thread takes at a time


def fits(count: int, preprocess: Preprocess) -> bool:
    """Whether *count* images are kept decoded."""
    return count * preprocess.height * preprocess.width * 3 <= MEMORY_BYTES


def read_files(paths: Sequence[Path], preprocess: Preprocess) -> tuple[Reader, dict[int, str]]:
    """A reader of the files, and what is wrong with those that cannot be read, by row.

    Every file is decoded once here; where all of them do not fit into memory this is a check only, of
    JPEGs at an eighth of their size: a damaged file must not come up hours into a training.
    """
    if not fits(len(paths), preprocess):
        faults = _each(paths, check_file)
        return Files(paths=tuple(paths), preprocess=preprocess), faults
    pixels = np.empty((len(paths), preprocess.height, preprocess.width, 3), np.uint8)
    faults = _each(paths, partial(_fill, pixels=pixels, preprocess=preprocess))
    return Memory(pixels=pixels), faults


def keep(scans: Scans) -> Reader:
    """The scans, decoded where all of them fit into memory."""
    count = len(scans.pictures)
    return Memory(pixels=scans.read(np.arange(count))) if fits(count, scans.preprocess) else scans


def check_file(_: int, path: Path) -> None:
    """Raise OSError or ValueError when the image in a file cannot be read."""
    rgb(load_image(path, coarse=True))


def _fill(row: int, path: Path, *, pixels: Pixels, preprocess: Preprocess) -> None:
    pixels[row] = load_pixels(path, preprocess)


def _each(paths: Sequence[Path], task: Callable[[int, Path], None]) -> dict[int, str]:
    """The text of the OSError or ValueError that *task* raised, by row. Pillow decodes outside of the GIL."""

    def chunk(start: int) -> tuple[int, dict[int, str]]:
        faults, stop = {}, min(start + CHUNK, len(paths))
        for row in range(start, stop):
            try:
                task(row, paths[row])
            except (OSError, ValueError) as error:
                faults[row] = str(error) or type(error).__name__
        return stop - start, faults

    faults: dict[int, str] = {}
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with tqdm(total=len(paths), desc="read images", unit="img", leave=False, disable=None) as bar:
            for count, found in pool.map(chunk, range(0, len(paths), CHUNK)):
                bar.update(count)
                faults |= found
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    return faults
