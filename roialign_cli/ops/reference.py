"""Define RoI Align as plain float64 loops: slow and obvious, the reference of the tests and of `doctor`.

Sources: Mask R-CNN (arXiv:1703.06870, section 3), `aligned` as in detectron2's ROIAlign, the boundary rule of the
original Caffe2 operator, which torchvision and ONNX RoiAlign share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.ops.request import Request, finish

Map = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """One axis of one RoI in map cells: bins of length `bin` from `start`, `grid` samples in each."""

    start: float
    bin: float
    bins: int
    grid: int

    def edges(self, p: int) -> tuple[float, float]:
        """Return the start and the end of bin p."""
        return self.start + p * self.bin, self.start + (p + 1) * self.bin

    def samples(self, p: int, size: int | None = None) -> list[float]:
        """Return the coordinates of the samples of bin p.

        With `size`, the number of map cells, most samples outside of the map are left out: they count as 0, and a huge box
        has an unbounded number of them.
        """
        first, stop = 0, self.grid
        begin, step = self.start + p * self.bin, self.bin / self.grid if self.grid else 0.0
        if size is not None and step > 0:
            first = max(first, math.floor((-1 - begin) / step) - 1)
            stop = min(stop, math.ceil((size - begin) / step) + 1)
        return [begin + (i + 0.5) * step for i in range(first, stop)]


def axis(low: float, high: float, scale: float, bins: int, sampling_ratio: int, aligned: bool) -> Axis:
    """Return an axis of a RoI: its extent low..high in image pixels, mapped to map cells and divided into bins."""
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset
    size = high * scale - offset - start
    if not aligned:
        size = max(size, 1.0)
    return Axis(start, size / bins, bins, sampling_ratio if sampling_ratio > 0 else math.ceil(size / bins))


def interpolate(features: Map, y: float, x: float) -> Map:
    """Return the map [C, H, W] at one point, [C]: bilinear, clamped at the border, zero more than one cell outside."""
    height, width = features.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(features.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = (1 - fx) * features[:, top, left] + fx * features[:, top, right]
    lower = (1 - fx) * features[:, bottom, left] + fx * features[:, bottom, right]
    return (1 - fy) * upper + fy * lower


def integrate(features: Map, y: tuple[float, float], x: tuple[float, float]) -> Map:
    """Return the mean of `interpolate` over a rectangle, [C], in closed form; an empty side counts as one sample.

    Between neighbouring cell centres the surface is bilinear, so each piece is its area times its value at its centre.
    """
    total = np.zeros(features.shape[0])
    for y_middle, y_share in _pieces(*y, features.shape[1]):
        for x_middle, x_share in _pieces(*x, features.shape[2]):
            total += y_share * x_share * interpolate(features, y_middle, x_middle)
    return total


def _pieces(low: float, high: float, size: int) -> Iterator[tuple[float, float]]:
    """Yield the middle of each piece of low..high between integers inside the map, and its share of the whole."""
    if high <= low:
        yield low, 1.0
        return
    cuts = [max(low, -1.0), *range(max(math.floor(low) + 1, -1), min(math.ceil(high), size + 1)), min(high, size)]
    for a, b in pairwise(cuts):
        if b > a:
            yield (a + b) / 2, (b - a) / (high - low)


def run(request: Request, out: Tensor | None = None) -> Tensor:
    """Return the pooled features of a request, computed in float64 on the CPU."""
    maps = [m.detach().to("cpu", torch.float64).numpy() for m in request.maps]
    ph, pw = request.output_size
    result = np.zeros(request.bins_shape)
    for k, (row, level) in enumerate(zip(*request.table, strict=True)):
        n, x1, y1, x2, y2 = row
        features = maps[level][int(n)]
        scale = request.scales[level]
        y_axis = axis(y1, y2, scale, ph, request.sampling_ratio, request.aligned)
        x_axis = axis(x1, x2, scale, pw, request.sampling_ratio, request.aligned)
        for p in range(ph):
            for q in range(pw):
                if request.mode == "exact":
                    result[k, :, p, q] = integrate(features, y_axis.edges(p), x_axis.edges(q))
                    continue
                ys, xs = y_axis.samples(p, features.shape[1]), x_axis.samples(q, features.shape[2])
                samples = [interpolate(features, y, x) for y in ys for x in xs]
                if len(samples) < y_axis.grid * x_axis.grid:
                    samples.append(np.zeros(features.shape[0]))  # stands for all samples that were left out
                if samples and request.mode == "max":
                    result[k, :, p, q] = np.max(samples, 0)
                elif samples:
                    result[k, :, p, q] = np.sum(samples, 0) / y_axis.grid / x_axis.grid
    return finish(torch.from_numpy(result), request, out)
