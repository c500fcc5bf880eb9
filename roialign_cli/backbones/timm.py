"""Load timm's models as maps: those of `features_only`, and the tokens of Vision Transformers arranged as maps.

Where timm can interpolate the position embeddings of a transformer, it takes images of any size, padded to whole patches.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from roialign_cli.backbones.hub import quiet_hub
from roialign_cli.config import suggest
from roialign_cli.errors import BackboneError

PREFIX = "timm:"
LAST_LAYER = "norm"  # the output of a Vision Transformer after its last block and norm
MAX_REASON_CHARACTERS = 160  # of timm's errors, some of which fill the screen


def build_model(name: str, layers: tuple[str, ...], weights: bool | Mapping[str, Tensor], seed: int = 0) -> nn.Module:
    """Return a model that returns a list or dict of maps and describes its input in an attribute `preprocessing`.

    `weights`: timm's own (True), random ones (False) from `seed`, or a state dict of the whole model. Vision Transformers
    such as DINOv2 return the maps of `layers`, blocks.0 .. blocks.N and norm; other models return all their maps, finest first.
    Raises BackboneError if timm, the model, its weights or a layer is not available.
    """
    try:
        import timm
    except ImportError:
        message = f"{name}: expected timm to be installed, found no such package"
        raise BackboneError("backbone-own", message, "pip install 'roialign[timm]'") from None
    model_name = name.removeprefix(PREFIX)
    if not timm.is_model(model_name):
        close = timm.list_models(f"*{model_name.split('_')[0]}*")[:3]
        hint = f"did you mean {' or '.join(close)}?" if close else ""
        raise BackboneError("backbone-unknown", f"{name}: timm has no model of that name", hint)
    models: Any = importlib.import_module("timm.models")
    module = timm.model_entrypoint(model_name).__module__
    has_tokens = module in (models.vision_transformer.__name__, models.eva.__name__, models.deit.__name__)
    output_options: dict[str, Any] = {"num_classes": 0} if has_tokens else {"features_only": True}
    options = {**output_options, "pretrained": weights is not False}
    if not isinstance(weights, bool):
        options["pretrained_cfg_overlay"] = {"state_dict": dict(weights)}
    try:
        with quiet_hub():
            model = _create(model_name, options, seed)
    except Exception as error:  # no network, or a model without maps: timm and its hub raise errors of many types
        reason = textwrap.shorten(str(error), MAX_REASON_CHARACTERS, placeholder=" ...") or type(error).__name__
        if not isinstance(weights, bool):
            raise BackboneError("weights-mismatch", f"{name}: {reason}", "is it another model?") from None
        hint = "--weights PATH with a state dict downloaded elsewhere, or --weights random" if weights else ""
        raise BackboneError("weights-unreachable", f"{name}: cannot be created: {reason}", hint) from None
    if not isinstance(weights, bool):  # timm silently leaves parameters random that the state dict lacks
        initial = dict(_create(model_name, output_options, seed).named_parameters())
        missing = [
            key for key, value in model.named_parameters() if value.dim() > 1 and torch.equal(value, initial[key])
        ]
        if missing:
            found = f"{name}: {len(missing)} tensors are missing, the first is {missing[0]!r}"
            raise BackboneError("weights-mismatch", found, "is it another model?")
    data: Any = importlib.import_module("timm.data")
    config = data.resolve_model_data_config(model)
    preprocessing = {"mean": config["mean"], "std": config["std"]}
    if has_tokens:
        preprocessing["multiple"] = model.patch_embed.patch_size[0]
        model = TokenMaps(name, model, layers or (LAST_LAYER,))
    elif str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC"):
        preprocessing["multiple"] = max(model.feature_info.reduction())  # these transformers merge patches two by two
        model = _ChannelsFirst(model)
    model.preprocessing = preprocessing
    result: nn.Module = model.eval()
    return result


def _create(model_name: str, options: Mapping[str, Any], seed: int) -> Any:
    """Create a model whose random parameters come from a seed, for images of any size if it has that option."""
    import timm

    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            return timm.create_model(model_name, dynamic_img_size=True, **options)
        except TypeError:  # convolutional models take images of any size and do not have this option
            torch.manual_seed(seed)
            return timm.create_model(model_name, **options)


class TokenMaps(nn.Module):
    """A Vision Transformer that returns maps [N, C, H / patch, W / patch] of its blocks, and of its norm."""

    def __init__(self, name: str, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        blocks = [f"blocks.{i}" for i in range(len(model.blocks))]
        for layer in names:
            if layer not in (*blocks, LAST_LAYER):
                hint = suggest(layer, [*blocks, LAST_LAYER])
                expected = f"expected {blocks[0]} to {blocks[-1]} or {LAST_LAYER}"
                raise BackboneError("layer-unknown", f"{name}: {expected}, found {layer!r}", hint)
        self.model = model
        self.layer_names = (*blocks, LAST_LAYER)
        self.block_indices = {layer: len(blocks) - 1 if layer == LAST_LAYER else blocks.index(layer) for layer in names}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of images [N, 3, H, W] whose sides are multiples of the patch size."""
        indices = sorted(set(self.block_indices.values()))
        found = self.model.forward_intermediates(
            images, indices=indices, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        maps = {layer: found[indices.index(index)] for layer, index in self.block_indices.items()}
        if LAST_LAYER in maps:
            maps[LAST_LAYER] = self.model.norm(maps[LAST_LAYER].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps


class _ChannelsFirst(nn.Module):
    """A model whose maps [N, H, W, C] are returned as [N, C, H, W]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images [N, 3, H, W] whose sides are multiples of the coarsest stride."""
        return [features.permute(0, 3, 1, 2) for features in self.model(images)]
