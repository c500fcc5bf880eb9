"""Run torchvision's own operator: a cross-check, and the fallback on devices that no other kernel serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from roialign_cli.errors import KernelError
from roialign_cli.ops.request import Request, finish

# Samples of one RoI. torchvision's table takes 32 bytes for each, and more than 2**31 bytes crash the process.
MAX_SAMPLES = 1 << 26


def run(request: Request, out: Tensor | None) -> Tensor:
    """Return the pooled features of a request, mode avg only.

    Half types are computed in float32, since torchvision sums them in their own type, which overflows.
    """
    _check_samples(request)
    from torchvision.ops import roi_align  # takes a second to import and is seldom used

    size, ratio, aligned = request.output_size, request.sampling_ratio, request.aligned
    pooled = _level_by_level(request, lambda m, rois, scale: roi_align(m, rois, size, scale, ratio, aligned))
    return finish(pooled, request, out)


def accumulate(request: Request, passed: Tensor, totals: Sequence[Tensor]) -> None:
    """Add the gradients of the maps of a request in mode avg to `totals`, where our kernel cannot run.

    torchvision's kernels on GPUs add atomically, so the last bits of the sums differ from call to call.
    """
    import torchvision  # noqa: F401  registers the operator

    rois, levels = request.rois.to(passed.device, totals[0].dtype), request.levels
    (height, width), passed = request.output_size, passed.to(totals[0].dtype)
    for level, (total, scale) in enumerate(zip(totals, request.scales, strict=True)):
        rows = slice(None) if levels is None else torch.nonzero(levels == level).squeeze(1)
        total += torch.ops.torchvision._roi_align_backward(
            passed[rows], rois[rows], scale, height, width, *total.shape, request.sampling_ratio, request.aligned
        )


def _check_samples(request: Request) -> None:
    """Raise KernelError if a RoI has more samples than torchvision supports."""
    rois, levels = request.table
    scales = np.array(request.scales)[levels, None]
    bins = np.array(request.output_size)
    sizes = (rois[:, [4, 3]] - rois[:, [2, 1]]) * scales  # height and width in map cells
    grids = np.ceil(sizes / bins) if request.sampling_ratio == 0 else np.full_like(sizes, request.sampling_ratio)
    counts = (grids * bins).prod(axis=1)
    if counts.max(initial=0) > MAX_SAMPLES:
        row = int(counts.argmax())
        found = f"expected at most {MAX_SAMPLES} samples, found {counts[row]:.3g}"
        raise KernelError("kernel-samples", f"kernel torchvision: rois row {row}: {found}", "use kernel auto")


def roi_pool(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[float],
) -> Tensor:
    """Return RoI Pool of RoIs [K, 5], [K, C, PH, PW]: edges rounded to cells, then the maximum of each bin.

    Source: Fast R-CNN, arXiv:1504.08083, section 2.1.
    """
    from torchvision.ops import roi_pool as torchvision_roi_pool

    request = Request(
        features, rois, levels, output_size, scales, 0, False, "max", "none", features[0].dtype
    ).prepared()
    return _level_by_level(request, lambda m, rois, scale: torchvision_roi_pool(m, rois, output_size, scale))


def _level_by_level(request: Request, pool: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    """Return the rows of all levels, each pooled by `pool(map, rois, scale)` in float32 or float64."""
    features = request.maps[0]
    exact = features.dtype if features.dtype == torch.float64 else torch.float32
    result = features.new_empty(request.bins_shape, dtype=exact)
    rois = request.rois.to(features.device, exact)
    levels = torch.zeros(len(rois), dtype=torch.int64) if request.levels is None else request.levels
    levels = levels.to(features.device)
    for level, (m, scale) in enumerate(zip(request.maps, request.scales, strict=True)):
        rows = torch.nonzero(levels == level).squeeze(1)
        result[rows] = pool(m.to(exact), rois[rows], scale)
    return result
