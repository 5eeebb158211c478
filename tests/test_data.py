"""Folders of images, digits and CIFAR-10: splits, unreadable files, and every error's text."""

import hashlib
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit import data, files
from edgekit.data import listing, memory
from edgekit.errors import DataError
from edgekit.preprocess import Preprocess
from edgekit.recipe import DataSpec

SMALL = Preprocess(height=8, width=8, resize="squash")


def spec(source: object = "", val_fraction: float = 0.2, split_seed: int = 0) -> DataSpec:
    return DataSpec(source=str(source), val_fraction=val_fraction, split_seed=split_seed, preprocess=SMALL)


def fill(folder: Path, count: int, colour: int = 0, suffix: str = "png") -> None:
    """*count* pictures; the red of each is its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, colour, 0)).save(folder / f"{number:03d}.{suffix}")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """20 cats and 10 dogs."""
    fill(tmp_path / "pets" / "dog", 10, colour=200)
    fill(tmp_path / "pets" / "cat", 20, colour=100)
    return tmp_path / "pets"


def test_a_split_is_stratified_and_whole(pets: Path) -> None:
    found = data.load(spec(pets))
    assert (found.name, found.classes) == ("pets", ("cat", "dog"))
    assert Counter(found.train.labels) == {0: 16, 1: 8}
    assert Counter(found.val.labels) == {0: 4, 1: 2}
    every = {f"cat/{i:03d}.png" for i in range(20)} | {f"dog/{i:03d}.png" for i in range(10)}
    assert {*found.train.ids, *found.val.ids} == every
    assert len(found.train) + len(found.val) == 30
    for split in (found.train, found.val):
        pixels = split.read()
        assert pixels.shape == (len(split), 8, 8, 3)
        for name, label, image in zip(split.ids, split.labels, pixels, strict=True):
            assert image[0, 0].tolist() == [int(name[4:7]), (100, 200)[label], 0]


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.9, 9), (0.25, 2)])
def test_each_class_is_on_both_sides(tmp_path: Path, fraction: float, count: int) -> None:
    fill(tmp_path / "a", 10)
    fill(tmp_path / "b", 2)
    found = data.load(spec(tmp_path, fraction))
    assert Counter(found.val.labels) == {0: count, 1: 1}


def test_the_same_seed_gives_the_same_split(pets: Path) -> None:
    first, again, other = (data.load(spec(pets, split_seed=seed)) for seed in (0, 0, 1))
    assert first.val.ids == again.val.ids
    assert first.val.images_sha256 == again.val.images_sha256
    assert first.val.images_sha256 != other.val.images_sha256
    # A hash decides, the same everywhere: `printf 0:dog/001.png | sha256sum` and 002 are the smallest of ten.
    assert [name for name in first.val.ids if name.startswith("dog")] == ["dog/001.png", "dog/002.png"]


def test_one_more_image_moves_few_others(pets: Path) -> None:
    before = set(data.load(spec(pets)).val.ids)
    Image.new("RGB", (8, 8)).save(pets / "cat" / "zzz.png")
    assert len(before ^ set(data.load(spec(pets)).val.ids)) <= 2


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "Test"])
def test_train_and_val_folders(tmp_path: Path, held_out: str) -> None:
    for part, count in (("train", 3), (held_out, 2)):
        fill(tmp_path / part / "a", count)
        fill(tmp_path / part / "b", 1)
    found = data.load(spec(tmp_path))
    assert found.train.ids == ("a/000.png", "a/001.png", "a/002.png", "b/000.png")
    assert found.val.ids == ("a/000.png", "a/001.png", "b/000.png")
    assert data.load(spec("digits"), source=str(tmp_path)).val.ids == found.val.ids


def test_val_is_taken_before_test(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 1), ("val", 2)):
        fill(tmp_path / part / "a", count)
        fill(tmp_path / part / "b", count)
    assert len(data.load(spec(tmp_path)).val) == 4


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path / "train", 5)
    fill(tmp_path / "plane", 5)
    assert data.load(spec(tmp_path)).classes == ("plane", "train")


def test_hidden_and_other_files_are_left_out(pets: Path) -> None:
    fill(pets / ".cache", 3)
    fill(pets / "cat" / ".thumbs", 3)
    fill(pets / "cat" / "more", 2, suffix="JPEG")
    (pets / "dog" / "._001.png").write_bytes(b"")
    (pets / "dog" / "notes.txt").write_text("good dogs")
    (pets / "README.md").write_text("pets")
    found = data.load(spec(pets))
    assert found.classes == ("cat", "dog")
    assert len(found.train) + len(found.val) == 32
    assert "cat/more/001.JPEG" in found.train.ids + found.val.ids
    assert found.ignored == ("README.md", "dog/notes.txt")


def test_pillows_extensions_are_images() -> None:
    known = listing.extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2"} <= known
    assert not known & {".eps", ".mpg", ".h5", ".txt", ".pdf", ".svg", ""}


def test_one_unreadable_image_of_200_is_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path / "a", 100)
    fill(tmp_path / "b", 100)
    (tmp_path / "b" / "050.png").write_text("no image")
    found = data.load(spec(tmp_path))
    assert found.unreadable == ("b/050.png: not an image that Pillow knows",)
    assert len(found.train) + len(found.val) == 199
    assert "b/050.png" not in found.train.ids + found.val.ids


def test_three_unreadable_images_of_100_are_too_many(tmp_path: Path) -> None:
    fill(tmp_path / "a", 50)
    fill(tmp_path / "b", 50)
    for number in (1, 2, 3):
        path = tmp_path / "a" / f"{number:03d}.png"
        path.write_bytes(path.read_bytes()[:50])
    expected = (
        rf"3 of 100 images in {tmp_path} cannot be read, more than 1 %: a/001.png: .*; repair or remove them"
    )
    with pytest.raises(DataError, match=expected):
        data.load(spec(tmp_path))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_files_that_do_not_fit_into_memory_are_read_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    fill(tmp_path / "a", 100, suffix=suffix)
    fill(tmp_path / "b", 100, suffix=suffix)
    path = tmp_path / "a" / f"007.{suffix}"
    path.write_bytes(path.read_bytes()[:-40])
    resident = data.load(spec(tmp_path))
    monkeypatch.setattr(memory, "MEMORY_BYTES", 1000)
    lazy = data.load(spec(tmp_path))
    assert resident.val.in_memory
    assert not lazy.val.in_memory
    assert lazy.val == resident.val
    assert lazy.unreadable == resident.unreadable
    assert len(lazy.unreadable) == 1
    assert np.array_equal(lazy.val.read([3, 1]), resident.val.read([3, 1]))
    (tmp_path / lazy.val.ids[0]).unlink()
    with pytest.raises(DataError, match="could be read before and cannot be now"):
        lazy.val.read([0])


def test_take_keeps_ids_labels_and_pixels_together(pets: Path) -> None:
    split = data.load(spec(pets)).train
    some = split.take([20, 3])
    assert some.ids == (split.ids[20], split.ids[3])
    assert some.labels == (split.labels[20], split.labels[3])
    assert np.array_equal(some.read(), split.read([20, 3]))
    assert np.array_equal(some.take([1]).read(), split.read([3]))


def empty(root: Path) -> None:
    root.mkdir()


def loose_images(root: Path) -> None:
    fill(root, 2)


def no_class_folders(root: Path) -> None:
    root.mkdir()
    (root / "notes.txt").touch()


def one_class(root: Path) -> None:
    fill(root / "cat", 3)


def too_far_up(root: Path) -> None:
    fill(root / "pets" / "cat", 3)
    fill(root / "pets" / "dog", 3)


def single_image(root: Path) -> None:
    fill(root / "cat", 3)
    fill(root / "dog", 1)


def empty_class(root: Path) -> None:
    fill(root / "cat", 3)
    (root / "dog").mkdir()
    (root / "dog" / "notes.txt").touch()


def train_only(root: Path) -> None:
    fill(root / "train" / "cat", 3)
    fill(root / "train" / "dog", 3)


def other_classes(root: Path) -> None:
    for folder in ("train/cat", "train/dog", "val/cat", "val/cow"):
        fill(root / folder, 2)


def fewer_classes(root: Path) -> None:
    for folder in ("train/cat", "train/dog", "train/emu", "val/cat", "val/dog"):
        fill(root / folder, 2)


def empty_val(root: Path) -> None:
    train_only(root)
    (root / "val").mkdir()


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (
        lambda root: None,
        "no such data: '{}' is neither a folder nor built in (cifar10, digits); give a folder that",
    ),
    (lambda root: root.touch(), "{} is a file; give a folder (unpack an archive first)"),
    (empty, "the folder {} is empty; it should hold one folder of images a class (cat/, dog/, ...)"),
    (
        loose_images,
        "{} holds 2 images (000.png, 001.png) but no class folders: move the images of each class into",
    ),
    (no_class_folders, "{} holds no class folders, only notes.txt; give the folder above the images"),
    (one_class, "{} holds one class folder, cat; a classifier needs two or more: add another class"),
    (
        too_far_up,
        "holds one class folder, pets; a classifier needs two or more: did you mean {}/pets, which holds cat",
    ),
    (
        single_image,
        "{}: the class dog has one image; a split into training and held-out images needs at least two",
    ),
    (empty_class, "{}: the class dog has no images; add some, or remove the folder. Files count as images by"),
    (
        train_only,
        "{} holds train/ but no held-out images: add {}/val with the same classes, or give {}/train itself",
    ),
    (
        other_classes,
        "{}/train and {}/val differ in their classes: only in train: dog; only in val: cow; make them",
    ),
    (fewer_classes, "{}/train and {}/val differ in their classes: only in train: emu; make them the same"),
    (empty_val, "the folder {}/val is empty"),
]


@pytest.mark.parametrize(("make", "message"), FAULTS)
def test_faults_are_told_by_check_and_by_load(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    make(root)
    for use in (lambda: data.check(str(root)), lambda: data.load(spec(root))):
        with pytest.raises(DataError, match=re.escape(message.replace("{}", str(root)))):
            use()


def test_nothing_readable(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    data.check(str(tmp_path))
    with pytest.raises(
        DataError, match=r"none of the 4 images in .* can be read: a/1.png: not an image .*; and 1 more"
    ):
        data.load(spec(tmp_path))


def test_a_class_that_loses_its_last_images(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "a", 200)
    fill(tmp_path / "train" / "b", 1)
    fill(tmp_path / "val" / "a", 1)
    fill(tmp_path / "val" / "b", 1)
    (tmp_path / "val" / "b" / "000.png").write_text("no image")
    with pytest.raises(DataError, match="no image of the class b can be read"):
        data.load(spec(tmp_path))


def test_a_near_name_is_offered() -> None:
    with pytest.raises(DataError, match="did you mean 'digits'"):
        data.check("digit")


def test_digits() -> None:
    data.check("digits")
    found = data.load(spec("digits"))
    assert (found.name, found.classes) == ("digits", tuple("0123456789"))
    assert len(found.train) + len(found.val) == 1797
    assert len(found.val) == 359
    counts = Counter(found.val.labels)
    assert all(34 <= counts[digit] <= 37 for digit in range(10))
    assert found.train.ids[0].startswith("digits/0")
    # At 8x8 nothing is resized: 0..16 became 0..255.
    every = {*np.unique(found.train.read())}
    assert every == {round(value * 255 / 16) for value in range(17)}


def test_evaluation(pets: Path, tmp_path: Path) -> None:
    name, classes, split = data.evaluation(str(pets), SMALL)
    assert (name, classes, len(split)) == ("pets", ("cat", "dog"), 30)
    assert data.evaluation(str(pets), SMALL, "val").split == data.load(spec(pets)).val
    assert data.evaluation(str(pets), SMALL, "train").split == data.load(spec(pets)).train
    assert data.evaluation("digits", SMALL).split == data.load(spec("digits")).val
    assert len(data.evaluation("digits", SMALL, "all").split) == 1797
    for part, count in (("train", 3), ("val", 2)):
        fill(tmp_path / "own" / part / "a", count)
        fill(tmp_path / "own" / part / "b", count)
    sizes = [
        len(data.evaluation(str(tmp_path / "own"), SMALL, part).split) for part in (None, "val", "train", "all")
    ]
    assert sizes == [4, 4, 6, 10]


def test_evaluation_takes_one_image_a_class(tmp_path: Path) -> None:
    fill(tmp_path / "a", 1)
    fill(tmp_path / "b", 1)
    data.check(str(tmp_path), split=False)
    assert len(data.evaluation(str(tmp_path), SMALL).split) == 2


def test_folders_need_neither_torch_nor_scikit_learn(pets: Path) -> None:
    code = (
        "import sys; from edgekit import data; from edgekit.preprocess import Preprocess; "
        f"data.evaluation({str(pets)!r}, Preprocess(height=8, width=8)); "
        "sys.exit(bool({'torch', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 in torchvision's layout with 4 images, whose MD5s torchvision is made to know."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "raw" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for name, count in (("data_batch_1", 3), ("test_batch", 1)):
        values = np.arange(count * 3072, dtype=np.int64).reshape(count, 3072) % 251
        content = pickle.dumps({"data": values.astype(np.uint8), "labels": list(range(count))})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    content = pickle.dumps({"label_names": ["plane", "car", "bird"]})
    (folder / "batches.meta").write_bytes(content)
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return folder


def test_cifar10_in_torchvisions_layout(batches: Path) -> None:
    contract = Preprocess(height=32, width=32)
    for source in (batches, batches.parent):
        data.check(str(source))
        found = data.load(DataSpec(source="cifar10", preprocess=contract), source=str(source))
        assert (found.name, found.classes) == ("cifar10", ("plane", "car", "bird"))
        assert (found.train.labels, found.val.labels) == ((0, 1, 2), (0,))
        assert found.val.ids == ("test/00000",)
        # Row-major planes of red, green, blue.
        assert found.val.read()[0, 0, 1].tolist() == [1, 1025 % 251, 2049 % 251]
    assert len(data.evaluation(str(batches), contract, "all").split) == 4


def test_changed_cifar10_is_never_unpickled(batches: Path) -> None:
    trap = b"cos\nsystem\n(S'touch " + str(batches / "owned").encode() + b"'\ntR."
    (batches / "data_batch_1").write_bytes(trap)
    with pytest.raises(DataError, match="is not CIFAR-10 as published: a file is missing or its MD5 differs"):
        data.load(spec(batches))
    assert not (batches / "owned").exists()


def test_cifar10_is_downloaded_only_after_a_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = list[str]()

    def no(question: str) -> bool:
        asked.append(question)
        return False

    for confirm in (None, no):
        with pytest.raises(DataError, match="was not downloaded: agree to the download at a terminal, or give"):
            data.load(spec("cifar10"), confirm=confirm)
    assert asked == [f"Download CIFAR-10 (170 MB, cs.toronto.edu) to {tmp_path / 'edgekit'}?"]
    assert files.cache() == tmp_path / "edgekit"
