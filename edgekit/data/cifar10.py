"""CIFAR-10 in torchvision's own layout: https://www.cs.toronto.edu/~kriz/cifar.html."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.dataset import Dataset, Reader, Scans, Split
from edgekit.data.memory import keep
from edgekit.errors import DataError
from edgekit.recipe import DataSpec
from edgekit.requires import require

BATCHES = "cifar-10-batches-py"
DOWNLOAD_MB = 170


def root_of(folder: Path) -> Path | None:
    """The folder that holds the batches' folder, when *folder* is the one or the other."""
    if folder.name == BATCHES and folder.is_dir():
        return folder.resolve().parent
    return folder if (folder / BATCHES).is_dir() else None


def load(root: Path, spec: DataSpec) -> Dataset:
    """The dataset below *root*. Raises DataError when the files are not those that torchvision knows."""
    train, test = _read(root, train=True), _read(root, train=False)
    scans = Scans(pictures=np.concatenate([train.data, test.data]), preprocess=spec.preprocess)
    reader = keep(scans)
    return Dataset(
        name="cifar10",
        classes=tuple(train.classes),
        train=_split("train", train.targets, reader, 0),
        val=_split("test", test.targets, reader, len(train.targets)),
        preprocess=spec.preprocess,
    )


def ensure(root: Path, confirm: Callable[[str], bool] | None) -> Path:
    """*root* once the files are there. They are downloaded only after *confirm* said yes to the question."""
    if root_of(root) is not None:
        return root
    if confirm is None or not confirm(f"Download CIFAR-10 ({DOWNLOAD_MB} MB, cs.toronto.edu) to {root}?"):
        raise DataError(
            f"CIFAR-10 is not in {root} and was not downloaded: agree to the download at a terminal, or give a "
            f"folder that has {BATCHES}/ or class folders with --data"
        )
    _dataset()(str(root), download=True)
    return root


def _dataset() -> Any:
    return require("torchvision.datasets", feature="The cifar10 data", extra="train").CIFAR10


def _read(root: Path, *, train: bool) -> Any:
    cifar10 = _dataset()
    with warnings.catch_warnings():
        # The batches were pickled by NumPy 1.7, which wrote `align` as a number.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        try:  # it compares the MD5 of every batch with the known one before it unpickles any
            return cifar10(str(root), train=train, download=False)
        except RuntimeError as error:
            raise DataError(
                f"{root / BATCHES} is not CIFAR-10 as published: a file is missing or its MD5 differs; unpack "
                "cifar-10-python.tar.gz again"
            ) from error


def _split(name: str, labels: Sequence[int], reader: Reader, start: int) -> Split:
    return Split(
        ids=tuple(f"{name}/{row:05d}" for row in range(len(labels))),
        labels=tuple(int(label) for label in labels),
        reader=reader,
        rows=np.arange(start, start + len(labels)),
    )
