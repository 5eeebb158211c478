"""The images that flipped: which they are, that the pictures are theirs, and that names stay names."""

import base64
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit import data, result
from edgekit.bench import choice, sample
from edgekit.cli import main
from edgekit.data import Split
from edgekit.errors import UsageError
from edgekit.preprocess import Preprocess
from edgekit.report import Comparison, Extras, compare, find_flips, page
from edgekit.report.flips import Flip, flips, spread, thumbnail
from edgekit.result import Predictions, Result
from edgekit.visit import Images
from tests.report_samples import result as sample_result

SIDE = Preprocess(height=8, width=8)
CLASSES = ("ant", "bee")
EVIL = '"><img src=x onerror=alert(1)>'
TRUTH = (0, 0, 0, 0, 1, 1, 1, 1)
BEFORE = (0, 0, 1, 1, 1, 1, 1, 0)
AFTER = (0, 1, 0, 1, 1, 1, 0, 0)  # image 1 and 6 became wrong, 2 became right


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of one colour each, told apart by their red."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(4):
            colour = (20 * (4 * label + number), 100, 200)
            Image.new("RGB", (8, 8), colour).save(root / name / f"{number}.png")
    return root


def split_of(photos: Path) -> Split:
    return data.evaluation(str(photos), SIDE).split


def answered(top1: tuple[int, ...], split: Split, precision: str, **more: object) -> Result:
    found = sample_result("tflite", precision, 0.4 if precision == "fp32" else 0.2, None, **more)  # type: ignore[arg-type]
    answers = Predictions(dataset="photos/held-out", images_sha256=split.images_sha256, truth=TRUTH, k=1, top=top1)
    artifact = replace(found.artifact, labels=CLASSES, preprocess=SIDE)
    return replace(found, predictions=answers, artifact=artifact)


def compared(photos: Path) -> Comparison:
    split = split_of(photos)
    return compare([answered(BEFORE, split, "fp32"), answered(AFTER, split, "int8", seed=2)])


def test_those_that_became_wrong_come_first(photos: Path) -> None:
    split = split_of(photos)
    found = flips(answered(BEFORE, split, "fp32"), answered(AFTER, split, "int8"))
    assert found == [Flip(1, "ant", "ant", "bee"), Flip(6, "bee", "bee", "ant"), Flip(2, "ant", "bee", "ant")]
    assert [one.kind for one in found] == ["lost", "lost", "gained"]


def test_labels_in_another_order_are_matched_by_name(photos: Path) -> None:
    split = split_of(photos)
    other = answered(tuple(1 - n for n in AFTER), split, "int8")
    turned = replace(other.artifact, labels=CLASSES[::-1])
    assert other.predictions is not None
    other = replace(
        other, artifact=turned, predictions=replace(other.predictions, truth=tuple(1 - n for n in TRUTH))
    )
    assert [one.place for one in flips(answered(BEFORE, split, "fp32"), other)] == [1, 6, 2]


def test_the_pictures_on_the_page_are_those_of_the_images(photos: Path) -> None:
    found = find_flips(compared(photos), [split_of(photos)], 10, "photos")
    text = page(compared(photos), title="t", provenance={}, extras=Extras(flips=found))
    assert "3 images of 8 flipped: 2 became wrong, 1 became right." in text
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', text)
    reds = {name: Image.open(BytesIO(base64.b64decode(part))).getpixel((0, 0)) for part, name in pictures}
    assert reds == {"ant/1.png": (20, 100, 200), "ant/2.png": (40, 100, 200), "bee/2.png": (120, 100, 200)}


def test_of_many_each_sort_has_its_share() -> None:
    many = [Flip(i, "a", "a", "b") for i in range(80)] + [Flip(i, "a", "b", "a") for i in range(20)]
    kinds = [one.kind for one in spread(many, 10)]
    assert (kinds.count("lost"), kinds.count("gained")) == (8, 2)
    assert len({one.place for one in spread(many[:80], 10)}) == 10
    assert spread(many[:3], 10) == many[:3]


def test_a_large_picture_becomes_a_small_one() -> None:
    rng = np.random.default_rng(0)
    uri = thumbnail(rng.integers(0, 256, (300, 200, 3), dtype=np.uint8))
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (64, 96)
    assert len(uri) < 20_000


def test_other_images_are_refused(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(photos / "ant" / "9.png")
    try:
        other = split_of(photos)
    finally:
        (photos / "ant" / "9.png").unlink()
    comparison = compared(photos)
    with pytest.raises(UsageError, match="pets does not hold the images that accuracy was measured on"):
        find_flips(comparison, [other], 5, "pets")
    with pytest.raises(UsageError, match="no file's accuracy was compared"):
        find_flips(compare([sample_result(wrong=None)]), [other], 5, "pets")


def test_a_sample_of_the_images_is_found_again(photos: Path) -> None:
    split = split_of(photos)
    images = Images(
        name="x",
        images_sha256=split.images_sha256,
        truth=split.labels,
        classes=CLASSES,
        read=lambda _: split.read(),
    )
    five = sample(images, 5)
    part, sha256 = choice(split, 5)
    assert sha256 == five.images_sha256
    assert part.labels == five.truth
    assert np.array_equal(part.read(), five.read(SIDE))
    assert choice(split, 99)[1] == split.images_sha256


def test_names_of_images_and_classes_are_escaped(photos: Path) -> None:
    split = replace(split_of(photos), ids=tuple(f"{EVIL}{n}" for n in range(8)))
    files_ = [answered(BEFORE, split, "fp32"), answered(AFTER, split, "int8", seed=2)]
    files_ = [replace(one, artifact=replace(one.artifact, labels=(EVIL, "bee"))) for one in files_]
    comparison = compare(files_)
    text = page(comparison, title="t", provenance={}, extras=Extras(flips=find_flips(comparison, [split], 5, "x")))
    assert "<img src=x" not in text
    assert text.count("<img ") == 3


def written(photos: Path, folder: Path) -> Path:
    split = split_of(photos)
    for one in (answered(BEFORE, split, "fp32"), answered(AFTER, split, "int8", seed=2)):
        result.write(one, folder / f"{one.name}.json")
    return folder


def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = written(photos, tmp_path / "results"), tmp_path / "page.html"
    assert main(["compare", str(folder), "--html", str(out), "--flips", "2", "--data", str(photos)]) == 0
    text = out.read_text()
    assert text.count('src="data:image/png') == 2
    assert "Shown are 2, of each sort in proportion." in text
    assert f"<dt>Command</dt><dd>edgekit compare {folder} --html {out} --flips 2 --data {photos}</dd>" in text
    assert main(["compare", str(folder), "--html", str(out)]) == 0
    assert "data:image/png" not in out.read_text(), "pictures are in the page only where they are asked for"
    capsys.readouterr()
    for words, message in (
        (["--flips", "2"], "give --html FILE"),
        (["--html", str(out), "--data", "digits"], "give --html FILE with it"),
        (["--html", str(out), "--flips", "2"], "--flips needs the images: give --data DIR"),
        (["--html", str(out), "--flips", "2", "--data", "digits"], "digits does not hold the images"),
    ):
        assert main(["compare", str(folder), *words]) == 2, words
        assert message in capsys.readouterr().err
