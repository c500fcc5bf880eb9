"""Make feature maps and RoIs of every kind, and measure how far results are apart."""

from __future__ import annotations

import torch


def make_rois(count: int, batch: int, width: float, height: float, seed: int = 0) -> torch.Tensor:
    """Return boxes inside, across and outside an image, small and huge; the awkward ones come first."""
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor([
        [0, 0, 0, width, height], [0, 3, 3, 3, 3], [0, -1e4, -1e4, 1e4, 1e4], [0, -50, -50, -20, -20],
        [0, width, height, width + 9, height + 9], [0, 1.5, 0, 1.5, height], [0, 0, 0, 1e-3, 1e-3],
        [0, width - 1, 0, width, 1], [0, -0.5, -0.5, 0.5, 0.5],
    ])  # fmt: skip
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 1.2 - 0.1 * width
    size = torch.rand(count, 2, generator=generator).pow(2) * torch.tensor([width, height])
    index = torch.randint(0, batch, (count, 1), generator=generator)
    return torch.cat([special, torch.cat([index, corner, corner + size], dim=1)])


def layouts(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the same values in every memory layout that users have."""
    n, c, h, w = maps.shape
    wide = torch.zeros(n, 2 * c, h + 3, 2 * w, dtype=maps.dtype)
    wide[:, ::2, 1 : h + 1, ::2] = maps
    return {
        "NCHW": maps.contiguous(),
        "channels-last": maps.contiguous(memory_format=torch.channels_last),
        "sliced": wide[:, ::2, 1 : h + 1, ::2],
        "transposed": maps.transpose(2, 3).contiguous().transpose(2, 3),
        "channels-last window": wide.contiguous(memory_format=torch.channels_last)[:, :c, 1 : h + 1, :w],
    }


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference over the largest expected value; anything but a finite number counts as infinite."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return float("inf")
    scale = expected.double().abs().max().clamp_min(1e-30)
    return float((found.double() - expected.double()).abs().max() / scale)


def whole_cell_rois(count: int, scale: float) -> torch.Tensor:
    """Return RoIs [count, 5] in whole pixels, of which each of 7 x 7 bins covers one to three whole cells, or nearly so.

    With one rounding too few, the adaptive grid of some bins is denser than that of the reference.
    """
    corners = torch.randint(0, 500, (count, 2), generator=torch.Generator().manual_seed(0)).float()
    cells = torch.randint(1, 4, (count, 2), generator=torch.Generator().manual_seed(1))
    return torch.cat([torch.zeros(count, 1), corners, corners + (7 * cells / scale).round()], dim=1)
