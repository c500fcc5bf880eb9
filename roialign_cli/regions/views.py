"""One image through the backbone: its maps, and its boxes as RoIs on them, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.arrays import Floats
from roialign_cli.backbones import Backbone
from roialign_cli.backbones.base import Layer, Levels
from roialign_cli.config import Settings
from roialign_cli.regions.preprocessing import prepare, resized
from roialign_cli.regions.rois import roi_levels, scale_boxes


@dataclass(frozen=True)
class LayerView:
    """The maps of one layer and K boxes on them.

    rois [K, 5] in pixels of the network input, levels [K] or None where there is one map; `zoom` is how many pixels of the
    network input one pixel of the original image is, (y, x).
    """

    maps: Levels
    layer: Layer
    rois: Tensor
    levels: Tensor | None
    zoom: tuple[float, float]

    def shifted(self, pixels: float) -> Tensor:
        """The RoIs, moved right and down by so many pixels of the original image."""
        y, x = (pixels * factor for factor in self.zoom)
        return self.rois + self.rois.new_tensor([0, x, y, x, y])

    def level(self, box: int) -> tuple[Tensor, int]:
        """The map [1, C, H, W] that a box is on, and its stride."""
        level = 0 if self.levels is None else int(self.levels[box])
        features = self.maps[level]
        assert features is not None
        return features, self.layer.strides[level]


def make_layer_views(
    pixels: npt.NDArray[np.uint8], boxes: Floats, backbone: Backbone, settings: Settings, device: torch.device
) -> list[LayerView]:
    """Boxes [K, 4] of an upright image [H, W, 3] on all maps of all layers; the model must be on the device."""
    size = (pixels.shape[0], pixels.shape[1])
    target = resized(size, backbone.preprocessing.resize)
    rois = torch.nn.functional.pad(scale_boxes(boxes, size, target), (1, 0))
    with torch.inference_mode():
        maps = backbone(prepare([pixels], backbone.preprocessing, device), settings.precision)
    zoom = (target[0] / size[0], target[1] / size[1])
    return [
        LayerView(of_layer, layer, rois, roi_levels(rois, layer, settings), zoom)
        for of_layer, layer in zip(maps, backbone.layers, strict=True)
    ]
