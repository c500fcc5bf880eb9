"""What every backbone is: a model with named layers of known strides, and the preprocessing it wants."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roialign_cli.backbones.optimize import OnDemand
from roialign_cli.config import Settings, parse_resize
from roialign_cli.errors import BackboneError
from roialign_cli.structures import Layer, Preprocessing

Levels = tuple[Tensor | None, ...]  # one map [N, C, H, W] per level; None: not asked for
Maps = tuple[Levels, ...]  # one entry per layer
# Per layer, of each level that is read at all: rectangles [k, 5] of cells (image, first row, column, last row, column).
Reads = Sequence[Mapping[int, Tensor]]


@dataclass(frozen=True)
class Backbone:
    """A ready model: images [N, 3, H, W], preprocessed, to one tuple of level maps per layer."""

    name: str
    model: nn.Module
    layers: tuple[Layer, ...]
    preprocessing: Preprocessing
    weights: str
    weights_sha256: str
    head: nn.Module | None = None  # region features [K, C, PH, PW] to vectors [K, head_channels]
    head_channels: int = 0

    def row_shape(self, layer: Layer, bins: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is stored of a box on a layer."""
        return (self.head_channels,) if self.head is not None else (layer.channels, *bins)

    def __call__(self, images: Tensor, precision: str = "float32", reads: Reads | None = None) -> Maps:
        """The maps of every layer, levels finest first; of each no more than is read, if `reads` says what is.

        `precision` names the type that convolutions and products are computed in.
        """
        kind = getattr(torch, precision)
        with torch.autocast(images.device.type, kind, enabled=kind != torch.float32):
            if not isinstance(self.model, OnDemand):  # one map per layer
                maps = self.model(images)
                return tuple((features,) for features in (maps if isinstance(maps, list) else [maps]))
            names = iter(self.model.names)
            grouped = [[next(names) for _ in layer.strides] for layer in self.layers]
            wanted = None
            if reads is not None:
                wanted = {
                    group[level]: cells for group, of in zip(grouped, reads, strict=True) for level, cells in of.items()
                }
            named = self.model(images, wanted)
        return tuple(tuple(named.get(name) for name in group) for group in grouped)


def chosen_resize(settings: Settings, own: tuple[int, int | None] | None) -> tuple[int, int | None] | None:
    """What --resize says, or the backbone's own choice."""
    return own if settings.resize == "backbone" else parse_resize(settings.resize)


def measure(model: nn.Module, multiple: int) -> dict[str, tuple[int, int] | None]:
    """(channels, stride) of each output of a model that returns a dict; None for outputs that are not maps.

    The stride is how much the input must grow for the map to grow by one cell, read off two sizes on the meta device,
    where nothing is computed; padding, which misleads a single quotient, cancels out.
    """
    small, large = (-(-size // multiple) * multiple for size in (512, 1024))
    shadow = copy.deepcopy(model).eval().to("meta")  # a copied graph has forgotten its mode
    with torch.inference_mode():
        first, second = (shadow(torch.empty(1, 3, size, size, device="meta")) for size in (small, large))
    found: dict[str, tuple[int, int] | None] = {}
    for name in first:
        is_map = isinstance(first[name], Tensor) and first[name].dim() == 4  # a graph has nodes of sizes, too
        grown = second[name].shape[-1] - first[name].shape[-1] if is_map else 0
        found[name] = (int(first[name].shape[1]), round((large - small) / grown)) if grown > 0 else None
    return found


def measure_maps(model: nn.Module, multiple: int) -> dict[str, tuple[int, int]]:
    """The same; BackboneError if an output is not a map."""
    found = measure(model, multiple)
    maps = {name: size for name, size in found.items() if size is not None}
    for name in found:
        if name not in maps:
            message = f"layer {name}: expected a map [N, C, H, W] that grows with the image, found another output"
            raise BackboneError("layer-not-spatial", message, "choose an earlier layer")
    return maps
