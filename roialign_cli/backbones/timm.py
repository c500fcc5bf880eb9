"""timm's models as maps: what `features_only` gives, and the tokens of Vision Transformers back in rows and columns.

Transformers take images of any size where timm can interpolate their position embeddings; those are padded to whole patches.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from roialign_cli.config import suggest
from roialign_cli.errors import BackboneError

PREFIX = "timm:"
LAST = "norm"  # of a Vision Transformer: after the last block and its norm


def make(name: str, layers: tuple[str, ...], weights: bool | Mapping[str, Tensor]) -> nn.Module:
    """A model that gives a list or a dict of maps, and says in `preprocessing` what it wants of images.

    `weights`: timm's own (True), random ones (False), or a state dict of the whole model.

    Of a Vision Transformer such as DINOv2's the maps of `layers`, blocks.0 .. blocks.N and norm; of other models all maps,
    finest first.
    """
    try:
        import timm
    except ImportError:
        message = f"{name}: expected the package timm, found none"
        raise BackboneError("backbone-own", message, "pip install 'roialign[timm]'") from None
    model_name = name.removeprefix(PREFIX)
    if not timm.is_model(model_name):
        close = timm.list_models(f"*{model_name.split('_')[0]}*")[:3]
        hint = f"did you mean {' or '.join(close)}?" if close else ""
        raise BackboneError("backbone-unknown", f"{name}: timm has no model of that name", hint)
    models: Any = importlib.import_module("timm.models")
    kind = timm.model_entrypoint(model_name).__module__
    tokens = kind in (models.vision_transformer.__name__, models.eva.__name__, models.deit.__name__)
    form: dict[str, Any] = {"num_classes": 0} if tokens else {"features_only": True}
    options = {**form, "pretrained": weights is not False}
    if not isinstance(weights, bool):
        options["pretrained_cfg_overlay"] = {"state_dict": dict(weights)}
    try:
        model = _create(model_name, options)
    except Exception as error:  # no network, or a model without maps: timm and its hub raise many kinds
        reason = textwrap.shorten(str(error), 160, placeholder=" ...")
        if not isinstance(weights, bool):
            raise BackboneError("weights-mismatch", f"{name}: {reason}", "is it another model?") from None
        hint = "--weights PATH with a state dict fetched elsewhere, or --weights random" if weights else ""
        raise BackboneError("weights-unreachable", f"{name}: cannot be made: {reason}", hint) from None
    if not isinstance(weights, bool):  # what timm finds no weights for it leaves random, and says nothing
        fresh = dict(_create(model_name, form).named_parameters())
        left = [key for key, value in model.named_parameters() if value.dim() > 1 and torch.equal(value, fresh[key])]
        if left:
            found = f"{name}: {len(left)} tensors are missing, the first is {left[0]!r}"
            raise BackboneError("weights-mismatch", found, "is it another model?")
    data: Any = importlib.import_module("timm.data")
    config = data.resolve_model_data_config(model)
    about = {"mean": config["mean"], "std": config["std"]}
    if tokens:
        about["multiple"] = model.patch_embed.patch_size[0]
        model = _Tokens(name, model, layers or (LAST,))
    elif str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC"):
        about["multiple"] = max(model.feature_info.reduction())  # patches are merged two by two
        model = _ChannelsFirst(model)
    model.preprocessing = about
    made: nn.Module = model.eval()
    return made


def _create(model_name: str, options: Mapping[str, Any]) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(0)
            return timm.create_model(model_name, dynamic_img_size=True, **options)
        except TypeError:  # most models, the convolutional ones, take any size and no such option
            torch.manual_seed(0)
            return timm.create_model(model_name, **options)


class _Tokens(nn.Module):
    """The maps [N, C, H / patch, W / patch] of a Vision Transformer's blocks, and of all after the norm."""

    def __init__(self, name: str, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        blocks = [f"blocks.{i}" for i in range(len(model.blocks))]
        for layer in names:
            if layer not in (*blocks, LAST):
                hint = suggest(layer, [*blocks, LAST])
                expected = f"expected {blocks[0]} to {blocks[-1]} or {LAST}"
                raise BackboneError("layer-unknown", f"{name}: {expected}, found {layer!r}", hint)
        self.model = model
        self.numbers = {layer: len(blocks) - 1 if layer == LAST else blocks.index(layer) for layer in names}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images of whole patches a side."""
        numbers = sorted(set(self.numbers.values()))
        found = self.model.forward_intermediates(
            images, indices=numbers, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        maps = {layer: found[numbers.index(number)] for layer, number in self.numbers.items()}
        if LAST in maps:
            maps[LAST] = self.model.norm(maps[LAST].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps


class _ChannelsFirst(nn.Module):
    """Maps [N, H, W, C] of a model as [N, C, H, W]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images of whole patches a side, at the coarsest map."""
        return [features.permute(0, 3, 1, 2) for features in self.model(images)]
