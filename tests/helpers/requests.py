"""Build requests of RoI Align for kernels that are called directly."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from roialign_cli.ops.request import Request


def make_request(
    maps: Sequence[torch.Tensor],
    rois: torch.Tensor,
    levels: torch.Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    mode: str,
    reduce: str = "none",
    dtype: torch.dtype | None = None,
) -> Request:
    """Return a prepared request; the type of the result is that of the maps by default."""
    request = Request(
        maps, rois, levels, output_size, scales, sampling_ratio, aligned, mode, reduce, dtype or maps[0].dtype
    )
    return request.prepared()
