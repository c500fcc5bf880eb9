"""RoI Align of rotated boxes: the public operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from roialign_cli.config import Mode, Reduce
from roialign_cli.ops import checks, reference_regions, transposed
from roialign_cli.ops.cells import Cells, Indices, Lists, channels_last
from roialign_cli.ops.dispatch import pool_cells
from roialign_cli.ops.gradient import register_gradient
from roialign_cli.ops.node import call, check_gradient_mode, empty_result, names_errors, register
from roialign_cli.ops.request import MODES, Request


@names_errors
def roi_align_rotated(
    features: Tensor | Sequence[Tensor],
    rois: Tensor,
    output_size: int | Sequence[int],
    *,
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    mode: Mode = "avg",
    clockwise: bool = False,
    levels: Tensor | None = None,
    reduce: Reduce = "none",
    dtype: torch.dtype | None = None,
    kernel: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Pool rotated boxes: RoI Align on a grid of bins that is turned with the box (detectron2's ROIAlignRotated).

    Has gradients to the maps, in modes `avg` and `exact`. `torch.compile` and `torch.export` see one node,
    `roialign::roi_align_rotated`.

    Args:
        features: [N, C, H, W], or a list of such maps, one per level, as `roi_align` takes them; maps that are not
            channels-last are copied whole.
        rois: [K, 6] rows (batch index, centre x, centre y, width, height, angle); image pixels and degrees, counter-clockwise
            as seen on the screen.
        output_size: bins per side, one number or (height, width); rows of bins lie along the width of the box.
        spatial_scale: map cells per image pixel (1 / stride), one number or one per level.
        sampling_ratio: samples per bin and axis; 0 is adaptive, ceil(RoI size / output size).
        aligned: shift by half a cell so that pixel centres meet cell centres. If false, boxes are at least one cell wide and
            high, about their centre.
        mode: `avg` or `max` of interpolated samples; `exact`, the integral mean. In mode `exact` an empty bin counts as one of
            1e-6 cells.
        clockwise: whether angles are clockwise.
        levels: [K] integers, the map each RoI is pooled from; needed with several maps.
        reduce: `mean` or `max` over the bins of each RoI.
        dtype: type of the result, the features' own by default.
        kernel: `auto`, `cpu`, `cuda` or `reference`.
        out: a contiguous tensor of the result's shape and type to write into.

    Returns:
        [K, C, PH, PW], or [K, C] with `reduce`; sums are float32 (float64 for float64).

    Raises:
        OperatorInputError: an argument is not valid, such as a negative width; the message names the argument and the row.
        KernelError: the kernel cannot run on this device.
    """
    maps = checks.check_maps(features)
    table = checks.check_rotated_boxes(rois)
    checks.check_no_gradient("rois", rois)
    request = checks.make_request(
        maps, table, output_size, spatial_scale, sampling_ratio, aligned, mode, levels, reduce, dtype, modes=MODES
    )  # fmt: skip
    check_gradient_mode(request)
    pooled: Tensor = call(_NODE, request, bool(clockwise), kernel, out=out)
    return pooled


def _pool(request: Request, clockwise: bool, kernel: str, out: Tensor | None) -> Tensor:
    """Pool a prepared request."""
    checks.check_values(request)
    cells = cells_of(request, clockwise)
    return pool_cells(cells, kernel, lambda: reference_regions.rotated(request, clockwise), out)


def cells_of(request: Request, clockwise: bool) -> Cells:
    """Return a prepared request as a call of the kernels."""
    from roialign_cli.ops.cpu import rotated_weights

    height, width = request.output_size
    shape = (height, width, request.sampling_ratio, request.aligned, MODES.index(request.mode), clockwise)
    table = (*request.table, checks.scale_array(request))

    def fill(rows: Indices, maps: Indices, lists: Lists) -> int:
        arrays = (lists.ptr, lists.offset, lists.weight, lists.outside, lists.slot)
        return int(rotated_weights.rotated(rows, table, maps, shape, *arrays))

    return Cells(replace(request, maps=channels_last(request.maps)), fill, maximum=request.mode == "max")


def _backward(passed: Tensor, request: Request, rest: tuple[Any, ...], _wanted: Sequence[bool]) -> list[Tensor]:
    """Return the gradients of the maps; see `ops.gradient`."""
    return [*transposed.map_gradients(cells_of(request, rest[0]), passed), passed.new_empty(0)]


_EXTRA = "bool clockwise, str kernel"
_NODE = register("roi_align_rotated", _EXTRA, _pool, empty_result)
register_gradient("roi_align_rotated", _EXTRA, _NODE, _backward)
