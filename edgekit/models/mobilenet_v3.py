"""MobileNetV3, large and small: https://arxiv.org/abs/1905.02244."""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from edgekit.models import blocks
from edgekit.models.blocks import ConvNormAct, InvertedResidual, SqueezeExcite, Style, make_divisible
from edgekit.recipe import Activation, Padding


class Row(NamedTuple):
    """One block: kernel *k*, *exp* hidden and *out* output channels, squeeze-excite, h-swish or ReLU, stride."""

    k: int
    exp: int
    out: int
    se: bool
    nl: Literal["HS", "RE"]
    s: int


# Table 1 of the paper, its bneck rows.
TABLE_1 = (
    Row(k=3, exp=16, out=16, se=False, nl="RE", s=1),
    Row(k=3, exp=64, out=24, se=False, nl="RE", s=2),
    Row(k=3, exp=72, out=24, se=False, nl="RE", s=1),
    Row(k=5, exp=72, out=40, se=True, nl="RE", s=2),
    Row(k=5, exp=120, out=40, se=True, nl="RE", s=1),
    Row(k=5, exp=120, out=40, se=True, nl="RE", s=1),
    Row(k=3, exp=240, out=80, se=False, nl="HS", s=2),
    Row(k=3, exp=200, out=80, se=False, nl="HS", s=1),
    Row(k=3, exp=184, out=80, se=False, nl="HS", s=1),
    Row(k=3, exp=184, out=80, se=False, nl="HS", s=1),
    Row(k=3, exp=480, out=112, se=True, nl="HS", s=1),
    Row(k=3, exp=672, out=112, se=True, nl="HS", s=1),
    Row(k=5, exp=672, out=160, se=True, nl="HS", s=2),
    Row(k=5, exp=960, out=160, se=True, nl="HS", s=1),
    Row(k=5, exp=960, out=160, se=True, nl="HS", s=1),
)
# Table 2 of the paper, its bneck rows.
TABLE_2 = (
    Row(k=3, exp=16, out=16, se=True, nl="RE", s=2),
    Row(k=3, exp=72, out=24, se=False, nl="RE", s=2),
    Row(k=3, exp=88, out=24, se=False, nl="RE", s=1),
    Row(k=5, exp=96, out=40, se=True, nl="HS", s=2),
    Row(k=5, exp=240, out=40, se=True, nl="HS", s=1),
    Row(k=5, exp=240, out=40, se=True, nl="HS", s=1),
    Row(k=5, exp=120, out=48, se=True, nl="HS", s=1),
    Row(k=5, exp=144, out=48, se=True, nl="HS", s=1),
    Row(k=5, exp=288, out=96, se=True, nl="HS", s=2),
    Row(k=5, exp=576, out=96, se=True, nl="HS", s=1),
    Row(k=5, exp=576, out=96, se=True, nl="HS", s=1),
)


class Form(NamedTuple):
    """The table, and the channels of its last convolution, before pooling, and first linear layer, after it."""

    rows: tuple[Row, ...]
    last: int
    head: int


FORMS = {"large": Form(TABLE_1, last=960, head=1280), "small": Form(TABLE_2, last=576, head=1024)}
STEM = 16


class MobileNetV3(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes). *stem_stride* and *stage_stride* 1 suit 32 to 64 pixels.

    *activation* takes the place of h-swish. *minimalistic*: no squeeze-excite, ReLU and 3x3 everywhere, as
    https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/README.md has it. The
    head keeps its channels for widths below 1, as in the authors' code; batch norm as there, too.
    """

    def __init__(
        self,
        classes: int,
        form: Literal["large", "small"] = "large",
        minimalistic: bool = False,
        width: float = 1.0,
        stem_stride: int = 2,
        stage_stride: int = 2,
        dropout: float = 0.2,
        activation: Activation | None = None,
        squeeze_excite: bool | None = None,
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        table = FORMS[form]
        act = activation or ("relu" if minimalistic else "hswish")
        squeeze_excite = not minimalistic if squeeze_excite is None else squeeze_excite
        style = Style(padding, norm_eps=1e-3, norm_momentum=0.01)
        channels, unscaled = make_divisible(STEM * width), STEM
        layers: list[nn.Module] = [ConvNormAct(3, channels, 3, stem_stride, act=act, style=style)]
        for row, stride in zip(table.rows, blocks.strides(table.rows, stage_stride), strict=True):
            # As in the authors' code the expansion is a factor of the channels after rounding.
            wide, hidden = make_divisible(row.out * width), make_divisible(channels * row.exp / unscaled)
            layers.append(
                InvertedResidual(
                    channels,
                    wide,
                    stride,
                    hidden,
                    kernel=3 if minimalistic else row.k,
                    act=act if row.nl == "HS" else "relu",
                    squeeze=_squeeze(hidden) if row.se and squeeze_excite else None,
                    style=style,
                )
            )
            channels, unscaled = wide, row.out
        last, head = make_divisible(table.last * width), make_divisible(table.head * max(1.0, width))
        layers.append(ConvNormAct(channels, last, act=act, style=style))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(last, head)
        self.act = blocks.activation(act)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, classes)
        blocks.initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.hidden(self.pool(self.features(x)).flatten(1)))
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits


def _squeeze(hidden: int) -> SqueezeExcite:
    """Section 5.3 of the paper: a quarter of the hidden channels, and a hard sigmoid."""
    return SqueezeExcite(hidden, make_divisible(hidden // 4), act="relu", gate="hsigmoid")
