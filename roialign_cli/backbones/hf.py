"""Load vision models of Hugging Face's transformers, by the name on the hub or from a folder made by `save_pretrained`.

Models that transformers has as a backbone return all their stages; others return the tokens of their last layer as a map,
which is that of plain Vision Transformers. Mean and std, and the size as the short side, are those of the model's own
image processor.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from roialign_cli.backbones.hub import quiet_hub
from roialign_cli.errors import BackboneError

PREFIX = "hf:"
WINDOW_MULTIPLE = 32  # pixels; models that halve their map from stage to stage end at this stride
MAX_REASON_CHARACTERS = 160


def build_model(name: str, *, random: bool, seed: int = 0) -> nn.Module:
    """Return a model that returns a dict of maps and describes its input in an attribute `preprocessing`.

    With `random` its weights come from a seed. Raises BackboneError if transformers, the model or its weights are missing.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        message = f"{name}: expected transformers to be installed, found no such package"
        raise BackboneError("backbone-own", message, "pip install 'roialign[hf]'") from None
    source = name.removeprefix(PREFIX)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with quiet_hub(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _create(transformers, source, random=random)
            preprocessing = _preprocessing(transformers, source)
    except Exception as error:  # transformers and its hub raise errors of many types
        reason = textwrap.shorten(str(error), MAX_REASON_CHARACTERS, placeholder=" ...") or type(error).__name__
        hint = "name a folder made by save_pretrained on a machine with a network"
        raise BackboneError("weights-unreachable", f"{name}: cannot be loaded: {reason}", hint) from None
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    model.preprocessing = {**preprocessing, "multiple": model.multiple}
    result: nn.Module = model.eval()
    return result


def _create(transformers: Any, source: str, *, random: bool) -> Any:
    config = transformers.AutoConfig.from_pretrained(source)
    config = getattr(config, "vision_config", config)  # of models of images and text
    options: dict[str, Any] = {"attn_implementation": "sdpa"} if hasattr(config, "num_attention_heads") else {}
    is_backbone = type(config) in transformers.MODEL_FOR_BACKBONE_MAPPING
    mapping = transformers.MODEL_FOR_BACKBONE_MAPPING if is_backbone else transformers.MODEL_MAPPING
    kind = mapping[type(config)]
    if is_backbone:
        config.out_features = config.stage_names[1:]
    if random:
        model = kind._from_config(config, **options)
    else:
        model = kind.from_pretrained(source, config=config, **options)
    patch = getattr(config, "patch_size", None)
    if is_backbone:
        is_plain = len({*model.channels}) == 1  # a Vision Transformer, whose stages have one size
        return _Stages(model, patch if is_plain and isinstance(patch, int) else WINDOW_MULTIPLE)
    if not isinstance(patch, int):
        raise ValueError("expected a backbone or a Vision Transformer, found another kind of model")  # noqa: TRY004
    return _Tokens(model, patch)


def _preprocessing(transformers: Any, source: str) -> dict[str, Any]:
    """Return mean, std and the short side of the model's image processor, as far as it has one."""
    try:
        stated, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        return {}
    found = {key: stated[f"image_{key}"] for key in ("mean", "std") if stated.get(f"image_{key}")}
    size = stated.get("size") or {}
    side = size.get("shortest_edge") or size.get("height") if isinstance(size, Mapping) else size
    return {**found, **({"resize": str(side)} if side else {})}


class _Stages(nn.Module):
    """A backbone of transformers, whose stages are maps."""

    def __init__(self, model: Any, multiple: int) -> None:
        super().__init__()
        self.model = model
        self.multiple = multiple

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of images [N, 3, H, W] by stage."""
        return dict(zip(self.model.out_features, self.model(images).feature_maps, strict=True))


class _Tokens(nn.Module):
    """A Vision Transformer whose last tokens are a map."""

    def __init__(self, model: Any, patch: int) -> None:
        super().__init__()
        self.model = model
        self.multiple = patch

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the map of images [N, 3, H, W] whose sides are multiples of the patch size."""
        height, width = images.shape[2] // self.multiple, images.shape[3] // self.multiple
        tokens = self.model(images, interpolate_pos_encoding=True).last_hidden_state[:, -height * width :]
        return {"last": tokens.transpose(1, 2).unflatten(2, (height, width))}
