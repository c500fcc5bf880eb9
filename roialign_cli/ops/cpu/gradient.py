"""Run the compiled CPU kernel of gradients: threads own channels, so that the same call gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from roialign_cli.ops.cpu import gradient_kernel, kernel
from roialign_cli.ops.cpu.output import STORED
from roialign_cli.ops.cpu.run import MODES, Indices, describe
from roialign_cli.ops.cpu.threads import run_all
from roialign_cli.ops.request import Request

ROWS = 512  # RoIs whose weights are in memory at a time
LISTED_ROWS = 32  # RoIs whose weights a thread makes at a time
BLOCK = 64  # channels that one call of the kernel owns, however many threads there are


def accumulate(request: Request, passed: Tensor, totals: Sequence[Tensor]) -> None:
    """Add the gradients of a request in mode avg or exact, without reduction, to `totals`.

    passed [K, C, PH, PW]: the gradient of the result. totals: one [N, C, H, W] per map, channels-last, float32 or float64.
    """
    if passed.numel() == 0:
        return
    unit, channels = totals[0].dtype, passed.shape[1]
    if torch.float64 in (unit, passed.dtype):
        passed = passed.to(unit)  # the kernel widens elements of two bytes itself
    passed = passed.contiguous()
    rois, levels = request.table
    order = np.lexsort((rois[:, 1], rois[:, 2], rois[:, 0], levels))
    maps = np.array([describe(m) for m in totals], np.int64)
    types = np.empty(0, STORED[passed.dtype]), np.empty(0, STORED[unit])
    table = rois[:, 0].astype(np.int64), levels
    height, width = request.output_size
    cuts = [*range(0, channels, BLOCK), channels]
    for begin in range(0, len(order), ROWS):
        rows = order[begin : begin + ROWS]
        y_lists, x_lists = _axis_lists(request, rows, maps)
        run_all([
            partial(
                gradient_kernel.accumulate,
                passed.data_ptr(), channels, first, stop, rows, table, maps, (height, width), y_lists, x_lists, types,
            )
            for first, stop in pairwise(cuts)
        ])  # fmt: skip


Lists = tuple[Indices, Indices, np.ndarray[tuple[int, int], np.dtype[np.float64]]]


def _axis_lists(request: Request, rows: Indices, maps: Indices) -> tuple[Lists, Lists]:
    """Return the weights of both axes of RoIs, as `kernel.axis_lists` writes them, made on all threads."""
    entries = int(maps[:, 1:3].max()) + 3 * max(request.output_size) + 4
    shape = (*request.output_size, request.sampling_ratio, request.aligned, MODES[request.mode])
    table = (*request.table, np.array(request.scales))
    y_lists, x_lists = (
        (np.empty((len(rows), bins + 1), np.int64), np.empty((len(rows), entries), np.int64), np.empty((len(rows), entries)))
        for bins in request.output_size
    )  # fmt: skip

    def fill(first: int) -> None:
        part = slice(first, first + LISTED_ROWS)
        own = [tuple(array[part] for array in lists) for lists in (y_lists, x_lists)]
        kernel.axis_lists(rows[part], table, maps, shape, *own)

    run_all([partial(fill, first) for first in range(0, len(rows), LISTED_ROWS)])
    return y_lists, x_lists
