"""What is measured of the pooled features of a variant, box by box, against the exact integral."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roialign_cli.ablation.grid import Variant
from roialign_cli.backbones.base import Layer

SHIFT_PIXELS = 0.5  # pixels of the original image, right and down, by which boxes are moved for the alignment error
MIN_RELATIVE_CHANGE = (
    1e-4  # of the features: a smaller change under the shift is rounding, and nothing can be told from it
)
METRICS = ("error", "cosine", "alignment_px", "offset_px", "samples_per_bin")


@dataclass(frozen=True)
class Exact:
    """Exact features of K boxes [K, D], their norm [K]; by how much moving the boxes by SHIFT changes them [K, D].

    `square` is what of the step is squared and summed [K], NaN where nothing changes to speak of.
    """

    features: Tensor
    norm: Tensor
    step: Tensor
    square: Tensor

    @classmethod
    def of(cls, features: Tensor, shifted: Tensor) -> Exact:
        """From the features of the boxes and of the moved boxes, [K, C, PH, PW] each."""
        flat = features.flatten(1)
        norm, step = flat.norm(dim=1), shifted.flatten(1) - flat
        square = torch.linalg.vecdot(step, step)
        return cls(flat, norm, step, torch.where(square > (MIN_RELATIVE_CHANGE * norm).square(), square, torch.nan))


def compare(pooled: Tensor, shifted: Tensor, own: Exact, centred: Exact) -> Tensor:
    """The first four METRICS [4, K] of a variant's features of the boxes and of the moved boxes, [K, C, PH, PW] each.

    `own` is exact in the variant's geometry, `centred` in the aligned one. error: |f - e| / |e| over all of a box's
    features; 0 or 1 where e is zero. cosine: of f and e. alignment_px: with d the exact change under the shift, the
    features moved by (f' - f).d / d.d of it; how many pixels that misses. offset_px: how far, along the diagonal, right
    and down, the box of the aligned exact features lies that f resembles most, to first order. NaN where nothing changes.
    """
    found, after = pooled.flatten(1), shifted.flatten(1)
    gap = found - own.features
    distance, norm = gap.norm(dim=1), found.norm(dim=1)
    error = torch.where(own.norm > 0, distance / own.norm, (norm > 0).to(distance))
    cosine = torch.linalg.vecdot(found, own.features) / (norm * own.norm)
    cosine = torch.where(norm * own.norm > 0, cosine, (norm == own.norm).to(cosine))
    moving = _share(after - found, own)
    away = gap if own is centred else found - centred.features
    return torch.stack([error, cosine, (moving - 1).abs() * SHIFT_PIXELS, _share(away, centred) * SHIFT_PIXELS])


def _share(change: Tensor, exact: Exact) -> Tensor:
    """The least-squares multiple [K] of the exact step that a change [K, D] is; NaN where there is no step to speak of."""
    along: Tensor = torch.linalg.vecdot(change, exact.step)
    return along / exact.square


def samples_per_bin(variant: Variant, layer: Layer, rois: Tensor, levels: Tensor | None) -> Tensor:
    """How many samples each bin of RoIs [K, 5] has, [K]; NaN where bins are not sampled."""
    settings = variant.settings
    if variant.op == "roi_pool" or settings.mode == "exact":
        return torch.full((len(rois),), torch.nan)
    if settings.sampling_ratio:
        return torch.full((len(rois),), float(settings.sampling_ratio**2))
    strides = torch.tensor(layer.strides, dtype=rois.dtype)
    sides = (rois[:, 3:] - rois[:, 1:3]) / (strides[levels] if levels is not None else strides)[:, None]
    if not settings.aligned:
        sides = sides.clamp_min(1)
    bins = torch.tensor(settings.output_size[::-1], dtype=rois.dtype)
    return torch.ceil(sides / bins).prod(1).float()
