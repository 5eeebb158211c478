"""MobileNetV1: https://arxiv.org/abs/1704.04861."""

from typing import NamedTuple

from torch import Tensor, nn

from edgekit.models.blocks import ConvNormAct, Style, initialize_, make_divisible, strides
from edgekit.recipe import Activation, Padding


class Row(NamedTuple):
    """A depthwise 3x3 convolution with stride *s* and the pointwise one after it, which gives *c* channels."""

    c: int
    s: int


# Table 1 of the paper, two of its rows in one. The last depthwise row says stride 2 there, with input and
# output of 7 x 7 pixels: a slip, stride 1 is meant, and the authors' code has it so.
TABLE_1 = (
    Row(c=64, s=1),
    Row(c=128, s=2),
    Row(c=128, s=1),
    Row(c=256, s=2),
    Row(c=256, s=1),
    Row(c=512, s=2),
    Row(c=512, s=1),
    Row(c=512, s=1),
    Row(c=512, s=1),
    Row(c=512, s=1),
    Row(c=512, s=1),
    Row(c=1024, s=2),
    Row(c=1024, s=1),
)
STEM = 32


class DepthwiseSeparable(nn.Module):
    """Filter each channel by 3x3, then mix them: figure 3 of the paper. (N, in, H, W) to (N, out, H/s, W/s)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, act: Activation, style: Style) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNormAct(channels_in, channels_in, 3, stride, groups=channels_in, act=act, style=style),
            ConvNormAct(channels_in, channels_out, act=act, style=style),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class MobileNetV1(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes). *stem_stride* and *stage_stride* 1 suit 32 to 64 pixels.

    The paper says ReLU; its authors' code and both published sets of weights have ReLU6, the default here.
    """

    def __init__(
        self,
        classes: int,
        width: float = 1.0,
        stem_stride: int = 2,
        stage_stride: int = 2,
        dropout: float = 0.001,
        activation: Activation = "relu6",
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        style = Style(padding)
        channels = make_divisible(STEM * width)
        layers: list[nn.Module] = [ConvNormAct(3, channels, 3, stem_stride, act=activation, style=style)]
        for row, stride in zip(TABLE_1, strides(TABLE_1, stage_stride), strict=True):
            wide = make_divisible(row.c * width)
            layers.append(DepthwiseSeparable(channels, wide, stride, activation, style))
            channels = wide
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.pool(self.features(x)).flatten(1)))
        return logits
