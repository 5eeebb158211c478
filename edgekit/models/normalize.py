"""Normalisation as a layer, so that training and every exported graph share one."""

import torch
from torch import Tensor, nn

from edgekit.preprocess import Preprocess


class Normalize(nn.Module):
    """Pixels (N, 3, H, W), RGB, uint8 or float from 0 to 255, to the network's input in float32.

    The constants are part of the contract and not of the weights: they stay out of the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.bgr = preprocess.channel_order == "BGR"
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).mul(255).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        x = pixels_NCHW.to(self.mean.dtype)
        if self.bgr:  # slices, because not every converter knows a flip of channels
            x = torch.cat([x[:, 2:3], x[:, 1:2], x[:, 0:1]], dim=1)
        return (x - self.mean) / self.std
