"""Load a trained head that moves the bins of RoI Align: learnable sampling, as in Deformable ConvNets.

Sources: arXiv:1703.06211, section 2.2; arXiv:1811.11168, section 3.2. The names and shapes of the tensors are those of mmcv's
DeformRoIPoolPack and ModulatedDeformRoIPoolPack.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from roialign_cli.backbones.base import Backbone
from roialign_cli.backbones.weights import load_matching, read_weights_file
from roialign_cli.config import Settings, format_size
from roialign_cli.errors import BackboneError

OFFSETS, MODULATION = "offset_fc.", "mask_fc."  # how the names of the two parts begin


class BinMover(nn.Module):
    """Compute offsets, and with modulation also factors, of the bins of RoIs from their pooled features.

    Both parts have fully connected layers with ReLU between them; a sigmoid follows the one of the factors.
    """

    def __init__(self, channels: int, output_size: tuple[int, int], hidden: int, *, modulated: bool) -> None:
        super().__init__()
        self.output_size = output_size
        bins = math.prod(output_size)
        self.offset_fc = nn.Sequential(
            nn.Linear(channels * bins, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * bins),
        )
        self.mask_fc = (
            nn.Sequential(nn.Linear(channels * bins, hidden), nn.ReLU(), nn.Linear(hidden, bins), nn.Sigmoid())
            if modulated
            else None
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return offsets [K, 2, PH, PW] and factors [K, PH, PW], or None, for features [K, C, PH, PW]."""
        flat = features.flatten(1)
        offsets = self.offset_fc(flat).view(len(flat), 2, *self.output_size)
        return offsets, None if self.mask_fc is None else self.mask_fc(flat).view(len(flat), *self.output_size)


def with_bin_mover(backbone: Backbone, settings: Settings) -> Backbone:
    """Return a backbone with the head in the file of the setting `deform`.

    Raises BackboneError if the file cannot be read, or does not fit the layers and the output size.
    """
    weights = read_weights_file(Path(settings.deform))
    assert weights.state is not None
    channels = {layer.channels for layer in backbone.layers}
    if len(channels) > 1:
        found = ", ".join(f"{layer.name} {layer.channels}" for layer in backbone.layers)
        message = f"deform: expected layers of as many channels each, found {found}"
        raise BackboneError("deform-layers", message, "choose one with --layers")
    first = weights.state.get(f"{OFFSETS}0.weight")
    if first is None or first.dim() != 2:
        names = ", ".join(list(weights.state)[:3])
        message = f"{settings.deform}: expected tensors {OFFSETS}{{0,2,4}}.{{weight,bias}}, found {names}"
        raise BackboneError("weights-mismatch", message, "save the state dict of DeformRoIPoolPack")
    hidden, inputs = first.shape
    count, size = channels.pop(), format_size(settings.output_size)
    expected = count * math.prod(settings.output_size)
    if inputs != expected:
        message = f"{settings.deform}: expected a head for {count} channels of {size} bins, {expected} inputs"
        raise BackboneError(
            "weights-mismatch", f"{message}, found {inputs}", "choose the layer and the output size of its training"
        )
    modulated = any(name.startswith(MODULATION) for name in weights.state)
    mover = BinMover(count, settings.output_size, hidden, modulated=modulated)
    load_matching(mover, weights.state, set(mover.state_dict()), settings.deform)
    for parameter in mover.parameters():
        parameter.requires_grad_(False)
        if not torch.isfinite(parameter).all():
            raise BackboneError("weights-mismatch", f"{settings.deform}: expected finite numbers, found others")
    return dataclasses.replace(backbone, deform=mover.eval(), deform_sha256=weights.sha256)
