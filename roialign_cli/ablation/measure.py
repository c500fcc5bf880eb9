"""Measure the pooled features of a variant, box by box, against the exact integral."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roialign_cli.ablation.grid import Variant
from roialign_cli.backbones.base import Layer
from roialign_cli.regions.regions import Regions

SHIFT_PIXELS = 0.5  # of the original image, right and down, by which boxes are moved for the alignment error
# Of the features; a smaller change under the shift is only rounding.
MIN_RELATIVE_CHANGE = 1e-4
METRICS = ("error", "cosine", "alignment_px", "offset_px", "samples_per_bin")


@dataclass(frozen=True)
class Exact:
    """Hold exact features of K boxes [K, D], their norm [K], and their change when boxes move by SHIFT_PIXELS [K, D].

    `square` [K] is the squared norm of that change, NaN where it is too small.
    """

    features: Tensor
    norm: Tensor
    step: Tensor
    square: Tensor

    @classmethod
    def from_features(cls, features: Tensor, shifted: Tensor) -> Exact:
        """Compute it from the features of the boxes and of the shifted boxes, [K, C, PH, PW] each."""
        flat = features.flatten(1)
        norm, step = flat.norm(dim=1), shifted.flatten(1) - flat
        square = torch.linalg.vecdot(step, step)
        return cls(flat, norm, step, torch.where(square > (MIN_RELATIVE_CHANGE * norm).square(), square, torch.nan))


def compare(pooled: Tensor, shifted: Tensor, own: Exact, centred: Exact) -> Tensor:
    """Return the first four METRICS [4, K] of a variant, from its features f of the boxes and f' of the shifted boxes.

    Features are [K, C, PH, PW]. `own` holds exact features e in the geometry of the variant, `centred` in the aligned one.

    - error: |f - e| / |e| over all features of a box; 0 or 1 where e is zero, NaN where features are not finite.
    - cosine: that of f and e.
    - alignment_px: the shift should change the features by d, as it changes e. They change by (f' - f).d / d.d of it; the
      metric is by how many pixels this misses the shift.
    - offset_px: how far right and down, along the diagonal, the box lies whose aligned exact features resemble f most, to
      first order.

    The last two are NaN where the shift changes too little.
    """
    found, after = pooled.flatten(1), shifted.flatten(1)
    gap = found - own.features
    distance, norm = gap.norm(dim=1), found.norm(dim=1)
    error = torch.where(own.norm == 0, (norm > 0).to(distance), distance / own.norm)
    cosine = torch.linalg.vecdot(found, own.features) / (norm * own.norm)
    cosine = torch.where(norm * own.norm == 0, (norm == own.norm).to(cosine), cosine)
    moving = _projection(after - found, own)
    away = gap if own is centred else found - centred.features
    return torch.stack([error, cosine, (moving - 1).abs() * SHIFT_PIXELS, _projection(away, centred) * SHIFT_PIXELS])


def _projection(change: Tensor, exact: Exact) -> Tensor:
    """Return the least-squares multiple [K] of the exact change that a change [K, D] is; NaN where that is too small."""
    along: Tensor = torch.linalg.vecdot(change, exact.step)
    return along / exact.square


def samples_per_bin(variant: Variant, layer: Layer, regions: Regions, levels: Tensor | None) -> Tensor:
    """Return the number of samples in each bin of regions, [K]; NaN where bins are not sampled."""
    settings = variant.settings
    if variant.op == "roi_pool" or settings.mode == "exact":
        return torch.full((len(regions),), torch.nan)
    if settings.sampling_ratio:
        return torch.full((len(regions),), float(settings.sampling_ratio**2))
    strides = torch.tensor(layer.strides, dtype=torch.float64)
    sides = regions.sides() / (strides[levels] if levels is not None else strides)[:, None]
    if not settings.aligned:
        sides = sides.clamp_min(1)
    bins = torch.tensor(settings.output_size[::-1], dtype=torch.float64)
    return torch.ceil(sides / bins).prod(1).float()
