"""The common form of all backbones: a model with named layers of known strides, and the preprocessing it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roialign_cli.backbones.optimize import OnDemand
from roialign_cli.config import Resize, Settings, parse_resize
from roialign_cli.system.devices import pooling_device

Levels = tuple[Tensor | None, ...]  # one map [N, C, H, W] per level, or None if it was not requested
Maps = tuple[Levels, ...]  # one entry per layer
# Per layer, for each level that any RoI reads: rectangles of cells [k, 5] as (image, first row, first column, last row,
# last column).
Reads = Sequence[Mapping[int, Tensor]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1], as in torchvision's ImageNet transforms
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Layer:
    """A layer whose maps are extracted: a single map, or the levels of a pyramid, finest first."""

    name: str
    channels: int
    strides: tuple[int, ...]  # image pixels per map cell, one per level
    # Of each level: pixels (x, y) by which cell (i, j) looks beside stride * (i + 0.5, j + 0.5); empty if not measured.
    offsets: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Preprocessing:
    """How to prepare images for a backbone: RGB in [0, 1], resized, then (x - mean) / std, then padded with zeros."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize = None
    antialias: bool = True
    multiple: int = 1  # pixels; height and width are padded to multiples of it


@dataclass(frozen=True)
class Backbone:
    """A loaded model, from preprocessed images [N, 3, H, W] to one tuple of level maps per layer."""

    name: str
    model: nn.Module
    layers: tuple[Layer, ...]
    preprocessing: Preprocessing
    weights: str
    weights_sha256: str
    head: nn.Module | None = None  # maps region features [K, C, PH, PW] to vectors [K, head_channels]
    head_channels: int = 0
    deform: nn.Module | None = None  # maps region features to offsets of their bins, see `backbones.deform`
    deform_sha256: str = ""

    def to(self, device: torch.device) -> None:
        """Move the model, as channels-last, to a device, and heads, if there are some, to where its maps are pooled."""
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        for head in (self.head, self.deform):
            if head is not None:
                head.to(pooling_device(device))

    def __call__(self, images: Tensor, precision: str = "float32", reads: Reads | None = None) -> Maps:
        """Return the maps of every layer, levels finest first; with `reads`, only what those rectangles need.

        `precision` says how convolutions and matrix products are computed: float32 exactly so, tf32, or as a dtype of autocast.
        The maps are on the device that pools them.
        """
        maps = self._compute(images, precision, reads)
        device = pooling_device(images.device)
        if device == images.device:
            return maps
        return tuple(tuple(m if m is None else m.to(device) for m in levels) for levels in maps)

    def _compute(self, images: Tensor, precision: str, reads: Reads | None) -> Maps:
        """Return the maps, on the device of the images."""
        dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
        autocast = torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)
        with autocast, float32_products(tf32=precision == "tf32"):
            if not isinstance(self.model, OnDemand):  # one map per layer
                maps = self.model(images)
                return tuple((features,) for features in (maps if isinstance(maps, list) else [maps]))
            names = iter(self.model.names)
            names_by_layer = [[next(names) for _ in layer.strides] for layer in self.layers]
            reads_by_name = None
            if reads is not None:
                reads_by_name = {
                    level_names[level]: cells
                    for level_names, layer_reads in zip(names_by_layer, reads, strict=True)
                    for level, cells in layer_reads.items()
                }
            maps_by_name = self.model(images, reads_by_name)
        return tuple(tuple(maps_by_name.get(name) for name in level_names) for level_names in names_by_layer)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Let CUDA compute float32 convolutions and matrix products as TF32, or not, which torch allows convolutions by default."""
    places: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def resolve_resize(settings: Settings, default: Resize) -> Resize:
    """Return the resize that the settings ask for, or the backbone's default."""
    return default if settings.resize == "backbone" else parse_resize(settings.resize)
