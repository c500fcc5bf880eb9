"""The CPU kernel of preprocessing, compiled by Numba: decoded pixels to network input in one pass over the memory."""

import numpy as np

from roialign_cli.ops.cpu.jit import rounded


@rounded
def fill_normalised(image, mean, std, out):
    """Write (x / 255 - mean) / std of an image, and zeros to the right of it and below it.

    image: [H, W * 3] uint8, C-contiguous and read-only. mean, std: [W * 3] float32, of each value in a row.
    out: [H', W' * 3] float32, C-contiguous. Every step is rounded to float32, as by torch.
    """
    height, width = image.shape
    for y in range(height):
        for x in range(width):
            out[y, x] = (np.float32(image[y, x]) / np.float32(255) - mean[x]) / std[x]
        out[y, width:] = 0
    out[height:] = 0
