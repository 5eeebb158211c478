"""The three steps in one call."""

import torch
from torch import nn

from edgekit.lower import passes, write
from edgekit.lower.read import read


def lower(model: nn.Module, shape_NHWC: tuple[int, int, int, int]) -> bytes:
    """A float32 TFLite file of *model*, which takes (N, C, H, W); the file takes (N, H, W, C).

    Raises UnknownOperator, or what torch.export raises for a model that it cannot trace.
    """
    batch, height, width, channels = shape_NHWC
    example = torch.zeros(batch, channels, height, width)
    graph = read(torch.export.export(model.eval(), (example,)))
    passes.run_(graph)
    return write.to_bytes(graph)
