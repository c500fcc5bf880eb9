"""torchvision's own operator behind our arguments: a cross-check, and the fallback on devices without a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from roialign_cli.ops.request import Request


def run(request: Request, out: Tensor | None) -> Tensor:
    """The pooled features [K, C, PH, PW]; averages only."""
    from torchvision.ops import roi_align  # a second to import, and seldom used

    features = request.maps[0]
    result = out if out is not None else features.new_empty(request.shape)
    rois = torch.from_numpy(request.rois).to(features.device, features.dtype)
    levels = torch.from_numpy(request.levels).to(features.device)
    for level, (m, scale) in enumerate(zip(request.maps, request.scales, strict=True)):
        rows = torch.nonzero(levels == level).squeeze(1)
        pooled = roi_align(m, rois[rows], request.output_size, float(scale), request.sampling_ratio, request.aligned)
        result[rows] = pooled
    return result
