"""Test that folded batch norms, sums in place and maps on demand change no feature."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.tensors import make_rois, relative_error
from PIL import Image
from torch import fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from roialign_cli import FeatureFile, config
from roialign_cli.backbones import Backbone, load_backbone
from roialign_cli.backbones import pyramid as pyramid_source
from roialign_cli.backbones import torchvision as source
from roialign_cli.backbones.optimize import OnDemand, fold
from roialign_cli.regions.levels import assign_levels
from roialign_cli.regions.pooling import cells_read, pool
from roialign_cli.regions.regions import Regions

FAMILIES = {  # batch norms of the tapped part
    "resnet18": 20, "vgg11_bn": 8, "mobilenet_v3_large": 46, "efficientnet_b0": 49, "densenet121": 121, "googlenet": 57,
    "inception_v3": 94, "regnet_y_400mf": 53, "shufflenet_v2_x0_5": 56, "mnasnet0_5": 52, "convnext_tiny": 0,
    "fasterrcnn_resnet50_fpn": 53, "fasterrcnn_mobilenet_v3_large_fpn": 46, "maskrcnn_resnet50_fpn_v2": 61,
}  # fmt: skip


def lively(model: nn.Module) -> nn.Module:
    """Give batch norms values that change their input."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("running_var", 0.5, 1.5),
                ("bias", -0.2, 0.2),
                ("running_mean", -0.2, 0.2),
            ):
                value = getattr(module, name)
                value.data.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return model


QUICK = ("resnet18", "mobilenet_v3_large", "fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_folding_changes_features_by_rounding_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def spy(model: nn.Module) -> nn.Module:
        seen["plain"] = lively(model)
        return fold(model)

    for module in (source, pyramid_source):
        monkeypatch.setattr(module, "fold", spy)
    backbone = load_backbone(config.load(None, {"backbone": name, "weights": "random"}))
    images = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        expected, found = seen["plain"](images), backbone.model(images)
    for layer, values in expected.items():
        assert relative_error(found[layer], values) < 1e-5, layer
    count = [sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) for model in (seen["plain"], backbone.model)]
    assert count[0] >= FAMILIES[name]
    assert count[1] < 0.6 * count[0] or name in ("densenet121", "convnext_tiny")  # DenseNet's come before convolutions


def test_frozen_batch_norm_is_folded_and_shared_convolutions_are_not() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3, bias=False), FrozenBatchNorm2d(8, eps=0.1)
            self.shared, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.norm(self.first(images))
            x = self.after(self.shared(x)) + self.shared(x)
            return {"x": x}

    model = lively(Small()).eval()
    images = torch.randn(2, 3, 9, 11)
    with torch.inference_mode():
        expected, folded = model(images)["x"], fold(model)
        assert relative_error(folded(images)["x"], expected) < 1e-5
        assert relative_error(model(images)["x"], expected) == 0  # the model itself is left as it was
    assert [name for name, _ in folded.named_children()] == ["first", "shared", "after"]


@pytest.fixture(scope="module")
def pyramid() -> Backbone:
    """Load the backbone of a detector with random weights, once for all tests."""
    return load_backbone(config.load(None, {"backbone": "fasterrcnn_resnet50_fpn", "weights": "random"}))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 224, 320, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(pyramid: Backbone, images: torch.Tensor) -> Sequence[Any]:
    """Compute the maps of every level entirely."""
    with torch.inference_mode():
        return pyramid(images)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("count", "largest"), [(3, 40.0), (12, 300.0), (2, 0.0)])
def test_maps_computed_on_demand_pool_to_the_same(
    pyramid: Backbone, images: torch.Tensor, whole: Sequence[Any], count: int, largest: float, *, aligned: bool
) -> None:
    settings = config.load(None, {"aligned": aligned, "sampling_ratio": 2})
    rois = make_rois(count, batch=2, width=320, height=224).double()
    if largest:
        rois = rois[9:]
        rois[:, 3:] = torch.minimum(rois[:, 3:], rois[:, 1:3] + largest)
    (layer,) = pyramid.layers
    levels = assign_levels(rois[:, 1:].float(), layer.strides, 4, 224)
    reads = cells_read(Regions(rois), levels, layer, (224, 320), settings)
    assert set(reads) == set(levels.tolist())
    with torch.inference_mode():
        part = pyramid(images, reads=[reads])
        assert [maps is not None for maps in part[0]] == [level in reads for level in range(4)]
        expected = pool(whole[0], layer, Regions(rois), levels, settings).features
        found = pool(part[0], layer, Regions(rois), levels, settings).features
    assert relative_error(found, expected) < 1e-5


def test_what_no_roi_reads_is_not_computed(pyramid: Backbone, images: torch.Tensor) -> None:
    model = pyramid.model
    assert isinstance(model, OnDemand)
    called: list[str] = []
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name)) for name, module in convolutions.items()
    ]
    with torch.inference_mode():
        pyramid(images, reads=[{3: torch.tensor([[0, 0, 0, 1, 1]])}])
        few = len(called)
        for hook in hooks:
            hook.remove()
        (maps,) = pyramid(images, reads=[{0: torch.tensor([[1, 20, 20, 25, 30]])}])
    assert few == 53 + 2  # the body, and of the pyramid one lateral and one output convolution
    assert maps[1:] == (None, None, None)
    assert maps[0][0].abs().max() == 0
    assert maps[0][1, :, 20:26, 20:31].abs().min() > 0
    assert maps[0][1, :, :16].abs().max() == 0


def test_sums_after_convolutions_are_in_place_and_no_others(pyramid: Backbone) -> None:
    nodes = pyramid.model.model.graph.nodes
    assert sum(node.target is operator.iadd for node in nodes) == 16 + 3  # residual blocks, and the way down


def test_two_batch_norms_in_a_row_are_both_folded() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))).eval()
    whole = nn.Sequential(model)  # once traced through, once as a container that is not

    class Leaf(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return m is model

    images = torch.randn(1, 3, 8, 9)
    with torch.inference_mode():
        for graph in (fx.symbolic_trace(whole), fx.GraphModule(whole, Leaf().trace(whole))):
            folded = fold(graph)
            assert relative_error(folded(images), model(images)) < 1e-5
            assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "compiler"),
    [("resnet18", "c++"), ("resnet18", "not-a-compiler"), ("fasterrcnn_mobilenet_v3_large_320_fpn", "c++")],
)
def test_compiled_or_warned_that_it_is_not(tmp_path: Path, roialign: Run, backbone: str, compiler: str) -> None:
    """Images of four sizes give the same features compiled or not; without a compiler the run warns once."""
    names = {}
    (tmp_path / "im").mkdir()
    for i, size in enumerate(((96, 64), (64, 96), (128, 128), (160, 96))):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / f"im/{i}.png")
        names[f"{i}.png"] = [[1, 2, 50, 60], [9, 9, 20, 30]]
    (tmp_path / "boxes.json").write_text(json.dumps(names))
    command = ["extract", tmp_path / "im", tmp_path / "boxes.json", "--backbone", backbone, "--weights", "random"]
    if backbone.endswith("fpn"):
        command += ["--resize", "none"]
    assert roialign(*command, "-o", tmp_path / "plain.h5").returncode == 0
    environment = {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = roialign(*command, "--compile", "-o", tmp_path / "compiled.h5", env=environment)
    assert done.returncode == 0
    assert done.stderr.count("the model runs uncompiled") == (compiler != "c++"), done.stderr
    assert "Traceback" not in done.stderr
    plain, compiled = (np.array(FeatureFile(tmp_path / f"{n}.h5").features()) for n in ("plain", "compiled"))
    assert np.abs(plain - compiled).max() <= 1e-5 * np.abs(plain).max()
