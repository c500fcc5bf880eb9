"""Measure channels and strides of a model's maps by running it at two sizes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from roialign_cli.errors import BackboneError


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
