"""MobileNetV2: https://arxiv.org/abs/1801.04381."""

from typing import NamedTuple

from torch import Tensor, nn

from edgekit.models.blocks import ConvNormAct, InvertedResidual, Style, initialize_, make_divisible, strides
from edgekit.recipe import Activation, Padding


class Row(NamedTuple):
    """*n* blocks with *c* output channels; the first one has stride *s*; *t* is the expansion."""

    t: int
    c: int
    n: int
    s: int


# Table 2 of the paper, its bottleneck rows. The stem and the head are written out below.
TABLE_2 = (
    Row(t=1, c=16, n=1, s=1),
    Row(t=6, c=24, n=2, s=2),
    Row(t=6, c=32, n=3, s=2),
    Row(t=6, c=64, n=4, s=2),
    Row(t=6, c=96, n=3, s=1),
    Row(t=6, c=160, n=3, s=2),
    Row(t=6, c=320, n=1, s=1),
)
STEM, HEAD = 32, 1280


class MobileNetV2(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes). *stem_stride* and *stage_stride* 1 suit 32 to 64 pixels.

    The head keeps its 1280 channels for widths below 1, as section 6.1 of the paper says.
    """

    def __init__(
        self,
        classes: int,
        width: float = 1.0,
        stem_stride: int = 2,
        stage_stride: int = 2,
        dropout: float = 0.2,
        activation: Activation = "relu6",
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        style = Style(padding)
        channels = make_divisible(STEM * width)
        layers: list[nn.Module] = [ConvNormAct(3, channels, 3, stem_stride, act=activation, style=style)]
        for row, first in zip(TABLE_2, strides(TABLE_2, stage_stride), strict=True):
            wide = make_divisible(row.c * width)
            for block in range(row.n):
                stride, hidden = (first if block == 0 else 1), channels * row.t
                layers.append(InvertedResidual(channels, wide, stride, hidden, act=activation, style=style))
                channels = wide
        head = make_divisible(HEAD * max(1.0, width))
        layers.append(ConvNormAct(channels, head, act=activation, style=style))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.pool(self.features(x)).flatten(1)))
        return logits
