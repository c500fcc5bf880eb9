"""Test models of the user's own: a function of a module, an exported program, and timm's models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.tensors import relative_error
from PIL import Image
from torch import nn

from roialign_cli import FeatureFile, extract, roi_align
from roialign_cli.backbones import load_backbone
from roialign_cli.backbones.base import Layer
from roialign_cli.config import Settings
from roialign_cli.errors import BackboneError

CODE = """
import torch
from torch import nn

class Two(nn.Module):
    preprocessing = {"mean": [0, 0, 0], "std": [1, 1, 1], "multiple": 8}

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.BatchNorm2d(5), nn.ReLU())
        self.deep = nn.Conv2d(5, 7, 3, 2, 1)

    def forward(self, x):
        first = self.stem(x)
        return {"first": first, "second": self.deep(first)}

def make():
    torch.manual_seed(3)
    return Two()

def one():
    return make().stem

def vector():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

def number():
    return 5

class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("not today")

def fails():
    return Failing()

def broken():
    raise RuntimeError("no such thing here")

def fussy():
    model = make()
    model.preprocessing = {"means": 3}
    return model
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_models.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_layers_and_preprocessing(code: Path) -> None:
    both = load_backbone(Settings(backbone="my_models:make"))
    assert both.layers == (Layer("first", 5, (4,)), Layer("second", 7, (8,)))
    assert (both.preprocessing.mean, both.preprocessing.multiple) == ((0, 0, 0), 8)
    second = load_backbone(Settings(backbone="my_models:make", layers=("second",)))
    assert second.layers == (Layer("second", 7, (8,)),)
    plain = load_backbone(Settings(backbone="my_models:one"))
    assert plain.layers == (Layer("features", 5, (4,)),)
    assert plain.preprocessing.mean == (0.485, 0.456, 0.406)
    assert plain.weights_sha256 != both.weights_sha256


@pytest.mark.slow
def test_features_are_those_of_the_model(code: Path, roialign: Run) -> None:
    arguments = (
        "extract",
        SAMPLE_IMAGES,
        SAMPLE_BOXES,
        "--backbone",
        "my_models:make",
        "--processes",
        "2",
        "-o",
        "f.h5",
    )
    done = roialign(*arguments, cwd=code)
    assert done.returncode == 0, done.stderr
    from my_models import make  # type: ignore[import-not-found]

    model = make().eval()
    with Image.open(SAMPLE_IMAGES / "coffee.jpg") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
    boxes = torch.tensor(json.loads(SAMPLE_BOXES.read_text())["coffee.jpg"]["boxes"]).float()
    with torch.inference_mode():
        maps = model(pixels)
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
        expected = roi_align(maps["second"], rois, 7, spatial_scale=1 / 8)
    with FeatureFile(code / "f.h5") as file:
        assert relative_error(torch.tensor(file["coffee.jpg"].features["second"]), expected) < 1e-5
        assert json.loads(file.attributes["config"])["backbone"] == "my_models:make"


def test_weights_of_a_file(code: Path) -> None:
    from my_models import make

    model = make()
    nn.init.ones_(model.deep.weight)
    torch.save(model.state_dict(), code / "w.pth")
    found = load_backbone(Settings(backbone="my_models:make", weights=str(code / "w.pth")))
    assert found.model.model.deep.weight.eq(1).all()
    torch.save({"x": torch.zeros(1)}, code / "w.pth")
    with pytest.raises(BackboneError, match="tensors, 8 are missing"):
        load_backbone(Settings(backbone="my_models:make", weights=str(code / "w.pth")))


@pytest.mark.slow
def test_an_exported_program(code: Path, tmp_path: Path) -> None:
    from my_models import make, one

    size = {2: 4 * torch.export.Dim("h", min=2, max=999), 3: 4 * torch.export.Dim("w", min=2, max=999)}
    program = torch.export.export(
        one().eval(), (torch.zeros(1, 3, 64, 96),), dynamic_shapes=({0: torch.export.Dim.AUTO, **size},)
    )
    torch.export.save(program, code / "one.pt2")
    backbone = load_backbone(Settings(backbone="one.pt2"))
    assert backbone.layers == (Layer("features", 5, (4,)),)
    options = {"resize": "64", "output_size": 2, "overwrite": True}
    boxes = tmp_path / "b.json"
    boxes.write_text('{"camera.jpg": [[0, 0, 300, 300]]}')
    extract(SAMPLE_IMAGES, boxes, code / "a.h5", backbone="one.pt2", **options)
    extract(SAMPLE_IMAGES, boxes, code / "b.h5", backbone="my_models:one", **options)
    with FeatureFile(code / "a.h5") as exported, FeatureFile(code / "b.h5") as own:
        assert relative_error(torch.tensor(exported.features()), torch.tensor(own.features())) < 1e-5
    static = torch.export.export(make().eval(), (torch.zeros(1, 3, 64, 64),))
    torch.export.save(static, code / "static.pt2")
    with pytest.raises(BackboneError) as error:
        load_backbone(Settings(backbone="static.pt2"))
    assert "dynamic height and width" in error.value.hint


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("my_models:nothing", {}, "found AttributeError"),
        ("no_such_module:make", {}, "found ModuleNotFoundError"),
        ("my_models:broken", {}, "found RuntimeError: no such thing here"),
        ("my_models:number", {}, "returns a torch.nn.Module, found int"),
        ("my_models:vector", {}, "features: expected a map"),
        ("my_models:fussy", {}, "preprocessing: expected a dict of mean, std"),
        ("my_models:make", {"layers": ("third",)}, "expected one of first, second, found 'third'"),
        ("none.pt2", {}, "found nothing there"),
        ("my_models.pt2", {}, "expected a program saved by torch.export"),
    ],
)
def test_what_is_no_backbone(code: Path, name: str, options: dict[str, tuple[str, ...]], expected: str) -> None:
    (code / "my_models.pt2").write_text("no zip")
    with pytest.raises(BackboneError) as error:
        load_backbone(Settings(backbone=name, **options))
    assert expected in error.value.message


@pytest.mark.slow
def test_timm(code: Path) -> None:
    timm = pytest.importorskip("timm")
    backbone = load_backbone(Settings(backbone="timm:resnet18", weights="random", layers=("1", "4")))
    assert backbone.layers == (Layer("1", 64, (4,)), Layer("4", 512, (32,)))
    assert backbone.preprocessing.mean == (0.485, 0.456, 0.406)
    images = torch.rand(1, 3, 100, 150)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        expected = timm.create_model("resnet18", features_only=True).eval()(images)
        found = backbone(images)
    assert torch.equal(found[0][0], expected[1])
    assert torch.equal(found[1][0], expected[4])
    with pytest.raises(BackboneError, match="timm has no model of that name"):
        load_backbone(Settings(backbone="timm:resnet19"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "strides"),
    [
        ("vit_small_patch14_dinov2", ("norm",), (14,)),
        ("vit_tiny_patch16_224", ("blocks.3", "norm"), (16, 16)),
        ("swin_tiny_patch4_window7_224", ("0", "3"), (4, 32)),
        ("convnext_atto", ("3",), (32,)),
    ],
)
def test_timm_s_transformers_are_maps_at_any_size(
    tmp_path: Path, name: str, layers: tuple[str, ...], strides: tuple[int, ...]
) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    own = {"dynamic_img_size": True} if not name.startswith("convnext") else {}
    model = timm.create_model(name, **own).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(Settings(backbone=f"timm:{name}", layers=layers, weights=str(tmp_path / "w.pth")))
    assert [layer.strides for layer in backbone.layers] == [(stride,) for stride in strides]
    side = 224 if strides[0] != 14 else 210
    images = torch.rand(2, 3, side, 2 * side)
    with torch.inference_mode():
        maps = [features for (features,) in backbone(images)]
        expected = model.forward_features(images)
        if name.startswith("swin"):  # features_only leaves the norm out
            maps[-1] = model.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            expected = expected.permute(0, 3, 1, 2)
        elif expected.dim() == 3:
            expected = expected[:, model.num_prefix_tokens :].mT.reshape(maps[-1].shape)
    assert relative_error(maps[-1], expected) < 1e-5
    for features, stride in zip(maps, strides, strict=True):
        assert features.shape[2:] == (side // stride, 2 * side // stride)
    torch.save({"blocks.0.norm1.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(BackboneError, match=r"[Mm]issing|size mismatch"):
        load_backbone(Settings(backbone=f"timm:{name}", layers=layers, weights=str(tmp_path / "other.pth")))


def test_timm_s_blocks_by_name() -> None:
    pytest.importorskip("timm")
    with pytest.raises(BackboneError, match=r"expected blocks.0 to blocks.11 or norm, found 'blocks.12'"):
        load_backbone(Settings(backbone="timm:vit_tiny_patch16_224", layers=("blocks.12",), weights="random"))


def test_timm_s_random_weights_have_a_seed() -> None:
    pytest.importorskip("timm")
    loaded = [load_backbone(Settings(backbone="timm:resnet18", weights=f"random:{seed}")) for seed in (1, 1, 2)]
    assert [backbone.weights for backbone in loaded] == ["random:1", "random:1", "random:2"]
    assert loaded[0].weights_sha256 == loaded[1].weights_sha256 != loaded[2].weights_sha256


def test_timm_without_a_network_fails_at_once(tmp_path: Path, roialign: Run) -> None:
    pytest.importorskip("timm")
    env = {"HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(tmp_path)}
    done = roialign(
        "extract", SAMPLE_IMAGES, SAMPLE_BOXES, "--backbone", "timm:resnet18", "-o", tmp_path / "f.h5", env=env
    )
    assert done.returncode == 4
    assert done.stderr.startswith("error[weights-unreachable]: timm:resnet18")
    assert "Retrying" not in done.stderr


@pytest.mark.slow
def test_a_program_exported_for_one_image(code: Path, tmp_path: Path) -> None:
    """It is run image by image; the features are those of the model that takes batches."""
    from my_models import one

    size = {2: 4 * torch.export.Dim("h", min=2, max=999), 3: 4 * torch.export.Dim("w", min=2, max=999)}
    program = torch.export.export(one().eval(), (torch.zeros(1, 3, 64, 96),), dynamic_shapes=(size,))
    torch.export.save(program, code / "single.pt2")
    (tmp_path / "im").mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f"im/{i}.png")
    for backbone, name in (("single.pt2", "exported.h5"), ("my_models:one", "function.h5")):
        done = extract(tmp_path / "im", None, tmp_path / name, backbone=backbone, grid="2x2", batch_size=3)
        assert done.done == 3
    with FeatureFile(tmp_path / "exported.h5") as ours, FeatureFile(tmp_path / "function.h5") as theirs:
        assert relative_error(torch.tensor(ours.features()), torch.tensor(theirs.features())) < 1e-5


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("my_models.py:make", "write my_models:make"),
        ("a/my_models.py:make", "write a.my_models:make"),
        ("my_models:fails", "--debug shows the traceback"),
    ],
)
def test_hints_of_functions(code: Path, name: str, hint: str) -> None:
    with pytest.raises(BackboneError) as error:
        load_backbone(Settings(backbone=name))
    assert error.value.hint == hint


@pytest.mark.parametrize(
    ("name", "layers"), [("my_models:make", 2), ("timm:resnet18", 5), ("timm:vit_tiny_patch16_224", 13)]
)
def test_models_of_one_s_own_are_described(code: Path, name: str, layers: int, roialign: Run) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    done = roialign("backbones", name, "--json", cwd=code)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["layers"]) == layers
    assert found["parameters"] > 0


@pytest.mark.parametrize(("precision", "expected"), [("float32", "ieee"), ("tf32", "tf32")])
def test_the_precision_of_float32_products_is_set_and_restored(precision: str, expected: str) -> None:
    class Noting(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.extend(place.fp32_precision for place in places)
            return images

    places, seen = (torch.backends.cudnn.conv, torch.backends.cuda.matmul), []
    before = [place.fp32_precision for place in places]
    backbone = replace(load_backbone(Settings(backbone="gabor")), model=Noting())
    backbone(torch.zeros(1, 3, 8, 8), precision)
    assert seen == [expected, expected]
    assert [place.fp32_precision for place in places] == before
