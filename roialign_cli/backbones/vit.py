"""Load torchvision's Vision Transformers as maps: patch tokens arranged in rows and columns, at any image size.

Position embeddings are interpolated (bicubic) to the grid of patches, as for fine-tuning at a higher resolution
(arXiv:2010.11929, section 3.2). Images are padded to whole patches at the right and the bottom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from roialign_cli.backbones.base import Backbone, Layer, Preprocessing, resolve_resize
from roialign_cli.backbones.optimize import Compiled
from roialign_cli.backbones.weights import Weights, load_matching, state_sha256
from roialign_cli.config import Settings, suggest
from roialign_cli.errors import BackboneError

LAST_LAYER = "encoder"  # the output after the last block and its norm


def layer_names(model: VisionTransformer) -> list[str]:
    """Return the names of the blocks in order, followed by the last layer."""
    return [*(name for name, _ in model.encoder.layers.named_children()), LAST_LAYER]


def image_size(state: Mapping[str, Tensor] | None) -> int | None:
    """Return the side in pixels of the square training images, from the number of position embeddings; None: unknown."""
    if state is None or not {"encoder.pos_embedding", "conv_proj.weight"} <= set(state):
        return None
    tokens, patch = state["encoder.pos_embedding"].shape[1] - 1, state["conv_proj.weight"].shape[-1]
    return int(math.isqrt(max(tokens, 0)) * patch) or None


def load(settings: Settings, whole: VisionTransformer, weights: Weights, entry: Any) -> Backbone:
    """Load the blocks that the settings name, by default the last layer; `entry` has the transform of the images."""
    names = layer_names(whole)
    layers = settings.layers or (LAST_LAYER,)
    for layer in layers:
        if layer not in names:
            hint = suggest(layer, names)
            raise BackboneError(
                "layer-unknown", f"{settings.backbone}: expected {', '.join(names)}, found {layer!r}", hint
            )
    if weights.state is not None:
        load_matching(whole, weights.state, set(whole.state_dict()), weights.name)
    model: nn.Module = TokenMaps(whole, layers).eval()
    digest = weights.sha256 or state_sha256(model)
    transform = entry.transforms()
    resize = resolve_resize(settings, None)
    return Backbone(
        name=settings.backbone,
        model=Compiled(model) if settings.compile else model,
        layers=tuple(Layer(layer, whole.hidden_dim, (whole.patch_size,)) for layer in layers),
        preprocessing=Preprocessing(tuple(transform.mean), tuple(transform.std), resize, multiple=whole.patch_size),
        weights=weights.name,
        weights_sha256=digest,
    )


class TokenMaps(nn.Module):
    """A Vision Transformer that returns the maps [N, C, H / patch, W / patch] of the named layers."""

    def __init__(self, model: VisionTransformer, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.conv_proj, self.class_token = model.conv_proj, model.class_token
        encoder: Any = model.encoder
        blocks = list(encoder.layers.named_children())
        needed = (
            len(blocks) if LAST_LAYER in names else 1 + max(i for i, (name, _) in enumerate(blocks) if name in names)
        )
        self.blocks = nn.ModuleDict(dict(blocks[:needed]))
        self.position, self.norm = encoder.pos_embedding, encoder.ln

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images [N, 3, H, W] whose sides are multiples of the patch size."""
        patches = self.conv_proj(images)
        n, channels, height, width = patches.shape
        tokens = torch.cat([self.class_token.expand(n, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + _interpolate_positions(self.position, height, width).to(tokens.dtype)
        found = {}
        for name, block in self.blocks.items():
            tokens = block(tokens)
            found[name] = tokens
        if LAST_LAYER in self.names:
            found[LAST_LAYER] = self.norm(tokens)
        return [found[name][:, 1:].transpose(1, 2).reshape(n, channels, height, width) for name in self.names]


def _interpolate_positions(embedding: Tensor, height: int, width: int) -> Tensor:
    """Interpolate position embeddings [1, 1 + side * side, C] to another grid: [1, 1 + height * width, C]."""
    side = math.isqrt(embedding.shape[1] - 1)
    if (height, width) == (side, side):
        return embedding
    grid = embedding[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    grid = functional.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
