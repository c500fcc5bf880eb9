"""Map many channels to one or three colours: by their mean, or by their first principal components.

Values that are not finite are grey, and do not change the colours of others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_VECTORS = 8192  # from which components are computed
TAIL_SHARE = 0.01  # of values at either end that may saturate
GREY = 0.5


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
        colours = (((vectors.double() - self.mean) @ self.components - self.low) / span).clamp(0, 1)
        return torch.where(vectors.isfinite().all(-1, keepdim=True), colours, GREY).float()


def channel_mean(vectors: Tensor) -> Colouring:
    """Return the colouring of vectors [n, C] by the mean over channels."""
    channels = vectors.shape[1]
    mean, components = torch.zeros(channels).double(), torch.full((channels, 1), 1 / channels).double()
    return _ranged(_finite(vectors), mean, components)


def principal(vectors: Tensor, count: int) -> Colouring:
    """Return the colouring of vectors [n, C] by their first `count` principal components.

    The largest entry of each component is positive, so that the same data always gets the same colours.
    """
    some = _finite(vectors[:: max(1, len(vectors) // MAX_VECTORS)])
    mean = some.mean(0)
    _, _, directions = torch.linalg.svd(some - mean, full_matrices=False)
    components = torch.zeros(vectors.shape[1], count).double()
    found = directions[:count].T
    components[:, : found.shape[1]] = found
    signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    return _ranged(some, mean, components * torch.where(signs == 0, 1, signs))


def _finite(vectors: Tensor) -> Tensor:
    """Return the vectors [n, C] whose values are all finite, in double precision; one of zeros if there are none."""
    found = vectors[vectors.isfinite().all(1)].double()
    return found if len(found) else vectors.new_zeros(1, vectors.shape[1]).double()


def _ranged(vectors: Tensor, mean: Tensor, components: Tensor) -> Colouring:
    """Return the colouring whose range fits the vectors, except for the tails."""
    values = (vectors - mean) @ components
    low, high = (torch.quantile(values, share, dim=0) for share in (TAIL_SHARE, 1 - TAIL_SHARE))
    return Colouring(mean, components, low, high)
