"""The preprocess contract: known pictures give known pixels."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgekit.preprocess import Preprocess, load_image, load_pixels, normalized, pixels, preset, rgb

Array = npt.NDArray[np.uint8]


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture whose red tells the column and whose green tells the row."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
@pytest.mark.parametrize(
    ("width", "height", "side", "fraction"),
    [(64, 48, 32, 0.875), (33, 50, 32, 1.0), (17, 90, 24, 0.7), (500, 375, 224, 0.875), (7, 7, 8, 0.95)],
)
def test_crop_is_torchvisions_resize_and_center_crop(
    width: int, height: int, side: int, fraction: float, interpolation: str
) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    image = noise(width, height)
    mode = InterpolationMode[interpolation.upper()]
    expected = np.asarray(center_crop(resize(image, round(side / fraction), interpolation=mode), side))
    contract = Preprocess(height=side, width=side, crop_fraction=fraction, interpolation=interpolation)  # type: ignore[arg-type]
    assert np.array_equal(pixels(image, contract), expected)


def test_crop_takes_the_middle() -> None:
    # 8x4, a column a value: scaled to 8x4, the middle 4 columns stay.
    columns = np.tile(np.arange(8, dtype=np.uint8) * 30, (4, 1))
    found = pixels(Image.fromarray(columns), Preprocess(height=4, width=4))
    assert found[0, :, 0].tolist() == [60, 90, 120, 150]


def test_crop_to_a_size_that_is_not_square_covers_it() -> None:
    found = pixels(picture(100, 100), Preprocess(height=20, width=40))
    assert found.shape == (20, 40, 3)
    assert found[0, 0, 0] < 10  # all columns
    assert found[0, -1, 0] > 245
    assert 55 < found[0, 0, 1] < 75  # the middle half of the rows
    assert 180 < found[-1, 0, 1] < 200


def test_squash_keeps_all_of_the_picture() -> None:
    found = pixels(picture(120, 30), Preprocess(height=10, width=20, resize="squash"))
    assert found.shape == (10, 20, 3)
    assert (found[0, 0, :2] < 20).all()
    assert (found[-1, -1, :2] > 235).all()


def test_squash_of_a_picture_in_size_changes_nothing() -> None:
    image = noise(32, 24)
    assert np.array_equal(pixels(image, Preprocess(height=24, width=32, resize="squash")), np.asarray(image))


def test_pad_centres_on_black() -> None:
    found = pixels(Image.new("RGB", (40, 20), (200, 100, 50)), Preprocess(height=16, width=16, resize="pad"))
    assert (found[4:12] == (200, 100, 50)).all()
    assert not found[:4].any()
    assert not found[12:].any()


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (3, 2)])
def test_extreme_shapes_give_the_size(size: tuple[int, int], resize: str) -> None:
    contract = Preprocess(height=224, width=96, crop_fraction=0.875, resize=resize)  # type: ignore[arg-type]
    found = pixels(Image.new("RGB", size, (255, 0, 0)), contract)
    assert found.shape == (224, 96, 3)
    assert found.dtype == np.uint8
    assert found[111, 47].tolist() == [255, 0, 0]


def corners(image: Image.Image) -> list[list[int]]:
    values = np.asarray(rgb(image))
    return [values[0, 0].tolist(), values[0, -1].tolist(), values[-1, 0].tolist(), values[-1, -1].tolist()]


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


def four_colours() -> Image.Image:
    """Red, green over blue, white: 16x8."""
    values = np.zeros((8, 16, 3), np.uint8)
    values[:4, :8], values[:4, 8:], values[4:, :8], values[4:, 8:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(values)


# What a camera that was turned so stores, and how it is to be seen: https://exiftool.org/TagNames/EXIF.html
TURNED = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_rotation_is_applied_once(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    four_colours().save(path, exif=exif, lossless=True)  # read by webp only
    image = load_image(path)
    assert corners(image) == TURNED[orientation]


def test_exif_rotation_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    four_colours().resize((160, 80), Image.Resampling.NEAREST).save(
        tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0
    )
    found = load_pixels(tmp_path / "a.jpg", Preprocess(height=40, width=20, resize="squash"))
    assert np.abs(found[2, 2].astype(int) - BLUE).max() < 8
    assert np.abs(found[2, -2].astype(int) - RED).max() < 8


def test_a_picture_with_broken_exif_data_is_read(tmp_path: Path) -> None:
    four_colours().save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff")
    with pytest.warns(UserWarning, match="EXIF"):
        assert corners(load_image(tmp_path / "a.png")) == TURNED[1]


def one(mode: str, colour: object) -> list[int]:
    image = Image.new(mode, (2, 2), colour)  # type: ignore[arg-type]
    value: list[int] = np.asarray(rgb(image))[0, 0].tolist()
    return value


def test_modes_become_rgb() -> None:
    assert one("L", 77) == [77, 77, 77]
    assert one("1", 1) == WHITE
    assert one("RGBA", (255, 0, 0, 255)) == RED
    assert one("RGBA", (255, 0, 0, 0)) == WHITE  # transparent: what is behind, white
    assert one("RGBA", (0, 0, 0, 51)) == [204, 204, 204]
    assert one("LA", (100, 0)) == WHITE
    assert one("LA", (100, 255)) == [100, 100, 100]
    assert one("CMYK", (0, 255, 255, 0)) == RED
    assert one("CMYK", (0, 0, 0, 255)) == [0, 0, 0]
    assert one("YCbCr", (128, 128, 128)) == [128, 128, 128]


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = four_colours().quantize(4)
    image.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").mode == "P"
    assert corners(load_image(tmp_path / "a.png")) == TURNED[1]


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = four_colours().quantize(4)
    red = image.getpixel((0, 0))
    assert isinstance(red, int)
    image.save(tmp_path / "a.png", transparency=red)
    assert corners(load_image(tmp_path / "a.png")) == [WHITE, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(suffix: str, tmp_path: Path) -> None:
    values = np.asarray([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    found = np.asarray(rgb(load_image(tmp_path / f"a.{suffix}")))
    assert found[0].tolist() == [[0, 0, 0], [1, 1, 1], [128, 128, 128], WHITE]


@pytest.mark.parametrize(
    "values", [np.full((1, 1), 0.5, np.float32), np.full((1, 1), 70_000, np.int32), np.full((1, 1), -1, np.int32)]
)
def test_values_without_a_known_white_are_refused(values: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="have no known white; save the image with 8 or 16 bits"):
        rgb(Image.fromarray(values))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp", "ppm"])
def test_damaged_files_raise_oserror_or_valueerror(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    noise(40, 30).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((OSError, ValueError)):
        load_image(path)
    rng = np.random.default_rng(0)
    for _ in range(150):  # bytes changed at random: readable or not, never another error
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data), 200), 4):
            data[at] = int(rng.integers(256))
        path.write_bytes(data)
        for coarse in (False, True):
            try:
                rgb(load_image(path, coarse=coarse))
            except (OSError, ValueError):
                pass
            except Warning:
                pass  # tests make Pillow's warnings errors


def test_a_text_file_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(OSError, match="not an image that Pillow knows"):
        load_pixels(tmp_path / "a.jpg", Preprocess(height=8, width=8))


def test_normalized_orders_channels_and_scales() -> None:
    values = np.asarray([[[[255, 0, 51]]]], np.uint8)
    contract = Preprocess(height=1, width=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), channel_order="BGR")
    assert np.allclose(normalized(values, contract), [[[[-0.6, -1.0, 1.0]]]], atol=1e-6)


def test_presets_take_a_size() -> None:
    assert (preset("imagenet", 96, 128).height, preset("imagenet", 96, 128).width) == (96, 128)
    with pytest.raises(ValueError, match="std must be positive"):
        Preprocess(height=1, width=1, std=(1.0, 0.0, 1.0))
