"""scikit-learn's bundled digits: 1,797 real scans of handwriting, 8x8 pixels, no download.

Source: https://archive.ics.uci.edu/dataset/80 (the test part of Optical Recognition of Handwritten Digits).
"""

from collections.abc import Sequence

import numpy as np

from edgekit.data.dataset import Dataset, Scans, Split
from edgekit.data.folder import stratified
from edgekit.data.memory import keep
from edgekit.recipe import DataSpec
from edgekit.requires import require

BRIGHTEST = 16  # the scans count black pixels in 4x4 cells


def load(spec: DataSpec) -> Dataset:
    """The dataset, split as a folder would be."""
    raw = require("sklearn.datasets", feature="The digits data", extra="train").load_digits()
    scans = np.rint(raw.images * (255 / BRIGHTEST)).astype(np.uint8)
    labels = [int(label) for label in raw.target]
    ids = [f"digits/{row:04d}" for row in range(len(labels))]
    reader = keep(Scans(pictures=scans, preprocess=spec.preprocess))
    held_out = stratified(ids, labels, spec)

    def split(rows: Sequence[int]) -> Split:
        return Split(
            ids=tuple(ids[row] for row in rows),
            labels=tuple(labels[row] for row in rows),
            reader=reader,
            rows=np.asarray(rows, np.int64),
        )

    return Dataset(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        train=split([row for row, held in enumerate(held_out) if not held]),
        val=split([row for row, held in enumerate(held_out) if held]),
        preprocess=spec.preprocess,
    )
