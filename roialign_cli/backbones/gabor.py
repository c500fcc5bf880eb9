"""A backbone without weights: oriented energy, colour and local contrast in 32 channels at stride 4.

Channels 0-23: energy of quadrature Gabor pairs (Daugman, 1985), 3 wavelengths (4, 8, 16 pixels) by 8 orientations, of
the luminance; 24-26: mean red, green, blue; 27-28: red-green and blue-yellow opponents; 29-31: standard deviation of the
luminance in Gaussian windows of sigma 2, 4, 8 pixels. All filters have even sides, so that cell i is centred on pixels
4i .. 4i+3; borders are replicated.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from roialign_cli.backbones.base import Backbone, Layer, Preprocessing, resolve_resize
from roialign_cli.backbones.optimize import Compiled
from roialign_cli.config import Settings
from roialign_cli.errors import BackboneError

STRIDE = 4
WAVELENGTHS = (4.0, 8.0, 16.0)  # pixels
ORIENTATIONS = 8
SIGMAS = (2.0, 4.0, 8.0)  # pixels
CHANNELS = len(WAVELENGTHS) * ORIENTATIONS + 5 + len(SIGMAS)


class Gabor(nn.Module):
    """The filter bank, from images [N, 3, H, W] in [0, 1] to maps [N, 32, ceil(H / 4), ceil(W / 4)]."""

    def __init__(self) -> None:
        super().__init__()
        for i, wavelength in enumerate(WAVELENGTHS):
            self.register_buffer(f"bank{i}", _gabor_bank(wavelength))
        for i, sigma in enumerate(SIGMAS):
            self.register_buffer(f"window{i}", _gaussian(sigma)[None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return all channels, concatenated."""
        luminance = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        channels = []
        for i in range(len(WAVELENGTHS)):
            even, odd = _filter(luminance, self.get_buffer(f"bank{i}")).chunk(2, dim=1)
            channels.append((even.square() + odd.square() + 1e-12).sqrt())
        colour = functional.avg_pool2d(_pad(images, STRIDE), STRIDE)
        red, green, blue = colour.chunk(3, dim=1)
        channels += [colour, red - green, blue - (red + green) / 2]
        for i in range(len(SIGMAS)):
            window = self.get_buffer(f"window{i}")
            mean, square = _filter(luminance, window), _filter(luminance.square(), window)
            channels.append((square - mean.square()).clamp_min(0).add(1e-12).sqrt())
        return torch.cat(channels, dim=1)


def load(settings: Settings) -> Backbone:
    """Build the filter bank, which has one layer. Raises BackboneError if weights or another layer are requested."""
    if settings.weights != "DEFAULT":
        message = f"gabor: expected no weights, as its filters are fixed, found --weights {settings.weights}"
        raise BackboneError("weights-unknown", message)
    if set(settings.layers) - {"gabor"}:
        raise BackboneError("layer-unknown", f"gabor: expected its one layer gabor, found {', '.join(settings.layers)}")
    model: nn.Module = Gabor().eval()
    digest = hashlib.sha256()
    for _, buffer in sorted(model.named_buffers()):
        digest.update(buffer.numpy().tobytes())
    preprocessing = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resolve_resize(settings, None))
    if settings.compile:
        model = Compiled(model)
    return Backbone("gabor", model, (Layer("gabor", CHANNELS, (STRIDE,)),), preprocessing, "fixed", digest.hexdigest())


def _centred_grid(half: int) -> tuple[Tensor, Tensor]:
    """Return y and x [2 * half, 2 * half] of pixel centres around the middle of a filter."""
    centres = torch.arange(2 * half, dtype=torch.float64) - half + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return y, x


def _gaussian(sigma: float) -> Tensor:
    y, x = _centred_grid(2 * round(1.5 * sigma))
    window = torch.exp(-(x.square() + y.square()) / (2 * sigma**2))
    return (window / window.sum()).float()


def _gabor_bank(wavelength: float) -> Tensor:
    """Return filters [2 * ORIENTATIONS, 1, side, side]: even ones of zero mean, then odd ones; gain 1 at `wavelength`."""
    sigma = 0.56 * wavelength  # one octave of bandwidth
    y, x = _centred_grid(2 * round(1.5 * sigma))
    window = torch.exp(-(x.square() + y.square()) / (2 * sigma**2))
    window = window / window.sum()
    even, odd = [], []
    for k in range(ORIENTATIONS):
        angle = math.pi * k / ORIENTATIONS
        phase = 2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
        cosine = window * torch.cos(phase)
        even.append(2 * (cosine - window * cosine.sum()))
        odd.append(2 * window * torch.sin(phase))
    return torch.stack(even + odd).unsqueeze(1).float()


def _pad(images: Tensor, side: int) -> Tensor:
    """Replicate borders so that filters of an even side, STRIDE pixels apart, are centred on blocks of STRIDE pixels."""
    height, width = images.shape[-2:]
    before = (side - STRIDE) // 2
    right, bottom = (-width % STRIDE) + before, (-height % STRIDE) + before
    return functional.pad(images, (before, right, before, bottom), mode="replicate")


def _filter(images: Tensor, bank: Tensor) -> Tensor:
    return functional.conv2d(_pad(images, bank.shape[-1]), bank, stride=STRIDE)
