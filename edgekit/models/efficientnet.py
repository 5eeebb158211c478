"""EfficientNet B0 to B7 and EfficientNet-Lite 0 to 4: https://arxiv.org/abs/1905.11946."""

import math
from typing import NamedTuple

from torch import Tensor, nn

from edgekit.models.blocks import (
    ConvNormAct,
    InvertedResidual,
    SqueezeExcite,
    Style,
    initialize_,
    make_divisible,
    strides,
)
from edgekit.recipe import Activation, Padding


class Row(NamedTuple):
    """*n* MBConv blocks of expansion *t* and kernel *k* with *c* output channels; the first one has stride *s*."""

    t: int
    k: int
    c: int
    n: int
    s: int


# Table 1 of the paper, its MBConv rows. The paper writes a row's stride in the row before: as resolutions.
TABLE_1 = (
    Row(t=1, k=3, c=16, n=1, s=1),
    Row(t=6, k=3, c=24, n=2, s=2),
    Row(t=6, k=5, c=40, n=2, s=2),
    Row(t=6, k=3, c=80, n=3, s=2),
    Row(t=6, k=5, c=112, n=3, s=1),
    Row(t=6, k=5, c=192, n=4, s=2),
    Row(t=6, k=3, c=320, n=1, s=1),
)
STEM, HEAD = 32, 1280
DROP_PATH = 0.2  # section 5.2 of the paper: survival probability 0.8


class Scale(NamedTuple):
    """Compound scaling: all channels times *width*, each row's blocks times *depth*; and what goes with it."""

    width: float
    depth: float
    dropout: float
    norm_eps: float


# Coefficients and dropout of the authors' code:
# https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/efficientnet_builder.py
# https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/efficientnet_lite_builder.py
# They have the batch norm's epsilon 1e-3 everywhere; torchvision trained its B0 to B4 with 1e-5.
SCALES = {
    "b0": Scale(1.0, 1.0, 0.2, 1e-5),
    "b1": Scale(1.0, 1.1, 0.2, 1e-5),
    "b2": Scale(1.1, 1.2, 0.3, 1e-5),
    "b3": Scale(1.2, 1.4, 0.3, 1e-5),
    "b4": Scale(1.4, 1.8, 0.4, 1e-5),
    "b5": Scale(1.6, 2.2, 0.4, 1e-3),
    "b6": Scale(1.8, 2.6, 0.5, 1e-3),
    "b7": Scale(2.0, 3.1, 0.5, 1e-3),
    "lite0": Scale(1.0, 1.0, 0.2, 1e-3),
    "lite1": Scale(1.0, 1.1, 0.2, 1e-3),
    "lite2": Scale(1.1, 1.2, 0.3, 1e-3),
    "lite3": Scale(1.2, 1.4, 0.3, 1e-3),
    "lite4": Scale(1.4, 1.8, 0.3, 1e-3),
}


class EfficientNet(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes). *stem_stride* and *stage_stride* 1 suit 32 to 64 pixels.

    Lite: ReLU6 for swish, no squeeze-excite, the stem and the head as in B0, the first and the last row not
    deepened, TensorFlow's padding:
    https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/README.md.
    *width* comes on top of the scaling. *drop_path* grows from 0 at the first block towards this share.
    """

    def __init__(
        self,
        classes: int,
        scale: str = "b0",
        width: float = 1.0,
        stem_stride: int = 2,
        stage_stride: int = 2,
        dropout: float | None = None,
        drop_path: float = DROP_PATH,
        activation: Activation | None = None,
        squeeze_excite: bool | None = None,
        padding: Padding | None = None,
    ) -> None:
        super().__init__()
        by, lite = SCALES[scale], scale.startswith("lite")
        act = activation or ("relu6" if lite else "silu")
        squeeze_excite = not lite if squeeze_excite is None else squeeze_excite
        padding = padding or ("same" if lite else "symmetric")
        style = Style(padding, by.norm_eps, norm_momentum=0.01 if by.norm_eps > 1e-5 else 0.1)
        ends = width if lite else width * by.width  # of stem and head
        depths = [_depth(row, by.depth, lite) for row in TABLE_1]
        channels = make_divisible(STEM * ends)
        layers: list[nn.Module] = [ConvNormAct(3, channels, 3, stem_stride, act=act, style=style)]
        for row, depth, stride in zip(TABLE_1, depths, strides(TABLE_1, stage_stride), strict=True):
            wide = make_divisible(row.c * width * by.width)
            for block in range(depth):
                hidden = channels * row.t
                layers.append(
                    InvertedResidual(
                        channels,
                        wide,
                        stride if block == 0 else 1,
                        hidden,
                        kernel=row.k,
                        act=act,
                        squeeze=SqueezeExcite(hidden, max(1, channels // 4), act=act) if squeeze_excite else None,
                        drop=drop_path * (len(layers) - 1) / sum(depths),
                        style=style,
                    )
                )
                channels = wide
        head = make_divisible(HEAD * ends)
        layers.append(ConvNormAct(channels, head, act=act, style=style))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(by.dropout if dropout is None else dropout)
        self.classifier = nn.Linear(head, classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.pool(self.features(x)).flatten(1)))
        return logits


def _depth(row: Row, depth: float, lite: bool) -> int:
    return row.n if lite and row in (TABLE_1[0], TABLE_1[-1]) else math.ceil(row.n * depth)
