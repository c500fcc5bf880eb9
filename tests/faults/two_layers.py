"""Define a small backbone of two layers for the disturbed runs: fixed random convolutions, no weights to load."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoLayers(nn.Module):
    """Compute maps of 32 and 8 channels at strides 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fine = nn.Parameter(torch.randn(32, 3, 8, 8, generator=generator) / 14, requires_grad=False)
        self.coarse = nn.Parameter(torch.randn(8, 32, 2, 2, generator=generator) / 11, requires_grad=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = nn.functional.conv2d(images, self.fine, stride=8)
        return {"fine": fine, "coarse": nn.functional.conv2d(fine, self.coarse, stride=2)}


def make_model() -> nn.Module:
    """Return the model, as `--backbone faults.two_layers:make_model` asks for."""
    return TwoLayers()
