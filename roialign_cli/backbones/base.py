"""The common form of all backbones: a model with named layers of known strides, and the preprocessing it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from roialign_cli.backbones.optimize import OnDemand
from roialign_cli.config import Resize, Settings, parse_resize
from roialign_cli.system.devices import pooling_device

if TYPE_CHECKING:
    from roialign_cli.backbones.detector import Detections, Detector

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
    detector: Detector | None = None  # finds boxes on the maps

    def to(self, device: torch.device) -> None:
        """Move the model, as channels-last, to a device, and heads, if there are some, to where its maps are pooled."""
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        for head in (self.head, self.deform, self.detector):
            if head is not None:
                head.to(pooling_device(device))

    @property
    def computes_on_demand(self) -> bool:
        """Whether the model computes only what `reads` need; other models compute all of their maps."""
        return isinstance(self.model, OnDemand)

    def __call__(self, images: Tensor, precision: str = "float32", reads: Reads | None = None) -> Maps:
        """Return the maps of every layer, levels finest first; with `reads`, only what those rectangles need.

        `precision` says how convolutions and matrix products are computed: float32 exactly so, tf32, or as a dtype of autocast.
        The maps are on the device that pools them.
        """
        if not isinstance(self.model, OnDemand):  # one map per layer
            with _computed_in(images.device, precision):
                maps = self.model(images)
            return tuple((self._moved(features),) for features in (maps if isinstance(maps, list) else [maps]))
        names = self._names_by_layer()
        reads_by_name = None
        if reads is not None:
            reads_by_name = {
                level_names[level]: cells
                for level_names, layer_reads in zip(names, reads, strict=True)
                for level, cells in layer_reads.items()
            }
        return self._by_layer(self._compute(images, precision, reads_by_name))

    def with_detections(self, images: Tensor, precision: str, size: tuple[int, int]) -> tuple[Maps, list[Detections]]:
        """Return the maps of every layer and what the detector finds on the same maps of each image.

        size: (height, width) of the images in the network input, before padding.
        """
        assert self.detector is not None
        maps = self._compute(images, precision, None)
        with float32_products(tf32=precision == "tf32"):  # the detector computes in float32 in any case
            return self._by_layer(maps), self.detector(images, maps, size)

    def _names_by_layer(self) -> list[list[str]]:
        """Return the model's names of the levels of each layer; maps that only the detector reads come after them."""
        assert isinstance(self.model, OnDemand)
        names = iter(self.model.names)
        return [[next(names) for _ in layer.strides] for layer in self.layers]

    def _by_layer(self, maps: Mapping[str, Tensor]) -> Maps:
        return tuple(tuple(maps.get(name) for name in level_names) for level_names in self._names_by_layer())

    def _compute(self, images: Tensor, precision: str, reads: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return maps by name."""
        with _computed_in(images.device, precision):
            maps = self.model(images, reads)
        return {name: self._moved(features) for name, features in maps.items()}

    def _moved(self, features: Tensor) -> Tensor:
        """Return a map on the device that pools it."""
        return features.to(pooling_device(features.device))


@contextmanager
def _computed_in(device: torch.device, precision: str) -> Iterator[None]:
    """Compute convolutions and matrix products in a precision, see `Backbone.__call__`."""
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), float32_products(tf32=precision == "tf32"):
        yield


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
