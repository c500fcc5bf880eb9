"""Measure where in the image the cells of a map look, which padding and upsampling move away from the assumed place.

RoI Align with `aligned` assumes that cell i has its centre at stride * (i + 0.5) pixels. A stack of convolutions with
symmetric padding puts it at stride * i + 0.5, which is (stride - 1) / 2 pixels less: 15.5 at the last stage of a ResNet.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from roialign_cli.backbones.base import Backbone, Layer
from roialign_cli.errors import BackboneError
from roialign_cli.system.cache import user_cache

IMAGES = 4  # of noise
CELLS = 3  # rows and columns in the middle of the map, at most
STRIDES_PER_SIDE = 24  # of the images: the field of a cell lies inside them, nearly whole
MIN_SIDE = 512  # pixels
PRECISION = 0.25  # pixels; the noise of the measurement is larger, and rounding makes it the same on every machine

Offsets = tuple[tuple[float, float], ...]  # (x, y) in pixels of the network input, one per level


def measure_centers(backbone: Backbone) -> Backbone:
    """Return the backbone with the offset of its cells, level by level; the result is cached for these weights.

    The offset is that of the centre of gravity of |gradient| of a few cells in the middle of the map with respect to the
    image. Raises BackboneError if the model has no gradients.
    """
    known = _cache_file(backbone)
    found = _read(known, backbone.layers)
    if found is None:
        try:
            found = _measure(backbone)
        except (RuntimeError, NotImplementedError) as error:
            message = f"{backbone.name}: centers: expected a model with gradients, found: {str(error).splitlines()[0]}"
            raise BackboneError("backbone-centers", message, "--centers assumed") from None
        _write(known, found)
    layers = tuple(replace(layer, offsets=offsets) for layer, offsets in zip(backbone.layers, found, strict=True))
    return replace(backbone, layers=layers)


def _measure(backbone: Backbone) -> list[Offsets]:
    """Return the offsets of all layers."""
    multiple = backbone.preprocessing.multiple
    largest = max(stride for layer in backbone.layers for stride in layer.strides)
    side = -(-max(MIN_SIDE, STRIDES_PER_SIDE * largest) // multiple) * multiple
    generator = torch.Generator().manual_seed(0)
    sums = [torch.zeros(len(layer.strides), 2, dtype=torch.float64) for layer in backbone.layers]
    with torch.enable_grad():
        for _ in range(IMAGES):
            image = torch.randn(1, 3, side, side, generator=generator).requires_grad_()
            maps = backbone(image)
            for total, levels, layer in zip(sums, maps, backbone.layers, strict=True):
                for i, (features, stride) in enumerate(zip(levels, layer.strides, strict=True)):
                    assert features is not None
                    total[i] += _offset(features, stride, image, generator)
    rounded = [(total / IMAGES / PRECISION).round() * PRECISION for total in sums]
    return [tuple((x, y) for x, y in offsets.tolist()) for offsets in rounded]


def _offset(features: Tensor, stride: int, image: Tensor, generator: torch.Generator) -> Tensor:
    """Return how far (x, y) the cells in the middle of a map [1, C, H, W] look from where they are assumed to look."""
    channels, height, width = features.shape[1:]
    # As many rows and columns as leave the same number on both sides: attention reads the whole image, and does not count then.
    rows, columns = (CELLS - (side + CELLS) % 2 for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = features[0, :, top : top + rows, left : left + columns]
    signs = torch.randn(channels, 1, 1, generator=generator)  # so that channels do not cancel each other
    (gradient,) = torch.autograd.grad((middle * signs).sum(), image, retain_graph=True)
    weight = gradient[0].abs().sum(0).double()
    places = [torch.arange(side, dtype=torch.float64) + 0.5 for side in (weight.shape[1], weight.shape[0])]
    found = torch.stack([(weight.sum(axis) * place).sum() for axis, place in enumerate(places)]) / weight.sum()
    return found - stride * torch.tensor([left + columns / 2, top + rows / 2])


def _cache_file(backbone: Backbone) -> Path | None:
    folder = user_cache("centers")
    settings = [IMAGES, CELLS, STRIDES_PER_SIDE, MIN_SIDE, PRECISION]
    layers = [(layer.name, layer.strides) for layer in backbone.layers]
    identity = json.dumps([backbone.name, backbone.weights_sha256, layers, settings])
    return folder and folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"


def _read(path: Path | None, layers: Sequence[Layer]) -> list[Offsets] | None:
    """Return cached offsets, or None if there are none that can be read."""
    try:
        found = json.loads(path.read_text()) if path else None
        offsets = [tuple((float(x), float(y)) for x, y in of_layer) for of_layer in found or ()]
    except (OSError, ValueError, TypeError):
        return None
    if not all(math.isfinite(offset) for of_layer in offsets for place in of_layer for offset in place):
        return None
    return offsets if [len(one) for one in offsets] == [len(layer.strides) for layer in layers] else None


def _write(path: Path | None, offsets: list[Offsets]) -> None:
    """Keep offsets for the next run, if there is a folder for them that can be written."""
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(offsets, file)
        Path(file.name).replace(path)  # several processes may write it at once
