"""Measure channels and strides of a model's maps by running it at two sizes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from roialign_cli.errors import BackboneError

MEASURED_SIDES = (512, 1024)  # pixels: sides of the square images at which strides are measured


def measure_outputs(model: nn.Module, multiple: int) -> dict[str, tuple[int, int] | None]:
    """Return (channels, stride) of each output of a model that returns a dict; None for outputs that are not maps.

    Images are squares whose sides are multiples of `multiple` pixels. The stride is the growth of the image in pixels per
    cell by which the map grows, so that padding, which would distort a single quotient of sizes, cancels out. The model
    runs on the meta device, where nothing is computed.
    """
    small, large = (-(-side // multiple) * multiple for side in MEASURED_SIDES)
    model_copy = copy.deepcopy(model).eval().to("meta")  # copying a traced graph resets its mode to training
    with torch.inference_mode():
        first, second = (model_copy(torch.empty(1, 3, side, side, device="meta")) for side in (small, large))
    found: dict[str, tuple[int, int] | None] = {}
    for name in first:
        is_map = isinstance(first[name], Tensor) and first[name].dim() == 4  # nodes of a graph may also be sizes
        grown = second[name].shape[-1] - first[name].shape[-1] if is_map else 0
        found[name] = (int(first[name].shape[1]), round((large - small) / grown)) if grown > 0 else None
    return found


def measure_maps(model: nn.Module, multiple: int) -> dict[str, tuple[int, int]]:
    """Return (channels, stride) of each output as `measure_outputs` does. Raises BackboneError if one is not a map."""
    found = measure_outputs(model, multiple)
    maps = {name: size for name, size in found.items() if size is not None}
    for name in found:
        if name not in maps:
            message = f"layer {name}: expected a map [N, C, H, W] that grows with the image, found another output"
            raise BackboneError("layer-not-spatial", message, "choose an earlier layer")
    return maps
