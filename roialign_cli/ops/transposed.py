"""Gradients of the maps for bins that are lists of cells: the same lists, turned round.

A bin is a sum over cells, so the gradient of a cell is a sum over the bins that read it, with the same weights. Sorted by
cell, these are lists again, which the kernels pool from what is passed back: no atomics, one order of each sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.ops.cells import Cells, Indices, Lists
from roialign_cli.ops.cpu import cells as cpu_cells
from roialign_cli.ops.cuda import cells as cuda_cells
from roialign_cli.ops.cuda.cells import fill_all
from roialign_cli.ops.request import Request, new_totals, sum_type

ROWS = 128  # RoIs whose lists are in memory at a time


def map_gradients(cells: Cells, passed: Tensor) -> list[Tensor]:
    """Return the gradients [N, C, H, W] of the maps of a call, channels-last, in the type of its sums; see `accumulate`."""
    totals = new_totals(cells.request)
    accumulate(cells, passed, totals)
    return totals


def accumulate(cells: Cells, passed: Tensor, totals: Sequence[Tensor]) -> None:
    """Add the gradients of the maps of a call to `totals`, as `new_totals` makes them.

    cells: without reduction and not of maxima. passed [K, C, PH, PW]: the gradient of the result.
    """
    if passed.numel() == 0:
        return
    kernel = cpu_cells if passed.device.type == "cpu" else cuda_cells
    for begin in range(0, len(passed), ROWS):
        rows = np.arange(begin, min(begin + ROWS, len(passed)))
        for total, call in zip(totals, transposed_calls(cells, passed, rows), strict=True):
            n, channels, height, width = total.shape
            total += kernel.run(call, None).view(n, height, channels, width).permute(0, 2, 1, 3)


def transposed_calls(cells: Cells, passed: Tensor, rows: Indices) -> list[Cells]:
    """Return a call per map that pools its gradient from what some RoIs pass back, as [N * H, C, 1, W]."""
    bins = math.prod(cells.request.output_size)
    # [R * bins, C] as a map of one column, of which bin b of the i-th RoI is cell i * bins + b.
    some = passed[int(rows[0]) : int(rows[-1]) + 1].to(sum_type(cells.request)).flatten(2).transpose(1, 2)
    source = some.reshape(1, len(rows) * bins, 1, passed.shape[1]).permute(0, 3, 1, 2)
    cell, bin_of, weight, level = _entries(cells, rows)
    calls = []
    for i, features in enumerate(cells.request.maps):
        n, _, height, width = features.shape
        own = np.flatnonzero(level == i)
        own = own[np.argsort(cell[own], kind="stable")]
        ptr = np.searchsorted(cell[own], np.arange(n * height * width + 1))
        calls.append(_lines(source, (n * height, width), ptr, bin_of[own], weight[own]))
    return calls


def _entries(cells: Cells, rows: Indices) -> tuple[Indices, Indices, npt.NDArray[np.float64], Indices]:
    """Return the entries of the lists of RoIs: their cell, counted through the maps of their level, bin, weight and level.

    rows: RoIs that follow each other. Bins are counted from that of the first RoI.
    """
    request = cells.request
    bins = math.prod(request.output_size)
    sizes = np.array([m.shape[2:] for m in request.maps], np.int64)
    # With these strides, offsets are numbers of cells.
    maps = np.array([[0, height, width, 0, width, 1] for height, width in sizes], np.int64)
    found: list[tuple[npt.NDArray[np.generic], ...]] = []
    for lists in fill_all(cells, rows, maps):
        counts = np.diff(lists.ptr.numpy())
        image = lists.images.numpy().repeat(bins)
        if cells.maps_per_image > 1:
            image += np.tile(np.arange(bins), len(lists.rows))
        level = lists.levels.numpy().repeat(bins).repeat(counts)
        cell = image.repeat(counts) * sizes.prod(axis=1)[level] + lists.offset.numpy()
        numbers = ((lists.rows.numpy() - rows[0])[:, None] * bins + np.arange(bins)).ravel()
        found.append((cell, numbers.repeat(counts), lists.weight.numpy(), level))
    cell, number, weight, level = (np.concatenate(column) for column in zip(*found, strict=True))
    return cell.astype(np.int64), number.astype(np.int64), weight.astype(np.float64), level.astype(np.int64)


def _lines(
    source: Tensor, shape: tuple[int, int], ptr: Indices, numbers: Indices, weight: npt.NDArray[np.float64]
) -> Cells:
    """Return the call that pools lines of cells: one "RoI" per line of a map, one "bin" per cell.

    ptr [lines * width + 1]: the entries of each cell in `numbers`, which are cells of the source, and `weight`.
    """
    count, width = shape
    step = source.stride(2) * source.element_size()

    def fill(rows: Indices, _maps: Indices, lists: Lists) -> int:
        used, most = 0, len(lists.ptr) // width
        for i, line in enumerate(rows[:most].tolist()):
            own = ptr[line * width : (line + 1) * width + 1]
            stop = used + own[-1] - own[0]
            if stop > len(lists.offset):
                return i
            lists.ptr[i * width : (i + 1) * width + 1] = own - own[0] + used
            lists.offset[used:stop] = numbers[own[0] : own[-1]] * step
            lists.weight[used:stop] = weight[own[0] : own[-1]]
            used = stop
        return min(len(rows), most)

    request = Request(
        maps=(source,), rois=torch.zeros(count, 5), levels=None, output_size=(1, width), scales=(1.0,), sampling_ratio=1,
        aligned=True, mode="avg", reduce="none", dtype=source.dtype,
    )  # fmt: skip
    return Cells(request, fill)
