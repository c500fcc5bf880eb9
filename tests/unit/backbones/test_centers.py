"""Test where the cells of maps look: known places of linear models, ramps, real architectures, the cache, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from torch import Tensor, nn

from roialign_cli import FeatureFile, extract
from roialign_cli.backbones import centers, load_backbone
from roialign_cli.backbones.base import Backbone, Layer, Preprocessing
from roialign_cli.config import Settings, load
from roialign_cli.errors import BackboneError, ConfigError, OutputError
from roialign_cli.regions.pooling import pool
from roialign_cli.regions.regions import Regions
from roialign_cli.store.check import check


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "roialign" / "centers"


def average(kernel: int, stride: int, padding: int | tuple[int, int]) -> nn.Conv2d:
    """Return a convolution of one channel that computes means."""
    convolution = nn.Conv2d(1, 1, kernel, stride, padding, bias=False)
    nn.init.constant_(convolution.weight, 1 / kernel**2)
    return convolution


def made_of(*convolutions: nn.Module) -> Backbone:
    class First(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :1]

    model = nn.Sequential(First(), *convolutions).eval()
    stride = int(np.prod([c.stride[0] for c in convolutions if isinstance(c, nn.Conv2d)]))
    preprocessing = Preprocessing((0, 0, 0), (1, 1, 1))
    return Backbone("linear", model, (Layer("map", 1, (stride,)),), preprocessing, "none", f"{convolutions}")


@pytest.mark.parametrize(
    ("convolutions", "expected"),
    [
        ([average(3, 2, 1)] * 3, (-3.5, -3.5)),  # symmetric padding: (stride - 1) / 2
        ([average(3, 2, 0)] * 3, (3.5, 3.5)),  # none: the field of cell 0 begins at the first pixel
        ([average(16, 16, 0)], (0, 0)),  # patches
        ([average(2, 2, 0)] * 2, (0, 0)),
        ([average(3, 2, (1, 0))], (0.5, -0.5)),  # (height, width)
    ],
)
def test_linear_models(convolutions: list[nn.Module], expected: tuple[float, float]) -> None:
    measured = centers.measure_centers(made_of(*convolutions))
    assert measured.layers[0].offsets == (expected,)


@pytest.mark.parametrize("padding", [0, 1])
def test_on_a_ramp_a_box_has_the_coordinates_of_its_centre(padding: int) -> None:
    backbone = centers.measure_centers(made_of(*[average(3, 2, padding)] * 3))
    y, x = torch.meshgrid(torch.arange(256) + 0.5, torch.arange(320) + 0.5, indexing="ij")
    rois = torch.tensor([[0, 100.0, 64, 180, 90], [0, 91.5, 120.25, 99, 200]], dtype=torch.float64)
    for axis, ramp in enumerate((x, y)):
        maps = backbone(ramp[None, None].expand(1, 3, -1, -1).contiguous())
        with torch.no_grad():
            found, assumed = (
                pool(maps[0], layer, Regions(rois), None, Settings(output_size=(1, 1), mode="exact")).features.flatten()
                for layer in (backbone.layers[0], Layer("map", 1, (8,)))
            )
        centre = (rois[:, 1 + axis] + rois[:, 3 + axis]) / 2
        assert torch.allclose(found.double(), centre, atol=1e-3)
        assert torch.allclose((assumed.double() - centre).abs(), torch.tensor(3.5).double(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("resnet18", [-1.5, -3.5, -7.5, -15.5]), ("vit_b_16", [0])])
def test_real_architectures(name: str, expected: list[float]) -> None:
    layers = ("layer1", "layer2", "layer3", "layer4") if name == "resnet18" else ()
    backbone = load_backbone(Settings(backbone=name, weights="random:0", layers=layers, centers="measured"))
    for layer, offset in zip(backbone.layers, expected, strict=True):
        for found in layer.offsets[0]:
            assert abs(found - offset) < 0.05 * layer.strides[0] + 0.5


def test_the_cache_is_used_and_may_be_damaged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = made_of(average(3, 2, 1))
    expected = centers.measure_centers(backbone)
    (file,) = cache.iterdir()
    file.write_text("[[[7, 8]]]")
    assert centers.measure_centers(backbone).layers[0].offsets == ((7, 8),)
    for damage in ("", "{", "[[[1]]]", "[[[1, 2], [3, 4]]]", "null", '[[["a", 2]]]', "[[[NaN, 1]]]"):
        file.write_text(damage)
        assert centers.measure_centers(backbone) == expected
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert centers.measure_centers(backbone) == expected


def test_a_model_without_gradients() -> None:
    class Detached(nn.Module):
        stride = (1, 1)

        def forward(self, images: Tensor) -> Tensor:
            return images.detach()

    with pytest.raises(BackboneError, match="centers: expected a model with gradients, found: ") as caught:
        centers.measure_centers(made_of(Detached()))
    assert "--centers assumed" in caught.value.hint


def test_a_run_records_what_was_measured(tmp_path: Path) -> None:
    given = {
        "backbone": "resnet18",
        "weights": "random:0",
        "layers": "layer2,layer3",
        "resize": "128",
        "output_size": 2,
    }
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", centers="measured", **given)
    assert extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", centers="measured", **given).already_finished
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "assumed.h5", **given)
    with FeatureFile(tmp_path / "f.h5") as file, FeatureFile(tmp_path / "assumed.h5") as assumed:
        assert not check(file).problems
        offsets = json.loads(file.attributes["centers"])
        assert list(offsets) == ["layer2", "layer3"]
        assert offsets["layer3"][0][0] == pytest.approx(-7.5, abs=1.5)
        assert "centers" not in assumed.attributes
        assert not np.allclose(file.features("layer3"), assumed.features("layer3"))
    with pytest.raises(OutputError, match="centers was"):
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **given)


def test_measured_centres_need_aligned() -> None:
    with pytest.raises(ConfigError, match="centers: expected aligned with measured"):
        load(None, {"centers": "measured", "aligned": False})
