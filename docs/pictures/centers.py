"""Draw centers.png: what the cells in the middle of a map look at, and where RoI Align assumes that they look.

    python docs/pictures/centers.py

Prints the measured offsets, too. Weights are random, so this needs no download.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from roialign_cli.backbones import Backbone, load_backbone
from roialign_cli.config import Settings

BACKBONES = {  # with the layers that are listed; the last one is drawn, if the backbone is
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
    "mobilenet_v3_large": (),
    "squeezenet1_0": ("features.3", "features.7", "features.12"),
    "convnext_tiny": (),
    "swin_t": (),
    "vit_b_16": (),
}
DRAWN = ("resnet18", "squeezenet1_0", "convnext_tiny")
SIDE, IMAGES, AROUND = 512, 16, 96  # pixels; images of noise; pixels that are drawn on each side
BLUE, ORANGE = "#4878a8", "#c8641a"


def sensitivity(backbone: Backbone) -> tuple[Tensor, int]:
    """Return the mean |gradient| [H, W] of the cell at or before the middle of the last layer's map, and the cell."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(SIDE, SIDE)
    for _ in range(IMAGES):
        image = torch.randn(1, 3, SIDE, SIDE, generator=generator).requires_grad_()
        features = backbone(image)[-1][0]
        assert features is not None
        cell = (features.shape[2] - 1) // 2
        signs = torch.randn(features.shape[1], generator=generator)
        (gradient,) = torch.autograd.grad((features[0, :, cell, cell] * signs).sum(), image)
        total += gradient[0].abs().sum(0)
    return total / IMAGES, cell


def main() -> None:
    """Draw the picture."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = dict(zip(DRAWN, figure.subplots(1, len(DRAWN)), strict=True))
    for name, layers in BACKBONES.items():
        backbone = load_backbone(Settings(backbone=name, weights="random:0", layers=layers, centers="measured"))
        for layer in backbone.layers:
            print(name, layer.name, layer.strides[0], *layer.offsets[0])
        if name not in panels:
            continue
        weight, cell = sensitivity(backbone)
        layer = backbone.layers[-1]
        assumed = layer.strides[0] * (cell + 0.5)
        x, y = (assumed + offset for offset in layer.offsets[0])
        axes = panels[name]
        axes.imshow(weight, extent=(0, SIDE, SIDE, 0), cmap="Greys")
        axes.plot(assumed, assumed, "x", color=ORANGE, markersize=10, markeredgewidth=2.5, label="assumed")
        axes.plot(x, y, "o", color=BLUE, markersize=7, label="measured")
        axes.set_xlim(assumed - AROUND, assumed + AROUND)
        axes.set_ylim(assumed + AROUND, assumed - AROUND)
        axes.set_title(f"{name}, {layer.name}, stride {layer.strides[0]}", fontsize=9)
        axes.tick_params(labelsize=7)
    panels[DRAWN[0]].legend(fontsize=8)
    panels[DRAWN[0]].set_ylabel("pixels of the network input", fontsize=8)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
