"""Layers that the architectures share, each once.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.recipe import Activation, Padding


class Style(NamedTuple):
    """What all layers of one network have in common.

    *padding*: ``symmetric`` (k // 2 on each side) as torchvision pads, or ``same``, which is TensorFlow's rule.
    """

    padding: Padding = "symmetric"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1


PLAIN = Style()


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of *divisor* nearest to *channels*, never more than 10 % below it.

    Source: https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/mobilenet.py
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class Strided(Protocol):
    """A row of an architecture's table."""

    @property
    def s(self) -> int: ...


def strides(table: Sequence[Strided], first: int) -> list[int]:
    """The stride of each row; the first one that halves the image after the stem has *first* instead."""
    halving = next(number for number, row in enumerate(table) if row.s == 2)
    return [first if number == halving else row.s for number, row in enumerate(table)]


def activation(name: Activation) -> nn.Module:
    """The non-linearity of that name, in place."""
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "relu6":
            return nn.ReLU6(inplace=True)
        case "hswish":  # x * ReLU6(x + 3) / 6: https://arxiv.org/abs/1905.02244, section 5.2
            return nn.Hardswish(inplace=True)
        case "silu":  # x * sigmoid(x), "swish": https://arxiv.org/abs/1710.05941
            return nn.SiLU(inplace=True)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's ``SAME``: outputs of ceil(H / stride), the odd row and column last.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    """

    def forward(self, input: Tensor) -> Tensor:
        sides: list[int] = []  # left, right, top, bottom
        for length, kernel, stride in zip(
            input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max(0, (-(-length // stride) - 1) * stride + kernel - length)
            sides += [total // 2, total - total // 2]
        return super().forward(F.pad(input, sides))


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, and *act* unless it is None. (N, in, H, W) to (N, out, H/s, W/s)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: Activation | None = "relu6",
        style: Style = PLAIN,
    ) -> None:
        # Both rules are one where the stride is 1, and then the convolution pads by itself.
        same = style.padding == "same" and stride > 1
        convolution, padding = (SameConv2d, 0) if same else (nn.Conv2d, kernel // 2)
        layers: list[nn.Module] = [
            convolution(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(channels_out, eps=style.norm_eps, momentum=style.norm_momentum),
        ]
        if act:
            layers.append(activation(act))
        super().__init__(*layers)


class SqueezeExcite(nn.Module):
    """Each channel (N, C, H, W) scaled by what a small network of the channels' means says: the same shape.

    Source: https://arxiv.org/abs/1709.01507, figure 2. The gate is sigmoid, or MobileNetV3's hard sigmoid.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        act: Activation = "relu",
        gate: Literal["sigmoid", "hsigmoid"] = "sigmoid",
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = activation(act)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid() if gate == "sigmoid" else nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        return x * scale


class StochasticDepth(nn.Module):
    """In training each image's branch is dropped with probability *drop*, and the others scaled to make up for it.

    Source: https://arxiv.org/abs/1603.09382, section 3.
    """

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        keep = 1 - self.drop
        return x * torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"drop={self.drop:g}"


class InvertedResidual(nn.Module):
    """Expand to *hidden* channels, filter each, gate by *squeeze*, project linearly; a skip where shapes allow.

    Sources: https://arxiv.org/abs/1801.04381, figure 4d and table 1; https://arxiv.org/abs/1905.02244, figure 4.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        hidden: int,
        kernel: int = 3,
        act: Activation = "relu6",
        squeeze: SqueezeExcite | None = None,
        drop: float = 0.0,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != channels_in:
            layers.append(ConvNormAct(channels_in, hidden, act=act, style=style))
        layers.append(ConvNormAct(hidden, hidden, kernel, stride, groups=hidden, act=act, style=style))
        if squeeze:
            layers.append(squeeze)
        layers.append(ConvNormAct(hidden, channels_out, act=None, style=style))
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and channels_in == channels_out
        self.drop = StochasticDepth(drop if self.skip else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.layers(x))
        return x + y if self.skip else y


def initialize_(model: nn.Module) -> None:
    """Set the weights in place: convolutions by He's rule over the fan out, linear layers with std 0.01.

    Source: https://arxiv.org/abs/1502.01852, equation 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
