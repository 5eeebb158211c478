"""Layers that several architectures share. Padding is symmetric (k // 2), as in torchvision."""

from torch import Tensor, nn


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of *divisor* nearest to *channels*, never more than 10 % below it.

    Source: https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/mobilenet.py
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, ReLU6 unless *act* is false. (N, in, H, W) to (N, out, H/s, W/s)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(channels_out),
        ]
        if act:
            layers.append(nn.ReLU6(inplace=True))
        super().__init__(*layers)


class InvertedResidual(nn.Module):
    """Expand by *expansion*, filter each channel by 3x3, project linearly; a skip where shapes allow.

    Source: https://arxiv.org/abs/1801.04381, figure 4d and table 1.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormAct(channels_in, hidden))
        layers.append(ConvNormAct(hidden, hidden, kernel=3, stride=stride, groups=hidden))
        layers.append(ConvNormAct(hidden, channels_out, act=False))
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
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
