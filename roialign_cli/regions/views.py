"""Run one image through the backbone: the maps of each layer, and the image's regions on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from roialign_cli.backbones import Backbone
from roialign_cli.backbones.base import Layer, Levels
from roialign_cli.config import Settings
from roialign_cli.regions.levels import region_levels
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.regions.regions import Regions, batch_regions
from roialign_cli.regions.resize import resized
from roialign_cli.types import BoxTable


@dataclass(frozen=True)
class LayerView:
    """The maps of one layer for one image, and K regions on them.

    Regions are in pixels of the network input; levels [K], or None where the layer has one map. `zoom` (y, x) is the number of
    pixels of the network input per pixel of the original image.
    """

    maps: Levels
    layer: Layer
    regions: Regions
    levels: Tensor | None
    zoom: tuple[float, float]
    deform: nn.Module | None = None  # a head that moves bins

    def __getitem__(self, rows: Any) -> LayerView:
        """Return a view of some of the regions: of a slice, a mask [K] or indices, which may repeat."""
        return replace(self, regions=self.regions[rows], levels=None if self.levels is None else self.levels[rows])

    def shifted(self, pixels: float) -> Regions:
        """Return the regions moved right and down by a number of pixels of the original image."""
        y, x = (pixels * factor for factor in self.zoom)
        return self.regions.moved(torch.tensor([[x, y]], dtype=torch.float64).expand(len(self.regions), 2))

    def map_of(self, region: int) -> tuple[Tensor, int]:
        """Return the map [1, C, H, W] that a region is pooled from, and its stride."""
        level = 0 if self.levels is None else int(self.levels[region])
        features = self.maps[level]
        assert features is not None
        return features, self.layer.strides[level]


def make_layer_views(
    pixels: npt.NDArray[np.uint8],
    table: BoxTable,
    image: int,
    backbone: Backbone,
    settings: Settings,
    device: torch.device,
) -> list[LayerView]:
    """Return a view for each layer of the regions of an image, upright pixels [H, W, 3]; all maps are computed whole.

    `table` has them in pixels. The backbone must be on the device already.
    """
    size = (pixels.shape[0], pixels.shape[1])
    target = resized(size, backbone.preprocessing.resize)
    regions = batch_regions(table, [image], size, target)
    with torch.inference_mode():
        maps = backbone(prepare([pixels], backbone.preprocessing, device), settings.precision)
    zoom = (target[0] / size[0], target[1] / size[1])
    return [
        LayerView(layer_maps, layer, regions, region_levels(regions, layer, settings), zoom, backbone.deform)
        for layer_maps, layer in zip(maps, backbone.layers, strict=True)
    ]
