"""RoI Align of masks: means over the part of each bin that the mask covers. The public operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.config import Mode, Reduce
from roialign_cli.ops import checks, reference_regions, transposed
from roialign_cli.ops.cells import Cells, Indices, Lists, channels_last, host_arrays
from roialign_cli.ops.dispatch import pool_cells
from roialign_cli.ops.gradient import register_gradient
from roialign_cli.ops.masks import Mask, Trapezoids, parse_masks
from roialign_cli.ops.node import call, empty_result, names_errors, needs_gradient, register
from roialign_cli.ops.request import Request, sum_type

MODES = ("exact", "avg")
NORMALIZE = ("mask", "bin")


@names_errors
def roi_align_masked(
    features: Tensor | Sequence[Tensor],
    rois: Tensor | Sequence[Tensor],
    masks: Sequence[Mask] | Trapezoids,
    output_size: int | Sequence[int],
    *,
    spatial_scale: float | Sequence[float] = 1.0,
    aligned: bool = True,
    mode: Mode = "exact",
    sampling_ratio: int = 0,
    normalize: Literal["mask", "bin"] = "mask",
    levels: Tensor | None = None,
    reduce: Reduce = "none",
    dtype: torch.dtype | None = None,
    kernel: str = "auto",
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pool the part of each bin that a mask covers, without resizing the mask to the map.

    Has gradients to the maps. `torch.compile` and `torch.export` see one node, `roialign::roi_align_masked`; for them,
    masks must be turned into pieces before, by `ops.masks.parse_masks`. Arguments that are not listed are those of
    `roi_align`; rois are usually the boxes of the masks. Maps that are not channels-last are copied whole.

    Args:
        masks: one per RoI, in image pixels; pixel (row r, column c) is [c, c + 1] x [r, r + 1]. Run lengths as COCO has them,
            {"size": [height, width], "counts": numbers or compressed text}; polygons, [[x1, y1, x2, y2, ...], ...], whose union
            is the mask; or a bool array [H, W].
        mode: `exact`, the integral mean over mask and bin; `avg`, the mean of the samples that lie in the mask.
        sampling_ratio: samples per bin and axis in mode `avg`; 0 is adaptive, ceil(RoI size / output size).
        normalize: divide by the area of the mask in the bin, or by that of the bin.
        reduce: `mean` over the mask, or `max` of the bins that it touches.
        kernel: `auto`, `cpu`, `cuda` or `reference`.

    Returns:
        pooled [K, C, PH, PW], or [K, C] with `reduce`, zero in bins that the mask does not touch; and coverage [K, PH, PW]
        float32, the share of each bin that the mask covers. An empty bin counts as one of 1e-6 cells.

    Raises:
        OperatorInputError: an argument is not valid; the message names the argument and the row.
        KernelError: the kernel cannot run on this device.
    """
    maps = checks.check_maps(features)
    table = checks.check_rois(rois, maps[0])
    checks.check_no_gradient("rois", table)
    pieces = masks if isinstance(masks, Trapezoids) else parse_masks(masks, table.shape[0])
    checks.check_no_gradient("masks", pieces.sides)
    checks.check_choice("normalize", normalize, NORMALIZE)
    pieces_of = (pieces.first, pieces.sides, normalize, kernel)
    request = checks.make_request(
        maps, table, output_size, spatial_scale, sampling_ratio, aligned, mode, levels, reduce, dtype, modes=MODES
    )  # fmt: skip
    if reduce != "none" and out is None and needs_gradient(request):  # autograd derives the reduction
        bins, coverage = call(_NODE, replace(request, reduce="none", dtype=sum_type(request)), *pieces_of, out=None)
        return _reduce(bins, coverage, reduce, normalize).to(request.dtype), coverage
    pooled, coverage = call(_NODE, request, *pieces_of, out=out)
    return pooled, coverage


def _pool(
    request: Request, first: Tensor, sides: Tensor, normalize: str, kernel: str, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Pool a prepared request."""
    checks.check_values(request)
    coverage = np.zeros((request.rois.shape[0], *request.output_size))

    def define() -> Tensor:
        pooled, covered = reference_regions.masked(request, first, sides, normalize)
        coverage[:] = covered
        return pooled

    if request.reduce != "none":
        bins, covered = _pool(replace(request, reduce="none"), first, sides, normalize, kernel, None)
        reduced = _reduce(bins, covered, request.reduce, normalize).to(request.dtype)
        return reduced if out is None else out.copy_(reduced), covered
    pooled = pool_cells(cells_of(request, first, sides, normalize, coverage), kernel, define, out)
    return pooled, torch.from_numpy(coverage).to(pooled.device, torch.float32)


def _reduce(bins: Tensor, coverage: Tensor, reduce: str, normalize: str) -> Tensor:
    """Return one vector [K, C] per mask of its bins [K, C, PH, PW].

    The mean weighs bins by their coverage, so that it is the mean over the mask; with normalize="bin" all count the same. The
    maximum is that of the bins that the mask touches. Without such a bin both are 0.
    """
    wide = bins if bins.dtype == torch.float64 else bins.float()
    touched = coverage[:, None] > 0
    if reduce == "max":
        largest = wide.masked_fill(~touched, -torch.inf).amax((2, 3))
        return torch.where(touched.any(3).any(2), largest, 0)
    if normalize == "bin":
        return wide.mean((2, 3))
    weight = coverage[:, None].to(wide.dtype)
    return (wide * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(torch.finfo(wide.dtype).tiny)


def cells_of(
    request: Request, first: Tensor, sides: Tensor, normalize: str, coverage: npt.NDArray[np.float64]
) -> Cells:
    """Return a prepared request as a call of the kernels, which fills coverage [K, PH, PW], too."""
    from roialign_cli.ops.cpu import mask_weights

    height, width = request.output_size
    shape = (
        height,
        width,
        request.sampling_ratio,
        request.aligned,
        request.mode == "exact",
        NORMALIZE.index(normalize),
    )
    table = (*request.table, checks.scale_array(request))
    masks = (first.cpu().numpy(), *host_arrays(sides))

    def fill(rows: Indices, maps: Indices, lists: Lists) -> int:
        arrays = (lists.ptr, lists.offset, lists.weight, lists.slot, coverage.reshape(len(coverage), -1))
        return int(mask_weights.masked(rows, table, masks, maps, shape, *arrays))

    return Cells(replace(request, maps=channels_last(request.maps)), fill)


def _fake(request: Request, _rest: tuple[object, ...]) -> tuple[Tensor, Tensor]:
    covered = (request.rois.shape[0], *request.output_size)
    return empty_result(request), request.maps[0].new_empty(covered, dtype=torch.float32)


def _backward(passed: Tensor, request: Request, rest: tuple[Any, ...], _wanted: Sequence[bool]) -> list[Tensor]:
    """Return the gradients of the maps; see `ops.gradient`."""
    first, sides, normalize, _ = rest
    coverage = np.zeros((request.rois.shape[0], *request.output_size))
    gradients = transposed.map_gradients(cells_of(request, first, sides, normalize, coverage), passed)
    return [*gradients, *(passed.new_empty(0) for _ in range(3))]


_EXTRA = "Tensor first, Tensor sides, str normalize, str kernel"
_NODE = register("roi_align_masked", _EXTRA, _pool, _fake, "(Tensor, Tensor)")
register_gradient("roi_align_masked", _EXTRA, _NODE, _backward)
