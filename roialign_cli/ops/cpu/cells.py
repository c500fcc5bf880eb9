"""Run the CPU kernel for bins that are lists of cells: fill the lists of some RoIs, pool them, go on with the next ones."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from roialign_cli.ops.cells import Cells, Lists, fill_lists
from roialign_cli.ops.cpu import kernel
from roialign_cli.ops.cpu.output import STORED, new_output
from roialign_cli.ops.cpu.run import SINGLE_THREAD_ELEMENTS, STREAM_BYTES, Indices, describe
from roialign_cli.ops.cpu.threads import run_all
from roialign_cli.ops.request import finish

ROWS = 32  # RoIs whose lists are filled at a time
ENTRIES = 1 << 16


def run(cells: Cells, out: Tensor | None) -> Tensor:
    """Return the pooled features of a request on CPU tensors, in `out` if given."""
    request = cells.request
    if request.reduce != "none":
        return finish(run(cells.without_reduction(), None), request, out)
    if out is None:
        out = new_output(request)
    if request.rois.shape[0] == 0:
        return out
    rois, levels = request.table
    images = rois[:, 0].astype(np.int64) * cells.maps_per_image
    order = np.lexsort((rois[:, 1], rois[:, 2], images, levels))  # neighbouring RoIs share cache lines
    maps = np.array([describe(m) for m in request.maps], np.int64)
    sizes = maps[:, 1] * maps[:, 2]
    bins, channels = math.prod(request.output_size), request.shape[1]
    where = (images, levels, cells.maps_per_image > 1)
    dtype = request.maps[0].dtype
    unit = np.float64 if dtype == torch.float64 else np.float32
    elements = np.empty(0, STORED[dtype]), np.empty(0, STORED[out.dtype]), np.empty(0, unit)
    stream = out.nbytes > STREAM_BYTES

    def pool(rows: Indices) -> None:
        lists = Lists.empty(min(ROWS, len(rows)), bins, ENTRIES, int(sizes.max()))
        for some, filled in fill_lists(cells.fill, rows, maps, lists):
            arrays = (filled.ptr, filled.offset, filled.weight, filled.outside)
            if channels:
                kernel.pool_lists(
                    out.data_ptr(), channels, some, arrays, where, maps, bins, cells.maximum, stream, elements
                )  # fmt: skip

    pieces = 1 if len(order) * channels * bins < SINGLE_THREAD_ELEMENTS else 8 * torch.get_num_threads()
    run_all([partial(pool, part) for part in np.array_split(order, min(pieces, len(order)))])
    return out
