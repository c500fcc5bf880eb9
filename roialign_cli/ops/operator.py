"""RoI Align: the public operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from roialign_cli.config import Mode, Reduce
from roialign_cli.ops import checks
from roialign_cli.ops.backward import check_samples, reads_maps, roi_align_backward
from roialign_cli.ops.dispatch import choose_kernel, run_kernel
from roialign_cli.ops.gradient import register_gradient
from roialign_cli.ops.node import call, empty_result, needs_gradient, register
from roialign_cli.ops.request import MODES, Request


def roi_align(
    features: Tensor | Sequence[Tensor],
    rois: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    *,
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    mode: Mode = "avg",
    levels: Tensor | None = None,
    reduce: Reduce = "none",
    dtype: torch.dtype | None = None,
    kernel: str = "auto",
    validate: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Pool RoIs from feature maps without rounding their coordinates (Mask R-CNN, arXiv:1703.06870, section 3).

    Has gradients to the maps, and to `rois` if they require it. `torch.compile` and `torch.export` see one node,
    `roialign::roi_align`.

    Args:
        features: [N, C, H, W], or a list of such maps, one per level; float32, float64, float16 or bfloat16, any
            strides (channels-last is read in place).
        rois: [K, 5] rows (batch index, x1, y1, x2, y2) in image pixels, or a list of N tensors [L, 4].
        output_size: bins per side, one number or (height, width).
        spatial_scale: map cells per image pixel (1 / stride), one number or one per level.
        sampling_ratio: samples per bin and axis; 0 is adaptive, ceil(RoI size / output size).
        aligned: shift by half a cell so that pixel centres meet cell centres (detectron2's `aligned`).
        mode: `avg`; `max` over interpolated samples; `exact`, the integral mean, the limit of infinitely many samples.
        levels: [K] integers, the map each RoI is pooled from; needed with several maps.
        reduce: `mean` or `max` over the bins of each RoI, which are then never stored.
        dtype: type of the result, the features' own by default; sums are rounded once.
        kernel: `auto`, `cpu`, `cuda`, `torchvision` or `reference`.
        validate: check every row of `rois` and `levels`, which waits once for CUDA tensors. With False the bundled CUDA
            kernel does not wait, and an invalid row gives NaN; other kernels always check.
        out: a contiguous tensor of the result's shape and type to write into.

    Returns:
        [K, C, PH, PW], or [K, C] with `reduce`; sums are float32 (float64 for float64).

    Raises:
        OperatorInputError: an argument is not valid; the message names the argument and the row.
        KernelError: the kernel cannot run on this device or in this mode.
    """
    maps = checks.check_maps(features)
    table = checks.check_rois(rois, maps[0])
    request = checks.make_request(
        maps, table, output_size, spatial_scale, sampling_ratio, aligned, mode, levels, reduce, dtype, modes=MODES
    )  # fmt: skip
    if (
        mode == "max"
        and needs_gradient(request)
        and not (torch.compiler.is_compiling() or checks.has_stand_in(request))
    ):
        prepared = request.prepared()
        checks.check_values(prepared)
        check_samples(prepared)  # now, rather than in the backward pass
    pooled: Tensor = call(_NODE, request, kernel, validate, out=out)
    return pooled


def _pool(request: Request, kernel: str, validate: bool, out: Tensor | None) -> Tensor:
    """Run the kernel that serves a prepared request."""
    device = request.maps[0].device
    if out is not None:
        checks.check_out_shape(out, request.shape, request.dtype, device)
    name = choose_kernel(kernel, device, request.mode, request.maps[0].dtype)
    if validate or name != "cuda":
        checks.check_values(request)
    result = run_kernel(request, kernel, name, out)
    return result if result.dtype == request.dtype else result.to(request.dtype)


_EXTRA = "str kernel, bool validate"
_NODE = register("roi_align", _EXTRA, _pool, empty_result)
register_gradient("roi_align", _EXTRA, _NODE, roi_align_backward, reads_maps)
