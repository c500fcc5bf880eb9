"""Turn decoded images into network input on the device: [0, 1], resized, normalised, padded, channels-last."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from roialign_cli.backbones.base import Preprocessing
from roialign_cli.regions.resize import resized


def prepare(images: list[npt.NDArray[np.uint8]], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Return equal-sized RGB images [H, W, 3] as one float32 input [N, 3, H', W'], channels-last."""
    batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
    pixels = batch.to(torch.float32, memory_format=torch.channels_last).div_(255)
    size = (pixels.shape[2], pixels.shape[3])
    target = resized(size, preprocessing.resize)
    if target != size:
        pixels = functional.interpolate(pixels, target, mode="bilinear", antialias=preprocessing.antialias)
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = pixels.sub_(mean).div_(std)
    bottom, right = (-side % preprocessing.multiple for side in target)
    if bottom or right:
        pixels = functional.pad(pixels, (0, right, 0, bottom))
    return pixels.contiguous(memory_format=torch.channels_last)
