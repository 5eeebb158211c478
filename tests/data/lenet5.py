"""LeNet-5, an own model in a file: `edgekit convert tests/data/lenet5.py:lenet5 --size 32 ...`."""

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, classes).

    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition,
    Proc. IEEE 86(11), 1998, figure 2. As usual today: grey is the mean of red, green and blue, each map of C3
    sees all of S2, the subsampling is a plain mean, and the output layer is linear.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5),  # C1: 28x28
            nn.Tanh(),
            nn.AvgPool2d(2),  # S2: 14x14
            nn.Conv2d(6, 16, 5),  # C3: 10x10
            nn.Tanh(),
            nn.AvgPool2d(2),  # S4: 5x5
            nn.Conv2d(16, 120, 5),  # C5: 1x1
            nn.Tanh(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(120, 84),  # F6
            nn.Tanh(),
            nn.Linear(84, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(torch.mean(x, dim=1, keepdim=True)))
        return logits


def lenet5(classes: int) -> nn.Module:
    return LeNet5(classes)
