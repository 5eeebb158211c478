"""What a folder of class folders holds, found without opening an image. Every fault of it is told here."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from edgekit.errors import DataError

VAL_NAMES = ("val", "valid", "validation", "test")
# Pillow knows these without reading them, or reads them by running another program.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class Item(NamedTuple):
    """An image file. *id* is its path below the folder of class folders, with slashes."""

    id: str
    label: int
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """``val`` is None where the folder holds class folders only. Both are sorted by id."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...] | None
    ignored: tuple[str, ...]


@cache
def extensions() -> frozenset[str]:
    """The file name extensions, in lower case, of the formats that Pillow reads here."""
    from PIL import Image

    Image.init()
    return frozenset(
        extension
        for extension, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in NOT_DECODED
    )


def listing(root: Path) -> Listing:
    """The images below *root*. Raises DataError: no folder, nothing in it, not arranged by class."""
    folders, loose = _look(root)
    by_name = {folder.name.lower(): folder for folder in folders}
    held_out = next((by_name[name] for name in VAL_NAMES if name in by_name), None)
    if "train" not in by_name or (held_out is None and len(folders) > 1):
        classes, items, ignored = _class_folders(root)
        return Listing(root=root, classes=classes, train=items, val=None, ignored=ignored)
    training = by_name["train"]
    if held_out is None:
        raise DataError(
            f"{root} holds {training.name}/ but no held-out images: add {root / 'val'} with the same classes, or "
            f"give {training} itself, which is then split"
        )
    (train_classes, train, ignored), (val_classes, val, more) = _class_folders(training), _class_folders(held_out)
    if train_classes != val_classes:
        only = [
            f"only in {folder.name}: {_some(sorted(set(own) - set(other)))}"
            for folder, own, other in (
                (training, train_classes, val_classes),
                (held_out, val_classes, train_classes),
            )
            if set(own) - set(other)
        ]
        raise DataError(
            f"{training} and {held_out} differ in their classes: {'; '.join(only)}; make them the same"
        )
    ignored = tuple(f"{training.name}/{name}" for name in ignored)
    more = tuple(f"{held_out.name}/{name}" for name in more)
    return Listing(root=root, classes=train_classes, train=train, val=val, ignored=(*loose, *ignored, *more))


def splittable(items: Iterable[Item], classes: tuple[str, ...], root: Path) -> None:
    """Raise DataError when a class has too few images to be on both sides of a split."""
    counts = Counter(item.label for item in items)
    if single := [name for label, name in enumerate(classes) if counts[label] < 2]:
        raise DataError(
            f"{root}: {_class(single)} {_some(single)} {_has(single)} one image; a split into training and "
            "held-out images needs at least two a class: add images, or remove the class"
        )


def _look(root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The visible folders in *root*, sorted, and the names of the files beside them."""
    if not root.exists():
        raise DataError(f"no such folder: {root}; give a folder that holds one folder of images a class")
    if not root.is_dir():
        raise DataError(f"{root} is a file; give a folder (unpack an archive first)")
    try:
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except PermissionError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}; change its permissions") from error
    if not entries:
        raise DataError(
            f"the folder {root} is empty; it should hold one folder of images a class (cat/, dog/, ...)"
        )
    folders = [path for path in entries if path.is_dir()]
    loose = tuple(path.name for path in entries if not path.is_dir())
    if not folders:
        images = [name for name in loose if _is_image(name)]
        if images:
            raise DataError(
                f"{root} holds {len(images)} images ({_some(images)}) but no class folders: move the images of "
                "each class into a folder that is named after it"
            )
        raise DataError(
            f"{root} holds no class folders, only {_some(list(loose))}; give the folder above the images"
        )
    return folders, loose


def _class_folders(root: Path) -> tuple[tuple[str, ...], tuple[Item, ...], tuple[str, ...]]:
    """The classes, the images and the files that are none, of a folder of class folders."""
    folders, loose = _look(root)
    items, ignored = list[Item](), list(loose)
    for label, folder in enumerate(folders):
        for path in _walk(folder):
            name = path.relative_to(root).as_posix()
            if _is_image(path.name):
                items.append(Item(name, label, path))
            else:
                ignored.append(name)
    filled = {item.label for item in items}
    if empty := [folder.name for label, folder in enumerate(folders) if label not in filled]:
        raise DataError(
            f"{root}: {_class(empty)} {_some(empty)} {_has(empty)} no images; add some, or remove the folder. "
            "Files count as images by their extension (.jpg, .png, .webp and all others that Pillow reads)"
        )
    if len(folders) == 1:
        inside = sorted({Path(item.id).parts[1] for item in items if len(Path(item.id).parts) > 2})
        cure = f"did you mean {folders[0]}, which holds {_some(inside)}?" if inside else "add another class"
        raise DataError(
            f"{root} holds one class folder, {folders[0].name}; a classifier needs two or more: {cure}"
        )
    return tuple(folder.name for folder in folders), tuple(sorted(items)), tuple(ignored)


def _walk(folder: Path) -> Iterator[Path]:
    """The visible files below *folder*, in a fixed order."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in extensions()


def _some(names: list[str], count: int = 5) -> str:
    """The first few of *names*."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _class(names: list[str]) -> str:
    return "the class" if len(names) == 1 else "the classes"


def _has(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"
