"""The size of an image after it is resized for the network. Needs no torch, so that runs are planned without it."""

from __future__ import annotations

from typing import Any

import numpy as np

from roialign_cli.config import Resize


def resize_scale(height: Any, width: Any, resize: Resize) -> Any:
    """Return the scale of images [M] with sides in pixels, or of one image: torchvision's GeneralizedRCNNTransform.

    The short side becomes SHORT pixels unless the long side would then exceed MAX. A side of zero gives infinity.
    """
    if resize is None:
        return np.ones_like(height, np.float64)
    short, longest = resize
    with np.errstate(divide="ignore"):
        scale = short / np.minimum(height, width)
        return scale if longest is None else np.minimum(scale, longest / np.maximum(height, width))


def resized(size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Return the (height, width) of an image after a resize; sides are rounded down, as torchvision does."""
    if resize is None:
        return size
    scale = resize_scale(*size, resize)
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)
