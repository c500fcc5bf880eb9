"""Gradients of RoI Align to the maps and to the boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from roialign_cli.ops import torchvision, transposed
from roialign_cli.ops.cells import Cells, Fill, channels_last
from roialign_cli.ops.checks import input_error
from roialign_cli.ops.cpu import gradient as cpu_gradient
from roialign_cli.ops.cpu import kernel
from roialign_cli.ops.dispatch import choose_kernel, pool_cells, run_kernel
from roialign_cli.ops.products import fill_products
from roialign_cli.ops.request import Request, new_totals, sum_type

Array = npt.NDArray[np.float64]

PART_BYTES = 64 << 20  # of the values that are computed again at a time
SAMPLE_BYTES = 256 << 20  # of the samples of one RoI in float32, in mode max
EDGES = {1: kernel.LOW_X, 2: kernel.LOW_Y, 3: kernel.HIGH_X, 4: kernel.HIGH_Y}  # by their column in rois


def roi_align_backward(
    passed: Tensor, request: Request, _rest: tuple[Any, ...], wanted: Sequence[bool]
) -> list[Tensor]:
    """Return the gradients of the maps and of rois, from `passed` [K, C, PH, PW], that of the result; see `ops.gradient`."""
    to_maps, to_rois = wanted[:2]
    totals = new_totals(request) if to_maps else []
    boxes = np.zeros(request.rois.shape) if to_rois else np.empty(0)
    for rows, part, of_part in _samples(request, passed):
        if to_maps:
            _add_map_gradients(part, of_part, totals)
        if to_rois:
            boxes[rows] += _box_gradients(part, of_part)
    maps = [t.to(m.dtype) for t, m in zip(totals, request.maps, strict=True)] if to_maps else []
    empty = [m.new_empty(0) for m in request.maps]
    return [*(maps or empty), torch.from_numpy(boxes).to(request.rois)]


def reads_maps(request: Request) -> bool:
    """Return whether `roi_align_backward` needs the values of the maps, not only their shapes."""
    return request.mode == "max" or request.rois.requires_grad


def bins_at_a_time(request: Request, output_size: Sequence[int]) -> int:
    """Return how many RoIs have PART_BYTES of bins of an output size in float32, at least one."""
    return max(1, PART_BYTES // (4 * max(1, request.maps[0].shape[1]) * math.prod(output_size)))


def rows_of(request: Request, rows: Any) -> Request:
    """Return the request for some of its RoIs."""
    levels = None if request.levels is None else request.levels[rows]
    return replace(request, rois=request.rois[rows], levels=levels)


def _samples(request: Request, passed: Tensor) -> Iterator[tuple[Any, Request, Tensor]]:
    """Yield a request in parts of mode avg or exact: the rows, their request and the gradient of its result.

    In mode max, samples are the bins of a finer grid that have one sample each, and only the largest ones pass a gradient on.
    """
    if request.mode != "max":
        yield slice(None), request, passed
        return
    if passed.numel() == 0:
        return
    grids = check_samples(request)
    for grid in np.unique(grids, axis=0).tolist():
        if min(grid) == 0:  # without samples the result is 0
            continue
        size = [bins * samples for bins, samples in zip(request.output_size, grid, strict=True)]
        group = np.flatnonzero((grids == grid).all(axis=1))
        for rows in np.array_split(group, -(-len(group) // bins_at_a_time(request, size))):
            index = torch.from_numpy(rows).to(request.rois.device)
            unit = sum_type(request)
            fine = replace(rows_of(request, index), mode="avg", sampling_ratio=1, output_size=size, dtype=unit)
            name = choose_kernel("auto", fine.maps[0].device, fine.mode, fine.maps[0].dtype)
            values = run_kernel(fine, "auto", name, None)
            _, largest = functional.max_pool2d(values, grid, return_indices=True)
            of_samples = torch.zeros_like(values).flatten(2)
            of_samples.scatter_(2, largest.flatten(2), passed[index].to(unit).flatten(2))
            yield rows, fine, of_samples.view(values.shape)


def check_samples(request: Request) -> npt.NDArray[np.int64]:
    """Return the samples per bin of each RoI, [K, 2] along y and x, for gradients in mode max.

    Raises OperatorInputError for a RoI of more samples than are computed again at a time.
    """
    grids = _grids(request)
    sizes = grids.prod(axis=1, dtype=np.float64) * math.prod(request.output_size) * request.maps[0].shape[1] * 4
    if sizes.max(initial=0) > SAMPLE_BYTES:
        row = int(sizes.argmax())
        raise input_error(
            f"rois row {row}",
            f"expected at most {SAMPLE_BYTES >> 20} MiB of samples for a gradient in mode max, found {sizes[row] / 2**20:.4g}",
            "clip boxes to their image, or use mode avg or exact",
        )
    return grids


def _grids(request: Request) -> npt.NDArray[np.int64]:
    """Return the samples per bin of each RoI, [K, 2] along y and x."""
    rois, levels = request.table
    if request.sampling_ratio > 0:
        return np.full((len(rois), 2), request.sampling_ratio, np.int64)
    scale, offset = np.array(request.scales)[levels][:, None], 0.5 if request.aligned else 0.0
    start = rois[:, 1:3] * scale - offset
    extent = rois[:, 3:5] * scale - offset - start
    if not request.aligned:
        extent = np.maximum(extent, 1.0)
    grids: npt.NDArray[np.int64] = np.ceil(extent / np.array(request.output_size[::-1])).astype(np.int64)
    return grids[:, ::-1]


def _add_map_gradients(part: Request, passed: Tensor, totals: Sequence[Tensor]) -> None:
    """Add the gradients of the maps, by the kernel that `choose_kernel` finds for the forward pass."""
    name = choose_kernel("auto", passed.device, part.mode, part.maps[0].dtype)
    if name == "cpu":
        cpu_gradient.accumulate(part, passed, totals)
    elif name == "cuda":
        transposed.accumulate(Cells(part, fill_products(part)), passed, totals)
    else:
        torchvision.accumulate(part, passed, totals)


def _box_gradients(request: Request, passed: Tensor) -> Array:
    """Return the gradients of rois [K, 5]; that of the batch index is 0."""
    _, levels = request.table
    found = np.zeros(request.rois.shape)
    for column, edge in EDGES.items():
        found[:, column] = derivative(request, passed, partial(_fill_edge, request, edge)).sum(axis=(1, 2))
    scale: Array = np.array(request.scales)[levels][:, None]
    return found * scale


def _fill_edge(request: Request, edge: int, rows: slice) -> Fill:
    """Return what fills the lists of some RoIs with weights that are derived by an edge."""
    return fill_products(rows_of(request, rows), towards=edge)


def derivative(request: Request, passed: Tensor, fill: Callable[[slice], Fill]) -> Array:
    """Return [K, PH, PW]: the sums over channels of `passed` times the maps pooled with other weights.

    fill(rows): fills the lists of some RoIs with these weights.
    """
    wide = replace(request, maps=channels_last(request.maps), dtype=sum_type(request))
    found = np.zeros((len(request.rois), *request.output_size))
    step = bins_at_a_time(request, request.output_size)
    for begin in range(0, len(found), step):
        rows = slice(begin, begin + step)
        pooled = pool_cells(Cells(rows_of(wide, rows), fill(rows)), "auto", None, None)
        product = pooled * passed[rows]
        # torch's order of a sum on the CPU depends on the number of threads, NumPy's does not.
        found[rows] = (
            np.sum(product.numpy(), axis=1, dtype=np.float64)
            if product.device.type == "cpu"
            else product.sum(1, dtype=torch.float64).cpu().numpy()
        )
    return found
