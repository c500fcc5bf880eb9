"""Deformable RoI pooling: RoI Align whose bins are moved by learned offsets. The public operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.config import Mode, Reduce
from roialign_cli.ops import checks, reference_regions, transposed
from roialign_cli.ops.backward import derivative, rows_of
from roialign_cli.ops.cells import Cells, channels_last, host_arrays
from roialign_cli.ops.cpu import kernel as cpu_kernel
from roialign_cli.ops.dispatch import pool_cells
from roialign_cli.ops.gradient import register_gradient
from roialign_cli.ops.node import call, empty_result, names_errors, register
from roialign_cli.ops.products import NO_OFFSETS, fill_products
from roialign_cli.ops.request import Request

MODES = ("avg", "exact")
GAMMA = 0.1  # of Deformable ConvNets v1


@names_errors
def deform_roi_align(
    features: Tensor | Sequence[Tensor],
    rois: Tensor | Sequence[Tensor],
    offsets: Tensor,
    output_size: int | Sequence[int],
    *,
    modulation: Tensor | None = None,
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    gamma: float = GAMMA,
    aligned: bool = True,
    mode: Mode = "avg",
    levels: Tensor | None = None,
    reduce: Reduce = "none",
    dtype: torch.dtype | None = None,
    kernel: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Pool RoIs whose bins are moved, as Deformable ConvNets do (arXiv:1703.06211, section 2.2; arXiv:1811.11168, section 3.2).

    Bin (p, q) is moved by gamma * offset * (width, height of the RoI in map cells). Has gradients to maps, offsets and
    modulation. `torch.compile` and `torch.export` see one node, `roialign::deform_roi_align`. Arguments that are not listed
    are those of `roi_align`. Maps that are not channels-last are copied whole.

    Args:
        offsets: [K, 2, PH, PW], of each bin along x and along y.
        modulation: [K, PH, PW], factors of the bins (version 2 of the paper); None is 1.
        gamma: factor of all offsets.
        mode: `avg`, or `exact`, the integral mean over the moved bins.
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
    request = checks.make_request(
        maps, table, output_size, spatial_scale, sampling_ratio, aligned, mode, levels, reduce, dtype, modes=MODES
    )  # fmt: skip
    if not isinstance(gamma, int | float) or not math.isfinite(gamma):
        raise checks.input_error("gamma", f"expected a finite number, found {gamma!r}")
    checks.check_bin_values("offsets", offsets, (table.shape[0], 2, *size))
    if modulation is not None:
        checks.check_bin_values("modulation", modulation, (table.shape[0], *size))
    pooled: Tensor = call(_NODE, request, offsets, modulation, float(gamma), kernel, out=out)
    return pooled


def _pool(
    request: Request, offsets: Tensor, modulation: Tensor | None, gamma: float, kernel: str, out: Tensor | None
) -> Tensor:
    """Pool a prepared request."""
    checks.check_values(request)
    moved, factors = _arrays(offsets, modulation)
    checks.check_finite("offsets", moved)
    checks.check_finite("modulation", factors)
    cells = Cells(replace(request, maps=channels_last(request.maps)), fill_products(request, moved, factors, gamma))
    return pool_cells(cells, kernel, lambda: reference_regions.deformable(request, moved, factors, gamma), out)


def _arrays(offsets: Tensor, modulation: Tensor | None) -> list[npt.NDArray[np.float64]]:
    """Return offsets and modulation on the host; no modulation is an empty array."""
    return host_arrays(offsets, torch.empty(0, 1, 1) if modulation is None else modulation)


def _backward(passed: Tensor, request: Request, rest: tuple[Any, ...], wanted: Sequence[bool]) -> list[Tensor]:
    """Return the gradients of the maps, offsets and modulation; see `ops.gradient`."""
    offsets, modulation, gamma, _ = rest
    moved, factors = _arrays(offsets, modulation)
    nothing = passed.new_empty(0)
    maps = [nothing] * len(request.maps)
    if wanted[0]:
        lists = fill_products(request, moved, factors, gamma)
        maps = transposed.map_gradients(Cells(replace(request, maps=channels_last(request.maps)), lists), passed)

    def derived(factors: npt.NDArray[np.float64], towards: int) -> npt.NDArray[np.float64]:
        return derivative(
            request, passed,
            lambda rows: fill_products(rows_of(request, rows), moved[rows], factors[rows], gamma, towards),
        )  # fmt: skip

    of_offsets = of_modulation = nothing
    if wanted[2]:
        slopes = np.stack([derived(factors, cpu_kernel.SHIFT_X), derived(factors, cpu_kernel.SHIFT_Y)], axis=1)
        of_offsets = torch.from_numpy(slopes * gamma * _extents(request)[:, :, None, None]).to(offsets)
    if modulation is not None and wanted[3]:
        of_modulation = torch.from_numpy(derived(NO_OFFSETS[:, 0], cpu_kernel.NOTHING)).to(modulation)
    return [*maps, nothing, of_offsets, *([] if modulation is None else [of_modulation])]


def _extents(request: Request) -> npt.NDArray[np.float64]:
    """Return the width and height [K, 2] of RoIs in map cells."""
    rois, levels = request.table
    extents: npt.NDArray[np.float64] = (rois[:, 3:5] - rois[:, 1:3]) * np.array(request.scales)[levels][:, None]
    return extents if request.aligned else np.maximum(extents, 1.0)


_EXTRA = "Tensor offsets, Tensor? modulation, float gamma, str kernel"
_NODE = register("deform_roi_align", _EXTRA, _pool, empty_result)
register_gradient("deform_roi_align", _EXTRA, _NODE, _backward)
