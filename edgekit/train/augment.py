"""Random changes of a whole batch on the training device.

Shapes: N images, H height, W width; NCHW.
"""

import torch
from torch import Tensor

from edgekit.recipe import AugmentSpec
from edgekit.train.seeds import generator


def augmented(pixels_NCHW: Tensor, spec: AugmentSpec, seed: tuple[object, ...]) -> Tensor:
    """The batch (uint8) as float32 from 0 to 255, each image mirrored, scaled and shifted by chance.

    Every change draws from its own generator: one that is turned off leaves the others as they were. What
    comes in from outside is black. A shift is by whole pixels, so that it alone blurs nothing.
    """
    count, _, height, width = pixels_NCHW.shape
    x = pixels_NCHW.float()
    if not (spec.flip or spec.shift or spec.scale):
        return x
    # Per image: input coordinate = zoom * output coordinate + offset, in units where the image spans -1 to 1.
    zoom_x, offset_x, offset_y = torch.ones(count), torch.zeros(count), torch.zeros(count)
    zoom_y = torch.ones(count)
    if spec.scale:
        zoom = 1 / (1 + spec.scale * _uniform(count, *seed, "scale"))
        zoom_x, zoom_y = zoom_x * zoom, zoom_y * zoom
    if spec.flip:
        zoom_x = zoom_x * _uniform(count, *seed, "flip").sign()
    if spec.shift:
        draws = _uniform(2 * count, *seed, "shift").view(2, count)
        offset_x = torch.round(draws[0] * spec.shift * width) * (2 / width)
        offset_y = torch.round(draws[1] * spec.shift * height) * (2 / height)
    zero = torch.zeros(count)
    rows = [torch.stack([zoom_x, zero, offset_x], 1), torch.stack([zero, zoom_y, offset_y], 1)]
    theta = torch.stack(rows, 1).to(x.device, non_blocking=True)  # (N, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def _uniform(count: int, *seed: object) -> Tensor:
    """Draws from -1 to 1."""
    return torch.rand(count, generator=generator(*seed)) * 2 - 1
