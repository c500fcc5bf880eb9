"""Turn decoded images into network input on the device: [0, 1], resized, normalised, padded, channels-last."""

from __future__ import annotations

import functools
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from roialign_cli.backbones.base import Preprocessing
from roialign_cli.ops.cpu.threads import run_all
from roialign_cli.regions.normalise_kernel import fill_normalised
from roialign_cli.regions.resize import resized


def input_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the (height, width) of the network input for images of a size: resized and padded."""
    height, width = (side + -side % preprocessing.multiple for side in resized(size, preprocessing.resize))
    return height, width


def prepare(images: list[npt.NDArray[np.uint8]], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Return equal-sized RGB images [H, W, 3] as one float32 input [N, 3, H', W'], channels-last.

    The device gets them as uint8 and does the rest; the host does not wait for it. On the CPU images that keep their size
    take one pass instead of one per operation, with the same bits.
    """
    size = (images[0].shape[0], images[0].shape[1])
    if device.type == "cpu" and resized(size, preprocessing.resize) == size:
        return _normalise_in_one_pass(images, preprocessing)
    batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.stack(images, out=batch.numpy())
    return normalise(batch.to(device, non_blocking=True), preprocessing)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return images [N, H, W, 3] uint8 as network input, see `prepare`, computed on their device."""
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)
    size = (pixels.shape[2], pixels.shape[3])
    target = resized(size, preprocessing.resize)
    if target != size:
        pixels = functional.interpolate(pixels, target, mode="bilinear", antialias=preprocessing.antialias)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    mean, std = _row_constants(preprocessing, target[1], pixels.device)
    pixels.permute(0, 2, 3, 1).view(len(images), target[0], -1).sub_(mean).div_(std)
    height, width = input_size(size, preprocessing)
    if (height, width) != target:
        pixels = functional.pad(pixels, (0, width - target[1], 0, height - target[0]))
    return pixels.contiguous(memory_format=torch.channels_last)


def _normalise_in_one_pass(images: list[npt.NDArray[np.uint8]], preprocessing: Preprocessing) -> Tensor:
    """Return images that are not resized as network input on the CPU, see `prepare`."""
    height, width, _ = images[0].shape
    rows, columns = input_size((height, width), preprocessing)
    batch = torch.empty((len(images), rows, columns, 3))
    mean, std = (values.numpy() for values in _row_constants(preprocessing, width, batch.device))

    def fill(image: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        values = image.reshape(height, width * 3)
        values.setflags(write=False)  # as decoders return it or not: Numba compiles for either
        fill_normalised(values, mean, std, out)

    run_all(partial(fill, *pair) for pair in zip(images, batch.view(len(images), rows, -1).numpy(), strict=True))
    return batch.permute(0, 3, 1, 2)


def _row_constants(preprocessing: Preprocessing, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std of each of the width * 3 values of a row: operations on three values at a time are slow."""
    mean, std = (_on_device(values, device).repeat(width) for values in (preprocessing.mean, preprocessing.std))
    return mean, std


@functools.cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return values as a float32 tensor; they are copied once, because a copy from pageable memory waits for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device)
