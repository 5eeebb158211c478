"""The one contract between training images and device pixels, and its one implementation (Pillow).

Shapes: H height, W width, N images; pixels are uint8 RGB, NHWC or HWC.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.schema import Between

if TYPE_CHECKING:
    from PIL.Image import Image

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
}


def preset(name: str, height: int, width: int) -> Preprocess:
    return replace(PRESETS[name], height=height, width=width)


def rgb(image: "Image") -> "Image":
    """The picture as a viewer shows it: EXIF rotation applied, 8-bit RGB, transparency on white.

    16-bit grey is scaled to 8 bits (Pillow alone would clip it); palettes and CMYK are converted.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey opens as I;16, I or F
        values = np.asarray(image, dtype=np.float64)
        scale = 1.0 if values.max(initial=0) <= 255 and image.mode == "F" else 257.0
        image = Image.fromarray(np.clip(np.rint(values / scale), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pixels(image: "Image", preprocess: Preprocess) -> Pixels:
    """The picture's pixels (H, W, 3), uint8 RGB, at the contract's size."""
    from PIL import Image, ImageOps

    p, picture = preprocess, rgb(image)
    size = (p.width, p.height)
    method = Image.Resampling[p.interpolation.upper()]
    if p.resize == "squash":
        picture = picture.resize(size, method)
    elif p.resize == "pad":
        picture = ImageOps.pad(picture, size, method, color="black")
    else:
        outer_width, outer_height = round(p.width / p.crop_fraction), round(p.height / p.crop_fraction)
        scale = max(outer_width / picture.width, outer_height / picture.height)
        wanted = (max(p.width, round(picture.width * scale)), max(p.height, round(picture.height * scale)))
        if picture.size != wanted:
            picture = picture.resize(wanted, method)
        left, top = (picture.width - p.width) // 2, (picture.height - p.height) // 2
        picture = picture.crop((left, top, left + p.width, top + p.height))
    return np.asarray(picture)


def load_pixels(path: Path, preprocess: Preprocess) -> Pixels:
    """The pixels (H, W, 3) of an image file. Raises OSError or ValueError when it cannot be read."""
    from PIL import Image

    with Image.open(path) as image:
        return pixels(image, preprocess)


def normalized(pixels_NHWC: Pixels, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """The network's own input as float32 NHWC, for models that do not normalise inside their graph."""
    x: Any = pixels_NHWC[..., ::-1] if preprocess.channel_order == "BGR" else pixels_NHWC
    mean, std = (np.asarray(v, np.float32) * 255 for v in (preprocess.mean, preprocess.std))
    return (x.astype(np.float32) - mean) / std  # type: ignore[no-any-return]
