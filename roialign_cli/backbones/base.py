"""What every backbone is: a model with named layers of known strides, and the preprocessing it wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roialign_cli.backbones.optimize import OnDemand
from roialign_cli.config import Settings, parse_resize

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

    def to(self, device: torch.device) -> None:
        """Move the model, in channels-last format, and the head to a device."""
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.head is not None:
            self.head.to(device)

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


@dataclass(frozen=True)
class Layer:
    """One tapped layer: a single map, or the levels of a pyramid, finest first."""

    name: str
    channels: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone wants its images: [0, 1] RGB resized, normalised, zero-padded to a multiple of `multiple` pixels.

    resize is (short side, longest side or None) or None for the image's own size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: tuple[int, int | None] | None = None
    antialias: bool = True
    multiple: int = 1
