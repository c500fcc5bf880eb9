"""Position-sensitive RoI Align: each bin reads channels of its own. The public operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from roialign_cli.config import Mode, Reduce
from roialign_cli.ops import checks, reference_regions, transposed
from roialign_cli.ops.cells import Cells
from roialign_cli.ops.cpu.run import pack_bins
from roialign_cli.ops.dispatch import pool_cells
from roialign_cli.ops.gradient import register_gradient
from roialign_cli.ops.node import call, names_errors, register
from roialign_cli.ops.products import fill_products
from roialign_cli.ops.request import Request

MODES = ("avg", "exact")


@names_errors
def ps_roi_align(
    features: Tensor | Sequence[Tensor],
    rois: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    *,
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    mode: Mode = "avg",
    levels: Tensor | None = None,
    reduce: Reduce = "none",
    dtype: torch.dtype | None = None,
    kernel: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Pool RoIs of which each bin reads its own channels (R-FCN, arXiv:1605.06409, section 2, eq. 1).

    Bin (p, q) of output channel c reads channel (c * PH + p) * PW + q of the maps. Equals `torchvision.ops.ps_roi_align`.
    Has gradients to the maps. `torch.compile` and `torch.export` see one node, `roialign::ps_roi_align`. Arguments that are
    not listed are those of `roi_align`.

    Args:
        features: [N, C * PH * PW, H, W], or a list of such maps, one per level; they are copied once, so that the channels of a
            bin lie beside each other.
        mode: `avg`, or `exact`, the integral mean.
        kernel: `auto`, `cpu`, `cuda` or `reference`.

    Returns:
        [K, C, PH, PW], or [K, C] with `reduce`; sums are float32 (float64 for float64).

    Raises:
        OperatorInputError: an argument is not valid; the message names the argument and the row.
        KernelError: the kernel cannot run on this device.
    """
    maps = checks.check_maps(features)
    table = checks.check_rois(rois, maps[0])
    checks.check_no_gradient("rois", table)
    size = checks.check_output_size(output_size)
    if maps[0].shape[1] % (size[0] * size[1]):
        expected = f"expected a multiple of {size[0]} * {size[1]} channels, found {maps[0].shape[1]}"
        raise checks.input_error("features", expected)
    # torchvision's has half a cell of offset, always; it keeps boxes smaller than a cell, as `aligned` does
    request = checks.make_request(
        maps, table, output_size, spatial_scale, sampling_ratio, True, mode, levels, reduce, dtype, modes=MODES
    )  # fmt: skip
    pooled: Tensor = call(_NODE, request, kernel, out=out)
    return pooled


def _pool(request: Request, kernel: str, out: Tensor | None) -> Tensor:
    """Pool a prepared request."""
    checks.check_values(request)
    return pool_cells(cells_of(request), kernel, lambda: reference_regions.position_sensitive(request), out)


def cells_of(request: Request) -> Cells:
    """Return a prepared request as a call of the kernels."""
    fill = fill_products(request)
    bins = request.output_size[0] * request.output_size[1]
    own = replace(request, maps=[_by_bin(m, bins) for m in request.maps])
    return Cells(own, fill, maps_per_image=bins)


def _by_bin(features: Tensor, bins: int) -> Tensor:
    """Return maps [N, C * bins, H, W] as [N * bins, C, H, W] in channels-last memory."""
    if features.device.type == "cpu":
        return pack_bins(features, bins)
    n, channels, height, width = features.shape
    parts = features.reshape(n, channels // bins, bins, height, width).permute(0, 2, 3, 4, 1).contiguous()
    return parts.view(n * bins, height, width, channels // bins).permute(0, 3, 1, 2)


def _fake(request: Request, _rest: tuple[object, ...]) -> Tensor:
    k, channels, height, width = request.bins_shape
    shape = (k, channels // (height * width), height, width)
    return request.maps[0].new_empty(shape if request.reduce == "none" else shape[:2], dtype=request.dtype)


def _backward(passed: Tensor, request: Request, _rest: tuple[Any, ...], _wanted: Sequence[bool]) -> list[Tensor]:
    """Return the gradients of the maps; see `ops.gradient`."""
    bins = math.prod(request.output_size)
    gradients = [
        by_bin.reshape(len(features), bins, *by_bin.shape[1:]).transpose(1, 2).reshape(features.shape)
        for features, by_bin in zip(request.maps, transposed.map_gradients(cells_of(request), passed), strict=True)
    ]
    channels_last = (torch.empty_like(g, memory_format=torch.channels_last).copy_(g) for g in gradients)
    return [*channels_last, passed.new_empty(0)]


_EXTRA = "str kernel"
_NODE = register("ps_roi_align", _EXTRA, _pool, _fake)
register_gradient("ps_roi_align", _EXTRA, _NODE, _backward)
