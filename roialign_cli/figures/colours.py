"""Many channels as one or three colours: their mean, or their first principal components."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ENOUGH = 8192  # vectors that components are found from
TAIL = 0.01  # share of values at either end that may saturate


@dataclass(frozen=True)
class Colouring:
    """Channels [C] to colours: (values - mean) @ components, of which low..high become 0..1; components [C, 1 or 3]."""

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """[..., C] to [..., 1 or 3] in 0..1."""
        span = (self.high - self.low).clamp_min(1e-12)
        return (((vectors.float() - self.mean) @ self.components - self.low) / span).clamp(0, 1)


def channel_mean(vectors: Tensor) -> Colouring:
    """Of vectors [n, C]: the mean over channels."""
    channels = vectors.shape[1]
    return _ranged(vectors.float(), torch.zeros(channels), torch.full((channels, 1), 1 / channels))


def principal(vectors: Tensor, count: int) -> Colouring:
    """Of vectors [n, C]: the first `count` principal components, each with its largest entry positive, so that the
    same data always has the same colours."""
    some = vectors[:: max(1, len(vectors) // ENOUGH)].float()
    mean = some.mean(0)
    _, _, directions = torch.linalg.svd(some - mean, full_matrices=False)
    components = torch.zeros(vectors.shape[1], count)
    found = directions[:count].T
    components[:, : found.shape[1]] = found
    signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    return _ranged(some, mean, components * torch.where(signs == 0, 1, signs))


def _ranged(vectors: Tensor, mean: Tensor, components: Tensor) -> Colouring:
    values = (vectors - mean) @ components
    low, high = (torch.quantile(values, share, dim=0) for share in (TAIL, 1 - TAIL))
    return Colouring(mean, components, low, high)
