"""The three steps in one call."""

import torch
from torch import nn

from edgekit.lower import blame, passes, write
from edgekit.lower.read import read


def lower(model: nn.Module, shape_NHWC: tuple[int, int, int, int]) -> bytes:
    """A float32 TFLite file of *model*, which takes (N, C, H, W); the file takes (N, H, W, C).

    Raises UnknownOperator, or ConversionError for a model that torch.export cannot trace.
    """
    batch, height, width, channels = shape_NHWC
    example = torch.zeros(batch, channels, height, width)
    try:
        program = torch.export.export(model.eval(), (example,))
    except Exception as error:  # whatever the model's own code raises, too
        raise blame.untraceable(error, model) from error
    graph = read(program)
    passes.run_(graph)
    return write.to_bytes(graph)
