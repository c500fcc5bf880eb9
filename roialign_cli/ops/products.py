"""Bins that are upright rectangles of their own: products of two axes, bin by bin."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from roialign_cli.ops import checks
from roialign_cli.ops.cells import Fill, Indices, Lists
from roialign_cli.ops.cpu import kernel
from roialign_cli.ops.cpu.run import MODES
from roialign_cli.ops.request import Request

NO_OFFSETS = np.empty((0, 2, 1, 1))


def fill_products(
    request: Request,
    offsets: npt.NDArray[np.float64] = NO_OFFSETS,
    modulation: npt.NDArray[np.float64] = NO_OFFSETS[:, 0],
    gamma: float = 0.0,
    towards: int = kernel.NOTHING,
) -> Fill:
    """Return what fills the lists of bins that are moved by offsets [K, 2, PH, PW] and multiplied by modulation [K, PH, PW].

    Either may be empty, with the same number of dimensions. `towards`: what the weights are derived by, see ops/cpu/kernel.py.
    """
    height, width = request.output_size
    shape = (height, width, request.sampling_ratio, request.aligned, MODES[request.mode])
    table = (*request.table, checks.scale_array(request))

    def fill(rows: Indices, maps: Indices, lists: Lists) -> int:
        moved = (offsets, modulation, gamma)
        return int(
            kernel.product_lists(rows, table, maps, shape, moved, towards, lists.ptr, lists.offset, lists.weight)
        )

    return fill
