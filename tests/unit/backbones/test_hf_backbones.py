"""Test models of transformers, made here with random weights and small configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES

from roialign_cli import FeatureFile, extract
from roialign_cli.backbones import describe, load_backbone
from roialign_cli.config import Settings
from roialign_cli.errors import BackboneError

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONFIGS: dict[str, tuple[Any, dict[str, tuple[int, int]]]] = {  # and (channels, stride) of each layer
    "dinov2": (
        transformers.Dinov2Config(**VIT, image_size=56, patch_size=14, mlp_ratio=2),
        {"stage1": (24, 14), "stage2": (24, 14)},
    ),
    "convnext": (
        transformers.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
        {"stage1": (8, 4), "stage2": (12, 8), "stage3": (16, 16), "stage4": (20, 32)},
    ),
    "swin": (
        transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, image_size=64),
        {"stage1": (8, 4), "stage2": (16, 8)},
    ),
    "siglip": (transformers.SiglipVisionConfig(**VIT, image_size=64, patch_size=16), {"last": (24, 16)}),
}


def save(folder: Path, kind: str) -> Any:
    """Save a model with random weights, and its image processor; return the model."""
    config, layers = CONFIGS[kind]
    if "last" not in layers:
        config.out_features = list(layers)
    torch.manual_seed(0)
    auto = transformers.AutoModel if "last" in layers else transformers.AutoBackbone
    model = auto.from_config(config).eval()
    model.save_pretrained(folder)
    processor = {"image_mean": [0.5, 0.25, 0.5], "image_std": [0.5, 0.5, 0.25], "size": {"shortest_edge": 96}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_maps_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    model, layers = save(tmp_path, kind), CONFIGS[kind][1]
    backbone = load_backbone(Settings(backbone=f"hf:{tmp_path}"))
    assert {layer.name: (layer.channels, *layer.strides) for layer in backbone.layers} == layers
    assert backbone.preprocessing.mean == (0.5, 0.25, 0.5)
    assert backbone.preprocessing.std == (0.5, 0.5, 0.25)
    assert backbone.preprocessing.resize == (96, None)
    side = 2 * backbone.preprocessing.multiple
    images = torch.rand(2, 3, side, 2 * side)
    with torch.inference_mode():
        found = backbone(images)
        if "last" in layers:
            tokens = model(images, interpolate_pos_encoding=True).last_hidden_state
            wanted = [tokens.transpose(1, 2).reshape(2, 24, 2, 4)]
        else:
            wanted = model(images).feature_maps
    for (ours,), theirs in zip(found, wanted, strict=True):
        assert ours is not None
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_run_and_random_weights(tmp_path: Path) -> None:
    save(tmp_path, "convnext")
    name = f"hf:{tmp_path}"
    done = extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", backbone=name, layers="stage2,stage4")
    assert done.finished
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.features("stage4").shape[1:] == (20, 7, 7)
        assert np.isfinite(file.features("stage2")).all()
    first, same, other = (load_backbone(Settings(backbone=name, weights=f"random:{seed}")) for seed in (1, 1, 2))
    assert first.weights_sha256 == same.weights_sha256 != other.weights_sha256
    assert describe(name)[0] == CONFIGS["convnext"][1]


def test_what_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    for name in (f"hf:{tmp_path}", "hf:nobody/nothing"):
        with pytest.raises(BackboneError) as error:
            load_backbone(Settings(backbone=name))
        assert error.value.reference == "weights-unreachable"
        assert len(error.value.message) < 400
