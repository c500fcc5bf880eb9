"""Run one image through the backbone: the maps of each layer, and the image's boxes as RoIs on them."""

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
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.regions.resize import resized
from roialign_cli.regions.rois import batch_rois, roi_levels


@dataclass(frozen=True)
class LayerView:
    """The maps of one layer for one image, and K boxes on them.

    rois [K, 5] are in pixels of the network input; levels [K], or None where the layer has one map. `zoom` (y, x) is the
    number of pixels of the network input per pixel of the original image.
    """

    maps: Levels
    layer: Layer
    rois: Tensor
    levels: Tensor | None
    zoom: tuple[float, float]

    def shifted(self, pixels: float) -> Tensor:
        """Return the RoIs [K, 5] moved right and down by a number of pixels of the original image."""
        y, x = (pixels * factor for factor in self.zoom)
        return self.rois + self.rois.new_tensor([0, x, y, x, y])

    def map_of(self, box: int) -> tuple[Tensor, int]:
        """Return the map [1, C, H, W] that a box is pooled from, and its stride."""
        level = 0 if self.levels is None else int(self.levels[box])
        features = self.maps[level]
        assert features is not None
        return features, self.layer.strides[level]


def make_layer_views(
    pixels: npt.NDArray[np.uint8], boxes: Floats, backbone: Backbone, settings: Settings, device: torch.device
) -> list[LayerView]:
    """Return a view for each layer of the boxes [K, 4] of an upright image [H, W, 3]; all maps are computed whole.

    The backbone must be on the device already.
    """
    size = (pixels.shape[0], pixels.shape[1])
    target = resized(size, backbone.preprocessing.resize)
    rois = batch_rois([boxes], size, target)
    with torch.inference_mode():
        maps = backbone(prepare([pixels], backbone.preprocessing, device), settings.precision)
    zoom = (target[0] / size[0], target[1] / size[1])
    return [
        LayerView(layer_maps, layer, rois, roi_levels(rois, layer, settings), zoom)
        for layer_maps, layer in zip(maps, backbone.layers, strict=True)
    ]
