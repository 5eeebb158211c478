"""The curves and the confusion of a training: the right classes and figures, whole PNG files, any names."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.errors import MissingDependency
from edgekit.train import pictures
from edgekit.train.pictures import Matrix

PETS = ("cat", "dog", "bee", "ant")
# Right: 8 of 10, 5 of 10, none of none, 50 of 100.
MATRIX = np.array([[8, 2, 0, 0], [1, 5, 1, 3], [0, 0, 0, 0], [20, 30, 0, 50]])


def epochs(count: int) -> list[dict[str, float]]:
    """Lines of a metrics.jsonl, with a key more than the pictures know."""
    return [
        {
            "epoch": n,
            "loss": 2 / n,
            "train_top1": 1 - 0.9 / n,
            "val_top1": 1 - 0.95 / n,
            "learning_rate": 0.1 * (count - n) / count,
            "seconds": 3.5,
            "images_per_second": 1000.0,
            "side": 32,
        }
        for n in range(1, count + 1)
    ]


def noisy(classes: int) -> Matrix:
    """A confusion matrix with about 70 % on the diagonal."""
    generator = np.random.default_rng(0)
    return generator.poisson(0.3 * 40 / classes, (classes, classes)) + np.diag(generator.poisson(28, classes))


def size(path: Path) -> tuple[int, int]:
    """Width and height of a whole PNG file."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as image:
        image.load()
        return image.size


@contextmanager
def no_space_after(size_bytes: int) -> Iterator[None]:
    """Writing more than that into any file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_worst_class_comes_first() -> None:
    ant, dog, cat = pictures.worst(
        MATRIX, PETS, 10
    )  # of two with one half right, the one that more images tell of
    assert (ant.name, ant.images, ant.right, ant.accuracy) == ("ant", 100, 50, 0.5)
    assert (ant.taken_for, ant.times) == ("dog", 30)
    assert (dog.name, dog.accuracy, dog.taken_for, dog.times) == ("dog", 0.5, "ant", 3)
    assert (cat.name, cat.accuracy, cat.taken_for, cat.times) == ("cat", 0.8, "dog", 2)
    # 0.5 -+ 1.96 sqrt(0.25 / 100 + 1.96^2 / 40000) / (1 + 1.96^2 / 100)
    assert (ant.low, ant.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert [score.name for score in pictures.worst(MATRIX, PETS, 2)] == ["ant", "dog"]


def test_of_equal_mistakes_the_first_is_named_and_of_none_none() -> None:
    [a, b, c] = pictures.worst(np.array([[1, 2, 2], [0, 3, 0], [0, 0, 4]]), ("a", "b", "c"), 3)
    assert (a.name, a.taken_for, a.times) == ("a", "b", 2)
    assert [(score.name, score.taken_for, score.times) for score in (b, c)] == [("c", "", 0), ("b", "", 0)]
    assert b.high == 1.0


@pytest.mark.parametrize("count", [1, 2, 300])
def test_curves(count: int, tmp_path: Path) -> None:
    pictures.curves(epochs(count), tmp_path / "run" / "curves.png")
    width, height = size(tmp_path / "run" / "curves.png")
    assert 1000 < width < height < 1400
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["curves.png"]


@pytest.mark.parametrize("classes", [2, 15, 16, 100, 101, 1000])
def test_confusion_at_any_number_of_classes(classes: int, tmp_path: Path) -> None:
    pictures.confusion(noisy(classes), [f"class {i}" for i in range(classes)], tmp_path / "confusion.png")
    width, height = size(tmp_path / "confusion.png")
    assert 1200 < height < width < 3000


def test_a_class_without_images_is_left_blank(tmp_path: Path) -> None:
    pictures.confusion(MATRIX, PETS, tmp_path / "empty.png")
    full = MATRIX + np.diag([0, 0, 10, 0])
    pictures.confusion(full, PETS, tmp_path / "full.png")
    assert size(tmp_path / "empty.png") == size(tmp_path / "full.png")
    grey = {}
    for name in ("empty", "full"):
        with Image.open(tmp_path / f"{name}.png") as image:
            grey[name] = (np.asarray(image.convert("RGB")) == (0xDD, 0xE1, 0xE6)).all(axis=2).mean()
    assert grey["empty"] - grey["full"] > 0.08  # a row of four, over about half of the picture's width


def test_names_of_any_kind_are_drawn_without_a_warning(tmp_path: Path) -> None:
    names = ("кошка", "القط", "犬", "$a_b$", "new\nline", "tab\there", "x" * 255, "\udcff.jpg", "", "𓃠 👩‍🚀")
    pictures.confusion(noisy(10), names, tmp_path / "names.png")
    assert size(tmp_path / "names.png") > (2000, 1200)
    many = [f"{name} {i}" for i in range(20) for name in names]
    pictures.confusion(noisy(200), many, tmp_path / "many.png")
    assert size(tmp_path / "many.png") > (2000, 1200)


def test_an_installed_font_draws_what_the_first_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fontTools.fontBuilder import FontBuilder  # type: ignore[import-untyped]
    from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
    from matplotlib.font_manager import fontManager

    def drawn(name: str) -> bytes:
        pictures.confusion(MATRIX, (*PETS[:3], name), tmp_path / "picture.png")
        return (tmp_path / "picture.png").read_bytes()

    without = drawn("\ue123")  # for private use: no font of this machine has it
    assert without == drawn("□")
    pen = TTGlyphPen(None)
    for place in ((0, 0), (500, 800), (1000, 0)):
        (pen.lineTo if pen.points else pen.moveTo)(place)
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "triangle"])
    font.setupCharacterMap({0xE123: "triangle"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "triangle": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "triangle": (1000, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Triangles", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "triangles.ttf")
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist])
    fontManager.addfont(tmp_path / "triangles.ttf")
    assert drawn("\ue123") != without
    (tmp_path / "triangles.ttf").unlink()  # but it is still in matplotlib's list
    assert drawn("\ue123") == without


@pytest.mark.parametrize("before", [b"", b"an older picture"])
def test_a_full_disk_leaves_no_half_of_a_picture(before: bytes, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    if before:
        path.write_bytes(before)
    with no_space_after(4096), pytest.raises(OSError, match=r"File too large: .*curves\.png"):
        pictures.curves(epochs(3), path)
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == (
        {"curves.png": before} if before else {}
    )


def test_matplotlib_is_loaded_late_and_keeps_no_state(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy
from edgekit.train import pictures
assert "matplotlib" not in sys.modules
pictures.confusion(numpy.eye(3, dtype=int), "abc", Path(sys.argv[1]))
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)
    assert size(tmp_path / "a.png") > (2000, 1200)


def test_without_matplotlib_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"needs the package matplotlib: pip install 'edgekit\[train\]'"):
        pictures.curves(epochs(1), tmp_path / "curves.png")
