"""ResNet-18 for images of 32 pixels: torchvision's, with a 3x3 stem of stride 1 and no pooling after it.

The yardstick of the CIFAR-10 recipes, trained by their schedule, from the repository's root:

    edgekit train benchmarks/resnet18_cifar10.toml --data DIR

Source of the network: https://arxiv.org/abs/1512.03385, table 1; of the stem: section 4.2, as most code for
CIFAR-10 has it.
"""

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


def resnet18(classes: int) -> nn.Module:
    model: nn.Module = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as ResNet has it
    model.maxpool = nn.Identity()
    return model
