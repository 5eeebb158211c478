"""The one contract between training images and device pixels, and its one implementation (Pillow).

Shapes: H height, W width, N images; pixels are uint8 RGB, NHWC or HWC.
"""

import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.schema import Between

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

Pixels = npt.NDArray[np.uint8]
Side = Annotated[int, Between(1, 4096)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How a picture becomes the network's input. *mean* and *std* are per channel on a 0 to 1 scale.

    ``resize``: ``crop`` scales the short side to ``size / crop_fraction`` and takes the middle (torchvision's
    evaluation transform), ``squash`` ignores the aspect ratio, ``pad`` keeps all of it on black.
    ``channel_order`` is what the network sees; an artifact takes RGB in either case.
    """

    height: Side
    width: Side
    resize: Literal["crop", "squash", "pad"] = "crop"
    crop_fraction: Annotated[float, Between(0.1, 1.0)] = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = "bilinear"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")


PRESETS = {
    "imagenet": Preprocess(
        height=224, width=224, crop_fraction=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    "minus1to1": Preprocess(height=224, width=224, crop_fraction=0.875, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "0to1": Preprocess(height=224, width=224, crop_fraction=0.875),
    # Pixels as they are, for networks that normalize inside, as some of Keras do.
    "0to255": Preprocess(height=224, width=224, crop_fraction=0.875, std=(1 / 255, 1 / 255, 1 / 255)),
}


def preset(name: str, height: int, width: int) -> Preprocess:
    return replace(PRESETS[name], height=height, width=width)


ORIENTATION = 0x0112  # the EXIF tag
SCALED_PIXELS = 64 * 2**20
# Pillow's decoders assume sound files; on damaged ones they fail in all of these ways.
DAMAGED = (
    *(SyntaxError, EOFError, struct.error, zlib.error, RuntimeError, NotImplementedError, AssertionError),
    *(TypeError, AttributeError, LookupError, ArithmeticError),
)


def rgb(image: "Image") -> "Image":
    """The picture as a viewer shows it: EXIF rotation applied, 8-bit RGB, transparency on white.

    16-bit grey is scaled to 8 bits (Pillow alone would clip it); palettes and CMYK are converted. Raises
    ValueError for values whose white is unknown: floating point, and integers beyond 16 bits.
    """
    from PIL import Image

    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError(f"pixels of mode {image.mode} have no known white; save the image with 8 or 16 bits")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: "Image") -> "Image":
    """The picture turned as its EXIF data say. Pillow's own function also rewrites them, and can fail at that."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    image.load()  # some formats tell their EXIF data, or turn the picture themselves, only then
    try:
        turn = turns.get(image.getexif().get(ORIENTATION, 1))
    except (*DAMAGED, OSError, ValueError):  # viewers show a picture whose EXIF data are broken, too
        return image
    return image if turn is None else image.transpose(turn)


def pixels(image: "Image", preprocess: Preprocess) -> Pixels:
    """The picture's pixels (H, W, 3), uint8 RGB, at the contract's size."""
    from PIL import Image

    p, picture = preprocess, rgb(image)
    method = Image.Resampling[p.interpolation.upper()]
    if p.resize == "squash":
        return np.asarray(picture.resize((p.width, p.height), method))
    if p.resize == "crop":
        return np.asarray(_cropped(picture, p, method))
    width, height = _inside(picture.size, (p.width, p.height))
    canvas = np.zeros((p.height, p.width, 3), np.uint8)
    left, top = (p.width - width) // 2, (p.height - height) // 2
    canvas[top : top + height, left : left + width] = np.asarray(picture.resize((width, height), method))
    return canvas


def _cropped(picture: "Image", p: Preprocess, method: "Resampling") -> "Image":
    """torchvision's Resize and CenterCrop: the long side is rounded down, half an offset to even."""
    outer_width, outer_height = round(p.width / p.crop_fraction), round(p.height / p.crop_fraction)
    if outer_width * picture.height >= outer_height * picture.width:
        wide, high = outer_width, outer_width * picture.height // picture.width
    else:
        wide, high = outer_height * picture.width // picture.height, outer_height
    left, top = round((wide - p.width) / 2), round((high - p.height) / 2)
    if wide * high <= SCALED_PIXELS:
        return picture.resize((wide, high), method).crop((left, top, left + p.width, top + p.height))
    # A strip of 10000x1 would be scaled to gigabytes: resample only the part that is kept.
    x, y = picture.width / wide, picture.height / high
    right, bottom = min(picture.width, (left + p.width) * x), min(picture.height, (top + p.height) * y)
    return picture.resize((p.width, p.height), method, box=(left * x, top * y, right, bottom))


ASPECT = 4 / 3  # of a random resized crop, or its inverse


def cut_out(draws: Any, least: float, width: Any = 1.0, height: Any = 1.0) -> tuple[Any, Any]:
    """The shares of the width and of the height that random resized crops keep.

    *draws* (N, 4), from 0 to 1, NumPy or torch, decide area, aspect ratio, x and y. A crop that would be wider or
    higher than its picture is cut off there. Source: https://arxiv.org/abs/1409.4842, section 6.
    """
    area, ratio = least + (1 - least) * draws[..., 0], ASPECT ** (2 * draws[..., 1] - 1)
    return ((area * ratio * height / width) ** 0.5).clip(max=1.0), ((area / ratio * width / height) ** 0.5).clip(
        max=1.0
    )


def random_crop(image: "Image", preprocess: Preprocess, draws: npt.NDArray[np.float32], least: float) -> Pixels:
    """A random resized crop (H, W, 3) of a picture, for training; *draws* (4) as in `cut_out`."""
    from PIL import Image

    picture = rgb(image)
    wide, high = cut_out(draws, least, picture.width, picture.height)
    left, top = draws[2] * (1 - wide) * picture.width, draws[3] * (1 - high) * picture.height
    box = (left, top, left + wide * picture.width, top + high * picture.height)
    box = (box[0], box[1], min(float(box[2]), picture.width), min(float(box[3]), picture.height))
    method = Image.Resampling[preprocess.interpolation.upper()]
    return np.asarray(picture.resize((preprocess.width, preprocess.height), method, box=box))


def _inside(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same aspect ratio inside *limit*, at least 1 pixel either way."""
    width, height = size
    if limit[0] * height <= limit[1] * width:
        return limit[0], max(1, round(limit[0] * height / width))
    return max(1, round(limit[1] * width / height)), limit[1]


def load_pixels(path: Path, preprocess: Preprocess) -> Pixels:
    """The pixels (H, W, 3) of an image file. Raises OSError or ValueError when it cannot be read."""
    return pixels(load_image(path), preprocess)


def load_image(path: Path, *, coarse: bool = False) -> "Image":
    """The picture in an image file, whole; *coarse* gives a JPEG at an eighth of its size, much sooner.

    Raises OSError or ValueError when the file cannot be read: whatever Pillow raises becomes one of them.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if coarse:
                image.draft(None, (1, 1))
            image.load()
            return image
    except UnidentifiedImageError as error:
        raise OSError("not an image that Pillow knows") from error
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise OSError(f"damaged: {error}") from error


def normalized(pixels_NHWC: Pixels, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """The network's own input as float32 NHWC, for models that do not normalise inside their graph."""
    x: Any = pixels_NHWC[..., ::-1] if preprocess.channel_order == "BGR" else pixels_NHWC
    mean, std = (np.asarray(v, np.float32) * 255 for v in (preprocess.mean, preprocess.std))
    return (x.astype(np.float32) - mean) / std  # type: ignore[no-any-return]
