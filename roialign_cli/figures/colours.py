"""Map many channels to one or three colours: by their mean, or by their first principal components."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_VECTORS = 8192  # from which components are computed
TAIL_SHARE = 0.01  # of values at either end that may saturate


@dataclass(frozen=True)
class Colouring:
    """Map channels [C] to colours: (values - mean) @ components [C, 1 or 3], scaled so that low..high become 0..1."""

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map [..., C] to [..., 1 or 3] in 0..1."""
        span = (self.high - self.low).clamp_min(1e-12)
        return (((vectors.float() - self.mean) @ self.components - self.low) / span).clamp(0, 1)


def channel_mean(vectors: Tensor) -> Colouring:
    """Return the colouring of vectors [n, C] by the mean over channels."""
    channels = vectors.shape[1]
    return _ranged(vectors.float(), torch.zeros(channels), torch.full((channels, 1), 1 / channels))


def principal(vectors: Tensor, count: int) -> Colouring:
    """Return the colouring of vectors [n, C] by their first `count` principal components.

    The largest entry of each component is positive, so that the same data always gets the same colours.
    """
    some = vectors[:: max(1, len(vectors) // MAX_VECTORS)].float()
    mean = some.mean(0)
    _, _, directions = torch.linalg.svd(some - mean, full_matrices=False)
    components = torch.zeros(vectors.shape[1], count)
    found = directions[:count].T
    components[:, : found.shape[1]] = found
    signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    return _ranged(some, mean, components * torch.where(signs == 0, 1, signs))


def _ranged(vectors: Tensor, mean: Tensor, components: Tensor) -> Colouring:
    """Return the colouring whose range fits the vectors, except for the tails."""
    values = (vectors - mean) @ components
    low, high = (torch.quantile(values, share, dim=0) for share in (TAIL_SHARE, 1 - TAIL_SHARE))
    return Colouring(mean, components, low, high)
