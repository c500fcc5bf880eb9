"""Plan one launch of `pool_lists.cu`, as launch.py does for `roi_align.cu`: plain arithmetic that needs no device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roialign_cli.errors import KernelError
from roialign_cli.ops.cells import Cells, Indices, Lists
from roialign_cli.ops.cuda.launch import (
    MAX_GRID,
    MAX_LEVELS,
    MAX_THREADS,
    TILE_BYTES,
    WARP,
    Launch,
    loaded_channels,
    specialise,
    tile_bytes,
)

# The record of pool_lists.cu, field by field in the same order.
CALL = np.dtype([
    ("address", np.int64, MAX_LEVELS),
    ("stride_n", np.int64, MAX_LEVELS),
    *((name, np.int64) for name in (
        "rows", "images", "levels", "ptr", "offset", "weight", "outside", "out",
        "channels", "bins", "one_each", "lanes", "bins_per_block",
    )),
])  # fmt: skip


@dataclass(frozen=True)
class ListTensors:
    """Hold the lists of R RoIs as the kernel reads them: the fields of its record, on the device of the maps or the host."""

    rows: Tensor
    images: Tensor
    levels: Tensor
    ptr: Tensor
    offset: Tensor
    weight: Tensor
    outside: Tensor

    @classmethod
    def of(cls, cells: Cells, rows: Indices, lists: Lists) -> ListTensors:
        """Return copies of the lists of RoIs `rows` on the host."""
        rois, levels = cells.request.table
        bins = math.prod(cells.request.output_size)
        count = int(lists.ptr[len(rows) * bins])
        unit = np.float64 if cells.request.maps[0].dtype == torch.float64 else np.float32
        return cls(
            rows=torch.from_numpy(np.array(rows, np.int64)),
            images=torch.from_numpy(rois[rows, 0].astype(np.int64) * cells.maps_per_image),
            levels=torch.from_numpy(levels[rows]),
            ptr=torch.from_numpy(lists.ptr[: len(rows) * bins + 1].copy()),
            offset=torch.from_numpy(lists.offset[:count].copy()),
            weight=torch.from_numpy(lists.weight[:count].astype(unit)),
            outside=torch.from_numpy(lists.outside[: len(rows) * bins].astype(np.uint8)),
        )


def plan_list_launch(cells: Cells, lists: ListTensors, out: Tensor, max_threads: int = MAX_THREADS) -> Launch:
    """Return the launch that pools RoIs by their lists into their rows of a contiguous `out`.

    Raises KernelError for more levels than the kernel supports, or sizes that exceed a grid.
    """
    request, maps = cells.request, cells.request.maps
    if len(maps) > MAX_LEVELS:
        message = f"kernel cuda: expected at most {MAX_LEVELS} levels, found {len(maps)}"
        raise KernelError("kernel-levels", message, "pool them in several calls")
    channels, bins, written = maps[0].shape[1], math.prod(request.output_size), request.dtype.itemsize
    vector = loaded_channels(maps)
    vectors = channels // vector
    lanes = min(WARP, 1 << (vectors - 1).bit_length())
    per_block = bins
    while per_block > 1 and tile_bytes(lanes * vector * per_block, written) > TILE_BYTES:
        per_block = -(-per_block // 2)
    grid = (len(lists.rows), -(-vectors // lanes), -(-bins // per_block))
    if max(grid[1:]) > MAX_GRID:
        message = f"kernel cuda: expected at most {MAX_GRID} parts of bins or channels, found {grid[1:]}"
        raise KernelError("kernel-size", message, "use the cpu")
    threads = min(-(-lanes * per_block // WARP) * WARP, max_threads)
    call = np.zeros((), CALL)
    _fill_levels(call, maps)
    for name in ListTensors.__dataclass_fields__:
        call[name] = getattr(lists, name).data_ptr()
    fields = {
        "out": out.data_ptr(), "channels": channels, "bins": bins, "lanes": lanes, "bins_per_block": per_block,
        "one_each": cells.maps_per_image > 1,
    }  # fmt: skip
    for name, value in fields.items():
        call[name] = value
    mode = "max" if cells.maximum else "avg"
    defines = specialise(maps[0].dtype, mode, vector, written=request.dtype)
    return Launch(defines, grid, threads, tile_bytes(lanes * vector * per_block, written), call)


def _fill_levels(call: np.ndarray[tuple[()], np.dtype[np.void]], maps: Sequence[Tensor]) -> None:
    for i, features in enumerate(maps):
        call["address"][i] = features.data_ptr()
        call["stride_n"][i] = features.stride(0) * features.element_size()
