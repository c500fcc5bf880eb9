"""torchvision's own operator behind our arguments: a cross-check, and the fallback on devices without a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from roialign_cli.ops.request import Request, finish


def run(request: Request, out: Tensor | None) -> Tensor:
    """The pooled features of a request; averages only. Half types go through float32: its own half sums overflow."""
    from torchvision.ops import roi_align  # a second to import, and seldom used

    features = request.maps[0]
    exact = features.dtype if features.dtype == torch.float64 else torch.float32
    result = features.new_empty(request.bins_shape, dtype=exact)
    rois = request.rois.to(features.device, exact)
    levels = torch.zeros(len(rois), dtype=torch.int64) if request.levels is None else request.levels
    levels = levels.to(features.device)
    for level, (m, scale) in enumerate(zip(request.maps, request.scales, strict=True)):
        rows = torch.nonzero(levels == level).squeeze(1)
        size, ratio = request.output_size, request.sampling_ratio
        result[rows] = roi_align(m.to(exact), rois[rows], size, scale, ratio, request.aligned)
    return finish(result, request, out)
