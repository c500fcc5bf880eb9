"""torchvision's own operator behind our arguments: a cross-check, and the fallback on devices without a kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from roialign_cli.errors import KernelError
from roialign_cli.ops.request import Request, finish

MAX_SAMPLES = 1 << 26  # of a RoI: 32 bytes each in torchvision's table of them, which crashes the process beyond 2**31


def run(request: Request, out: Tensor | None) -> Tensor:
    """The pooled features of a request; averages only. Half types go through float32: its own half sums overflow."""
    _check_samples(request)
    from torchvision.ops import roi_align  # a second to import, and seldom used

    size, ratio, aligned = request.output_size, request.sampling_ratio, request.aligned
    pooled = _level_by_level(request, lambda m, rois, scale: roi_align(m, rois, size, scale, ratio, aligned))
    return finish(pooled, request, out)


def _check_samples(request: Request) -> None:
    """KernelError if a RoI has more samples than torchvision can take."""
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


def roi_pool(request: Request) -> Tensor:
    """RoI Pool (Fast R-CNN, arXiv:1504.08083, section 2.1) of the same RoIs: rounded to cells, the maximum of each bin."""
    from torchvision.ops import roi_pool as theirs

    return _level_by_level(request, lambda m, rois, scale: theirs(m, rois, request.output_size, scale))


def _level_by_level(request: Request, pool: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
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
