"""Test a small member of every family of torchvision: layers, strides, and features at the place of what they show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from helpers.tensors import relative_error

from roialign_cli.backbones import available, describe, load_backbone
from roialign_cli.backbones.base import Layer
from roialign_cli.backbones.vit import image_size
from roialign_cli.config import Settings
from roialign_cli.errors import BackboneError

FAMILIES = {
    "alexnet": 32, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32, "googlenet": 32,
    "inception_v3": 32, "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "regnet_x_400mf": 32,
    "regnet_y_400mf": 32, "resnet18": 32, "resnext50_32x4d": 32, "wide_resnet50_2": 32, "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 16, "swin_t": 32, "swin_v2_t": 32, "vgg11": 32, "vgg11_bn": 32, "vit_b_16": 16,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_features_lie_where_they_belong(name: str) -> None:
    backbone = load_backbone(Settings(backbone=name, weights="random"))
    (layer,) = backbone.layers
    assert layer.strides == (FAMILIES[name],)
    stride, multiple = layer.strides[0], backbone.preprocessing.multiple
    height, width = (-(-side // multiple) * multiple for side in (330, 470))  # not square, no multiple of the stride
    plain = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) / 8
    with torch.inference_mode():
        (before,) = backbone(plain)[0]
        for y, x in ((100, 150), (230, 330)):
            marked = plain.clone()
            marked[..., y - 24 : y + 24, x - 24 : x + 24] += 3
            (after,) = backbone(marked)[0]
            assert after.shape[1] == layer.channels
            change = (after - before).square().sum(1)[0]
            row, column = divmod(int(change.argmax()), change.shape[1])
            assert abs((row + 0.5) * stride - y) <= 24 + stride, (row, column)
            assert abs((column + 0.5) * stride - x) <= 24 + stride, (row, column)


@pytest.mark.parametrize("name", ["vit_b_16"])
def test_transformers_give_torchvision_s_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    torch.nn.init.normal_(model.encoder.pos_embedding, std=0.02)
    seen = {}
    model.encoder.register_forward_hook(lambda _, __, output: seen.update(encoder=output))
    model.encoder.layers[4].register_forward_hook(lambda _, __, output: seen.update(encoder_layer_4=output))
    images = torch.randn(2, 3, 224, 224)
    settings = Settings(backbone=name, weights="random", layers=("encoder_layer_4", "encoder"))
    backbone = load_backbone(settings)
    backbone.model.load_state_dict({
        key: value for key, value in {
            **{k.replace("encoder.layers.", "blocks."): v for k, v in model.state_dict().items()},
            "position": model.encoder.pos_embedding, "norm.weight": model.encoder.ln.weight, "norm.bias": model.encoder.ln.bias,
        }.items() if key in backbone.model.state_dict()
    })  # fmt: skip
    with torch.inference_mode():
        model(images)
        maps = backbone(images)
    for layer, (features,) in zip(backbone.layers, maps, strict=True):
        assert layer == Layer(layer.name, 768, (16,))
        expected = seen[layer.name][:, 1:].transpose(1, 2).reshape(2, 768, 14, 14)
        assert relative_error(features, expected) < 1e-5


def test_transformers_of_other_sizes(tmp_path: object) -> None:
    layers, weights = describe("vit_b_32")
    assert layers["encoder"] == (768, 32)
    assert "IMAGENET1K_V1" in weights
    with pytest.raises(BackboneError, match="expected encoder_layer_0"):
        load_backbone(Settings(backbone="vit_b_32", weights="random", layers=("heads",)))
    assert image_size(None) is None
    state = {"encoder.pos_embedding": torch.zeros(1, 1 + 24 * 24, 768), "conv_proj.weight": torch.zeros(768, 3, 16, 16)}
    assert image_size(state) == 384
    early = load_backbone(Settings(backbone="vit_b_32", weights="random", layers=("encoder_layer_1",)))
    assert len(early.model.blocks) == 2  # what comes after is not kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_segmentation_models_give_torchvision_s_maps(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"aux_loss": True} if name.startswith("fcn") else {}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(Settings(backbone=name, weights=str(tmp_path / "w.pth")))
    assert backbone.preprocessing.resize == (520, None)
    images = torch.rand(1, 3, 90, 130)
    with torch.inference_mode():
        features = model.backbone(images)
        expected = features["high" if "high" in features else "out"]
        assert relative_error(backbone(images)[0][0], expected) < 1e-4
    assert describe(name)[0]["backbone"] == (backbone.layers[0].channels, backbone.layers[0].strides[0])
    assert "input" not in describe(name)[0]
    assert available()[name] == "segmentation"
