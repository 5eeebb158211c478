"""Images and labels: built-in data and folders of class folders. Needs no torch for folders.

load("digits" | "cifar10" | DIR) -> Dataset(train, val)        for training
evaluation(...) -> Evaluation(name, classes, split)            for a benchmark
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgekit import files
from edgekit.data import cifar10, digits, folder
from edgekit.data.dataset import Dataset, Split, joined
from edgekit.data.folder import Part
from edgekit.errors import DataError, nearest
from edgekit.preprocess import Preprocess
from edgekit.recipe import DataSpec

__all__ = ["Dataset", "Evaluation", "Part", "Split", "check", "evaluation", "held_out", "load", "names"]

Confirm = Callable[[str], bool]  # answers a question, such as whether to download


class Evaluation(NamedTuple):
    """Images to measure accuracy on."""

    name: str
    classes: tuple[str, ...]
    split: Split


def names() -> list[str]:
    """The built-in data."""
    return ["cifar10", "digits"]


def check(source: str, *, split: bool = True) -> None:
    """Raise DataError at once for a source that cannot be used; no image is decoded, nothing downloaded.

    *split*: the images will be split for training, so that each class needs two.
    """
    if source in names():
        return
    root = _folder(source)
    if cifar10.root_of(root) is None:
        folder.check(root, split=split)


def load(spec: DataSpec, *, source: str | None = None, confirm: Confirm | None = None) -> Dataset:
    """The dataset of *spec*, or of *source* in its place. Raises DataError.

    A source is ``digits``, ``cifar10``, a folder of class folders (split by the spec), a folder with train/
    and val/ (or valid, validation, test), or one with torchvision's ``cifar-10-batches-py``. *confirm* is
    asked before CIFAR-10 is downloaded.
    """
    source = source or spec.source
    if source == "digits":
        return digits.load(spec)
    if source == "cifar10":
        return cifar10.load(cifar10.ensure(files.cache(), confirm), spec)
    root = _folder(source)
    if (batches := cifar10.root_of(root)) is not None:
        return cifar10.load(batches, spec)
    return folder.load(root, spec)


def evaluation(
    source: str, preprocess: Preprocess, split: Part | None = None, *, confirm: Confirm | None = None
) -> Evaluation:
    """The images to measure on. Raises DataError.

    Without *split*: the held-out images of built-in data and of a folder with train/ and val/; all images of
    a folder of class folders. A split that is not stored is made by the default seed and fraction.
    """
    spec = DataSpec(source=source, preprocess=preprocess)
    if source not in names() and cifar10.root_of(root := _folder(source)) is None:
        classes, images = folder.evaluation(root, spec, split)
        return Evaluation(root.resolve().name, classes, images)
    dataset = load(spec, confirm=confirm)
    if split == "all":
        return Evaluation(dataset.name, dataset.classes, joined(dataset.train, dataset.val))
    return Evaluation(dataset.name, dataset.classes, dataset.train if split == "train" else dataset.val)


def held_out(spec: DataSpec, source: str, *, confirm: Confirm | None = None) -> Split:
    """The held-out images that `load` gives; where they are stored apart, the others are not looked at."""
    if source not in names() and cifar10.root_of(root := _folder(source)) is None and folder.stores_val(root):
        return folder.evaluation(root, spec, "val")[1]
    return load(spec, source=source, confirm=confirm).val


def _folder(source: str) -> Path:
    """The folder that *source* names. Raises DataError, with the built-in names, when there is none."""
    root = Path(source).expanduser()
    if not root.exists():
        raise DataError(
            f"no such data: {source!r} is neither a folder nor built in ({', '.join(names())})"
            f"{nearest(source, names()) if '/' not in source else ''}; give a folder that holds one folder of "
            "images a class (--data DIR)"
        )
    return root
