"""What can be wrong with calibration images: errors where they cannot set ranges, doubts where they mislead."""

from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import DataError
from edgekit.preprocess import Pixels

if TYPE_CHECKING:
    from edgekit.export import CalibrationImages

LEAST, ENOUGH = 2, 200
NAMED = 5


def check(pixels_NHWC: Pixels) -> None:
    """Raises DataError for images that cannot set ranges."""
    count = len(pixels_NHWC)
    if count < LEAST:
        raise DataError(f"calibration needs at least {LEAST} images, better {ENOUGH} or more; got {count}")
    if _plain(pixels_NHWC) == count:
        raise DataError(f"each of the {count} calibration images is of one colour: they cannot set ranges")
    if (pixels_NHWC[1:] == pixels_NHWC[0]).all():
        raise DataError(f"all {count} calibration images are the same: they cannot set ranges")


def doubts(images: "CalibrationImages") -> tuple[str, ...]:
    """What the user should know of images that did set ranges."""
    found, count = [], len(images.pixels_NHWC)
    if count < ENOUGH:
        found.append(f"calibrated on {count} images only: with fewer than {ENOUGH} ranges are uncertain")
    if plain := _plain(images.pixels_NHWC):
        found.append(f"{plain} of {count} calibration images are of one colour")
    if images.lacking:
        found.append(
            f"the calibration images show nothing of {len(images.lacking)} of the classes: those of "
            f"{_first(images.lacking)}"
        )
    if images.absent:
        absent = len(images.absent)
        found.append(f"there is no calibration image of {absent} of the model's classes: {_first(images.absent)}")
    return tuple(found)


def _first(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _plain(pixels_NHWC: Pixels) -> int:
    """How many images are of one colour all over."""
    return sum(bool(np.ptp(image, axis=(0, 1)).max() == 0) for image in pixels_NHWC)
