"""Run the compiled CPU kernel: sort RoIs by position and divide them over threads."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.ops.cpu import kernel
from roialign_cli.ops.cpu.intrinsics import LANES
from roialign_cli.ops.cpu.output import STORED, new_output
from roialign_cli.ops.cpu.threads import run_all
from roialign_cli.ops.request import Request

Indices = npt.NDArray[np.int64]

MODES = {"avg": kernel.AVG, "max": kernel.MAX, "exact": kernel.EXACT}
REDUCTIONS = {"none": kernel.NONE, "mean": kernel.MEAN, "max": kernel.LARGEST}
SLAB_BYTES = 32 << 20  # maps of other layouts are copied channels-last in slabs of at most this size
STREAM_BYTES = 8 << 20  # outputs above this are written past the caches
SINGLE_THREAD_ELEMENTS = 1 << 15  # below this many output elements, threads cost more than they save


def run(request: Request, out: Tensor | None) -> Tensor:
    """Return the pooled features of a request on CPU tensors, in `out` if given."""
    if out is None:
        out = new_output(request)
    if out.numel() == 0:
        return out
    rois, levels = request.table
    order = np.lexsort((rois[:, 1], rois[:, 2], rois[:, 0], levels))  # neighbouring RoIs share cache lines
    if all(m.stride(1) == 1 or m.shape[1] == 1 for m in request.maps):
        maps = np.array([describe(m) for m in request.maps], np.int64)
        _pool(request, out, order, maps, 0, request.shape[1])
    else:
        _pool_by_slabs(request, out, order)
    return out


def describe(features: Tensor) -> list[int]:
    """Return the record of a map: address, height, width, and its strides along n, y and x in bytes."""
    size = features.element_size()
    n, _, y, x = (stride * size for stride in features.stride())
    return [features.data_ptr(), *features.shape[2:], n, y, x]


def _pool(request: Request, out: Tensor, order: Indices, maps: Indices, first: int, stop: int) -> None:
    """Pool the RoIs `order` over channels first..stop of the maps, divided over the threads."""
    dtype = request.maps[0].dtype
    unit = np.float64 if dtype == torch.float64 else np.float32
    elements = np.empty(0, STORED[dtype]), np.empty(0, STORED[out.dtype]), np.empty(0, unit)
    height, width = request.output_size
    mode, reduce = MODES[request.mode], REDUCTIONS[request.reduce]
    geometry = (height, width, request.sampling_ratio, request.aligned, mode, reduce)
    table = (*request.table, np.array(request.scales))
    pieces = 1 if len(order) * (stop - first) * height * width < SINGLE_THREAD_ELEMENTS else 8 * torch.get_num_threads()
    stream = out.nbytes > STREAM_BYTES
    cuts = [first, stop]
    if len(order) < pieces:  # few RoIs: divide their channels too
        step = -(-(stop - first) * len(order) // pieces // 64 + 1) * 64
        cuts = [*range(first, stop, max(step, 64)), stop]

    def pool(part: Indices, begin: int, end: int) -> None:
        shifted = maps.copy()
        shifted[:, 0] += (begin - first) * elements[0].itemsize
        kernel.pool(out.data_ptr(), request.shape[1], begin, end, part, table, shifted, geometry, stream, elements)

    parts = np.array_split(order, min(pieces, len(order)))
    run_all([partial(pool, part, begin, end) for part in parts for begin, end in pairwise(cuts)])


def _pool_by_slabs(request: Request, out: Tensor, order: Indices) -> None:
    """Pool maps of any strides: for each image and level, copy the window under its RoIs channels-last, once."""
    channels = request.shape[1]
    rois, levels = request.table
    groups = np.stack([levels[order], rois[order, 0].astype(np.int64)])
    starts = np.flatnonzero(np.diff(groups, axis=1, prepend=-1).any(axis=0))
    for begin, end in pairwise([*starts, len(order)]):
        group = order[begin:end]
        level, image = groups[:, begin]
        features = request.maps[level][image]
        top, left, height, width = _window(request, group, level)
        stored = STORED[features.dtype]
        line = width * stored.itemsize
        fit = max(SLAB_BYTES // (height * line) // LANES, 1) * LANES
        slabs = -(-channels // fit)
        per_slab = -(-channels // slabs // LANES) * LANES
        slab = np.empty(height * width * min(per_slab, channels), stored)
        maps = np.zeros((len(request.maps), 6), np.int64)
        for first in range(0, channels, per_slab):
            n = min(per_slab, channels - first)
            _pack(features[first : first + n], slab, top, left, height, width)
            cell = n * stored.itemsize
            origin = slab.ctypes.data - (top * width + left) * cell
            maps[level] = [origin, *features.shape[1:], 0, width * cell, cell]
            _pool(request, out, group, maps, first, first + n)


def _window(request: Request, group: Indices, level: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the cells that the RoIs of a group can read.

    At least two cells per side, where the map has two: a sample clamped to the first cell also reads the second, with
    weight zero.
    """
    height, width = request.maps[level].shape[2:]
    scale = request.scales[level]
    offset = 0.5 if request.aligned else 0.0
    rois, _ = request.table
    low = np.floor(rois[group, 1:3].min(axis=0) * scale - offset)
    high = np.ceil(rois[group, 3:5].max(axis=0) * scale - offset) + 2  # an unaligned RoI covers at least one cell
    left, top = np.clip(low, 0, [width - 1, height - 1]).astype(int)
    right, bottom = np.minimum(np.maximum(high, [left + 2, top + 2]), [width, height]).astype(int)
    return int(top), int(left), int(bottom - top), int(right - left)


def pack_bins(features: Tensor, bins: int) -> Tensor:
    """Return maps [N, C * bins, H, W] of any strides as [N * bins, C, H, W] in channels-last memory."""
    n, channels, height, width = features.shape
    count, size = channels // bins, features.element_size()
    stride_n, stride_c, stride_y, stride_x = (stride * size for stride in features.stride())
    stored = STORED[features.dtype]
    target = np.empty((n * bins, height, width, count), stored)

    def pack(image: int) -> None:
        source = features.data_ptr() + image // bins * stride_n + image % bins * stride_c
        kernel.pack(
            target[image].ctypes.data, source, bins * stride_c, stride_y, stride_x, 0, height, 0, width, count,
            np.empty(0, stored),
        )  # fmt: skip

    if target.size:
        run_all([partial(pack, image) for image in range(n * bins)])
    return torch.from_numpy(target).view(features.dtype).permute(0, 3, 1, 2)


def _pack(features: Tensor, slab: npt.NDArray[np.generic], top: int, left: int, height: int, width: int) -> None:
    """Copy a window of a map [C, H, W] to a slab [height, width, C]."""
    size = features.element_size()
    stride_c, stride_y, stride_x = (stride * size for stride in features.stride())
    n = features.shape[0]
    stored = np.empty(0, STORED[features.dtype])

    def pack(first: int, last: int) -> None:
        target = slab.ctypes.data + (first - top) * width * n * size
        kernel.pack(
            target, features.data_ptr(), stride_c, stride_y, stride_x, first, last, left, width, n, stored
        )  # fmt: skip

    step = height if height * width * n < SINGLE_THREAD_ELEMENTS else -(-height // (4 * torch.get_num_threads()))
    rows = [*range(top, top + height, step), top + height]
    run_all([partial(pack, first, last) for first, last in pairwise(rows)])
