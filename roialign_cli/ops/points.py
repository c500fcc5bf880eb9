"""Sample feature maps at points: a RoI without area, of which RoI Align reads one sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from roialign_cli.ops.checks import check_levels, check_points, check_scales
from roialign_cli.ops.node import names_errors
from roialign_cli.ops.operator import roi_align


@names_errors
def point_sample(
    features: Tensor | Sequence[Tensor],
    points: Tensor,
    *,
    spatial_scale: float | Sequence[float] = 1.0,
    aligned: bool = True,
    levels: Tensor | None = None,
    kernel: str = "auto",
    validate: bool = True,
) -> Tensor:
    """Interpolate feature maps at points, as RoI Align does at its samples (Mask R-CNN, arXiv:1703.06870, section 3).

    Inside the map it equals `grid_sample` of torch with `padding_mode="border"` and `align_corners=False`. Up to one cell
    outside, a point is moved to the border; further outside the result is 0. Has gradients to maps and points. See
    `roi_align` for kernels.

    Args:
        features: [N, C, H, W], or a list of such maps, one per level.
        points: [P, 3] rows (batch index, x, y) in image pixels.
        spatial_scale: map cells per image pixel (1 / stride), one number or one per level.
        aligned: shift by half a cell so that pixel centres meet cell centres.
        levels: [P] integers, the map each point is sampled from; needed with several maps.
        kernel: `auto`, `cpu`, `cuda` or `reference`.
        validate: check every row of `points`, which waits once for CUDA tensors; see `roi_align`.

    Returns:
        [P, C], of the features' type.

    Raises:
        OperatorInputError: an argument is not valid; the message names the argument and the row.
        KernelError: the kernel cannot run on this device.
    """
    maps = [features] if isinstance(features, Tensor) else list(features)
    check_points(points, maps[0].shape[0] if maps and validate and isinstance(maps[0], Tensor) else None)
    places = points[:, 1:].double()
    if not aligned:  # a RoI that is not aligned covers at least one cell: move the points by the half cell instead
        scales = torch.tensor(check_scales(spatial_scale, len(maps)), dtype=torch.float64, device=points.device)
        of_points = check_levels(levels, len(maps), len(points))
        if of_points is not None:  # clamped, as `roi_align` reports those that do not exist
            scales = scales[of_points.to(points.device).clamp(0, len(maps) - 1)][:, None]
        places = places + 0.5 / scales
    rois = torch.cat([points[:, :1].double(), places, places], dim=1)
    pooled = roi_align(
        features, rois, 1, spatial_scale=spatial_scale, mode="exact", levels=levels, kernel=kernel, validate=validate
    )
    return pooled.flatten(1)
