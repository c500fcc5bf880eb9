"""Test backbones: layers, strides, weights from every source, and features equal to torchvision's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.tensors import relative_error
from PIL import Image
from safetensors.torch import save_file
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper
from torchvision.transforms.functional import normalize

from roialign_cli import FeatureFile, extract
from roialign_cli.backbones import available, describe, load_backbone
from roialign_cli.backbones.base import Layer
from roialign_cli.config import Settings
from roialign_cli.errors import BackboneError
from roialign_cli.regions.levels import assign_levels


def load(name: str, **settings: object):
    return load_backbone(Settings(backbone=name, **settings))


def model_of(name: str, seed: int = 5) -> torch.nn.Module:
    torch.manual_seed(seed)
    options = {"weights_backbone": None} if "fpn" in name else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    for module in model.modules():  # batch norm that does something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        ("resnet18", (), [Layer("layer4", 512, (32,))]),
        ("resnet18", ("layer1", "layer3.0.relu"), [Layer("layer1", 64, (4,)), Layer("layer3.0.relu", 256, (16,))]),
        ("squeezenet1_0", (), [Layer("features", 512, (16,))]),
        ("mobilenet_v3_small", (), [Layer("features", 576, (32,))]),
        ("fasterrcnn_resnet50_fpn", (), [Layer("fpn", 256, (4, 8, 16, 32))]),
        ("fasterrcnn_resnet50_fpn", ("1", "fpn"), [Layer("1", 256, (8,)), Layer("fpn", 256, (4, 8, 16, 32))]),
        ("retinanet_resnet50_fpn", (), [Layer("fpn", 256, (8, 16, 32, 64, 128))]),
        ("gabor", (), [Layer("gabor", 32, (4,))]),
    ],
)
def test_layers_channels_and_strides(name: str, layers: tuple[str, ...], expected: list[Layer]) -> None:
    weights = "DEFAULT" if name == "gabor" else "random"
    backbone = load(name, layers=layers, weights=weights)
    assert list(backbone.layers) == expected
    with torch.inference_mode():
        maps = backbone(torch.rand(1, 3, 96, 160))
    for layer, levels in zip(backbone.layers, maps, strict=True):
        assert [m.shape[1] for m in levels] == [layer.channels] * len(layer.strides)
        for stride, m in zip(layer.strides, levels, strict=True):
            assert abs(m.shape[3] - 160 / stride) <= 1


def test_the_detection_backbone_keeps_its_own_preprocessing() -> None:
    preprocessing = load("maskrcnn_resnet50_fpn", weights="random").preprocessing
    assert (preprocessing.resize, preprocessing.multiple, preprocessing.antialias) == ((800, 1333), 32, False)
    assert load("resnet18", weights="random").preprocessing.resize is None
    assert load("maskrcnn_resnet50_fpn", weights="random", resize="64,96").preprocessing.resize == (64, 96)


def test_nothing_after_the_tapped_layer_is_kept() -> None:
    names = dict(load("resnet18", layers=("layer2",), weights="random").model.named_modules())
    assert "model.layer2" in names
    assert not any("layer3" in name or "fc" in name for name in names)


@pytest.mark.parametrize("form", ["plain", "wrapped", "data-parallel", "safetensors", "other head"])
def test_weights_from_a_file(tmp_path: Path, form: str) -> None:
    model = model_of("resnet18")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if form == "other head":
        state["fc.weight"], state["fc.bias"] = torch.zeros(10, 512), torch.zeros(10)
    if form == "data-parallel":
        state = {f"module.{key}": value for key, value in state.items()}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else state, path)
    backbone = load("resnet18", weights=str(path), layers=("layer4",))
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*list(model.children())[:-2])(images)
        assert relative_error(backbone(images)[0][0], expected) < 1e-5  # batch norm is folded
    assert len(backbone.weights_sha256) == 64


def test_random_weights_are_seeded_and_recorded() -> None:
    first, same, other = (load("resnet18", weights=w) for w in ("random", "random:0", "random:1"))
    assert first.weights == same.weights == "random:0"
    assert first.weights_sha256 == same.weights_sha256 != other.weights_sha256


@dataclass(frozen=True)
class Cached:
    """Hold a detector whose weights are in torchvision's cache, and the model that torchvision makes of them."""

    name: str
    folder: Path
    entry: torchvision.models.WeightsEnum
    model: torch.nn.Module

    @property
    def file(self) -> Path:
        return self.folder / "checkpoints" / Path(self.entry.url).name


@pytest.fixture(
    scope="module", params=["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]
)
def cached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """Make up a state dict for a download, with batch norms in which the odd epsilon of some weights matters."""
    name, folder = request.param, tmp_path_factory.mktemp("hub")
    entry = torchvision.models.get_model_weights(name).DEFAULT
    torch.manual_seed(1)
    whole = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=91)
    state = {key: value for key, value in whole.state_dict().items() if not key.endswith("num_batches_tracked")}
    for key, value in state.items():
        if key == "backbone.body.bn1.running_var":
            value.uniform_(1e-5, 2e-5)  # where an epsilon of 1e-5 or 0 makes all the difference
    (folder / "checkpoints").mkdir()
    saved = whole.state_dict() if name.endswith("v2") else state
    torch.save(saved, folder / "checkpoints" / Path(entry.url).name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(folder))
        model = torchvision.models.get_model(name, weights=entry, progress=False).eval()
    return Cached(name, folder, entry, model)


@pytest.mark.parametrize("by_name", [True, False])
def test_named_weights_give_what_torchvision_gives(
    cached: Cached, monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cached.folder))
    images = torch.rand(1, 3, 64, 96)
    if by_name:
        found = load(cached.name)
    else:  # a file is recognised by its hash; a made-up file has another hash, so the test names its origin
        monkeypatch.setattr("roialign_cli.backbones.weights._find_origin", lambda digest, entries: cached.entry)
        found = load(cached.name, weights=str(cached.file))
    with torch.inference_mode():
        maps = [m for key, m in cached.model.backbone(images).items() if key != "pool"]
        for mine, theirs in zip(found(images)[0], maps, strict=True):
            assert relative_error(mine, theirs) < 1e-5


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"backbone": "resnet19", "weights": "random"}, "did you mean resnet18"),
        ({"backbone": "resnet18", "weights": "random", "layers": ("layer5",)}, "did you mean layer4"),
        ({"backbone": "resnet18", "weights": "random", "layers": ("fc",)}, "choose an earlier layer"),
        pytest.param({"backbone": "maxvit_t", "weights": "random"}, "pass --layers", marks=pytest.mark.slow),
        (
            {"backbone": "fasterrcnn_resnet50_fpn", "weights": "random", "layers": ("layer4",)},
            "expected fpn, 0, 1, 2, 3",
        ),
        ({"backbone": "resnet18", "weights": "random:x"}, "random:SEED"),
        ({"backbone": "resnet18", "weights": "IMAGENET"}, "did you mean IMAGENET1K_V1"),
        ({"backbone": "resnet18", "weights": "nowhere.pth"}, "No such file"),
        ({"backbone": "gabor", "weights": "random"}, "its filters are fixed"),
        ({"backbone": "gabor", "layers": ("conv",)}, "expected its one layer gabor"),
    ],
)
def test_errors(settings: dict[str, object], found: str) -> None:
    with pytest.raises(BackboneError) as error:
        load_backbone(Settings(**settings))
    assert found in str(error.value)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must never be printed",))


def test_files_that_are_no_state_dicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "few.pth")
    state = model_of("resnet18").state_dict()
    torch.save({**state, "conv1.weight": torch.zeros(1, 2)}, tmp_path / "shape.pth")
    torch.save({**state, "conv9.weight": torch.zeros(1)}, tmp_path / "more.pth")
    expected = {
        "text.pth": "", "text.safetensors": "weights-unreadable", "evil.pth": "weights-unsafe",
        "list.pth": "weights-unreadable", "few.pth": "weights-mismatch", "shape.pth": "weights-mismatch",
        "more.pth": "weights-mismatch",
    }  # fmt: skip
    for name, reference in expected.items():
        with pytest.raises(BackboneError) as error:
            load("resnet18", weights=str(tmp_path / name))
        assert reference in error.value.reference
    assert "never" not in capsys.readouterr().out


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(BackboneError) as error:
        load("resnet18")
    assert error.value.exit_code == 4
    assert "-c quickstart" in error.value.hint
    assert "--weights PATH" in error.value.hint


def test_levels_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    size = torch.exp(torch.rand(4000, 2, generator=generator) * 7)
    exact = torch.tensor([[56.0, 56], [112, 112], [224, 224], [448, 448], [896, 896], [0, 0], [111.99999, 112]])
    size = torch.cat([size, exact])
    boxes = torch.cat([torch.zeros_like(size), size], dim=1)
    for strides in ((4, 8, 16, 32), (8, 16, 32, 64, 128)):
        finest, coarsest = int(torch.tensor(strides[0]).log2()), int(torch.tensor(strides[-1]).log2())
        expected = LevelMapper(finest, coarsest, 224, 4, 1e-6)([boxes])
        assert torch.equal(assign_levels(boxes, strides, 4, 224), expected)
    assert assign_levels(boxes, (4, 8, 16, 32), 5, 224).float().mean() > expected.float().mean()


def test_gabor_cells_lie_where_they_should() -> None:
    """A bright block of four pixels moves the answer of every channel to its own cell, and by one cell per stride."""
    backbone = load("gabor")
    for row, column in ((0, 0), (5, 9), (11, 3)):
        images = torch.zeros(1, 3, 50, 71)
        images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
        with torch.inference_mode():
            (found,) = backbone(images)[0]
        assert found.shape == (1, 32, 13, 18)
        colour = found[0, 24]
        assert colour[row, column] == 1
        assert colour.sum() == 1
        weight = found[0, :24].sum(0)
        assert (weight == weight.max()).nonzero().tolist() == [[row, column]]


def test_gabor_knows_orientation() -> None:
    x = torch.arange(64.0)
    stripes = (0.5 + 0.5 * torch.cos(2 * torch.pi * x / 8)).expand(1, 3, 64, 64)
    backbone = load("gabor")
    with torch.inference_mode():
        upright, lying = (backbone(images)[0][0][0, :24, 6:10, 6:10].mean((1, 2)) for images in (stripes, stripes.mT))
    assert upright.argmax() == 8
    assert lying.argmax() == 12
    assert upright[8].item() == pytest.approx(0.5, rel=0.05)


def test_every_listed_backbone_is_described() -> None:
    assert len(available()) > 80
    layers, weights = describe("resnet18")
    assert layers["layer3"] == (256, 16)
    assert "IMAGENET1K_V1" in weights
    strides = {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128}
    assert describe("retinanet_resnet50_fpn")[0] == {name: (256, stride) for name, stride in strides.items()}
    with pytest.raises(BackboneError):
        describe("nonesuch")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_the_box_head_is_torchvision_s(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    options = {"backbone": name, "weights": str(tmp_path / "w.pth"), "head": "box"}
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **options)
    with Image.open(SAMPLE_IMAGES / "coffee.jpg") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    with FeatureFile(tmp_path / "f.h5") as file, torch.inference_mode():
        assert file.features().shape == (19, 1024)
        batch, targets = model.transform([pixels], [{"boxes": torch.tensor(file["coffee.jpg"].boxes)}])
        maps = model.backbone(batch.tensors)
        pooled = model.roi_heads.box_roi_pool(maps, [targets[0]["boxes"]], batch.image_sizes)
        expected = model.roi_heads.box_head(pooled)
        assert relative_error(torch.tensor(file["coffee.jpg"].features), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_c5_head_is_the_last_stage_on_regions(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    other_classes = {"fc.weight": torch.zeros(10, model.fc.in_features), "fc.bias": torch.zeros(10)}  # of no concern
    torch.save({**model.state_dict(), **other_classes}, tmp_path / "w.pth")
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", backbone=name, weights=str(tmp_path / "w.pth"), head="c5")
    with Image.open(SAMPLE_IMAGES / "coffee.jpg") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    pixels = normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]
    with FeatureFile(tmp_path / "f.h5") as file, torch.inference_mode():
        assert file.layers == ["c5"]
        regions = file["coffee.jpg"]
        assert regions.features.shape == (3, model.fc.in_features)
        stages = [model.conv1, model.bn1, model.relu, model.maxpool, model.layer1, model.layer2, model.layer3]
        c4 = torch.nn.Sequential(*stages)(pixels)
        pooled = roi_align(c4, [torch.tensor(regions.boxes)], 14, 1 / 16, 2, aligned=True)
        expected = model.layer4(pooled).mean((2, 3))
        assert relative_error(torch.tensor(regions.features), expected) < 1e-4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backbone": "vgg11", "head": "c5"}, "expected a ResNet"),
        ({"backbone": "fasterrcnn_resnet50_fpn", "head": "c5"}, "expected a ResNet"),
        ({"backbone": "resnet18", "head": "c5", "layers": ("layer2",)}, "expected layer layer3 with head c5"),
        ({"backbone": "resnet18"}, "expected a detection model"),
        ({"backbone": "retinanet_resnet50_fpn"}, "expected a two-stage detector"),
        ({"backbone": "fasterrcnn_resnet50_fpn", "output_size": (5, 5)}, "expected output size 7x7 of fpn, found 5x5"),
    ],
)
def test_box_heads_that_are_none(options: dict[str, object], expected: str) -> None:
    with pytest.raises(BackboneError, match=expected):
        load_backbone(Settings(**{"weights": "random", "head": "box", **options}))


@pytest.mark.parametrize("name", ["squeezenet1_0", "alexnet", "regnet_y_400mf", "mobilenet_v3_small"])
def test_a_model_s_table_agrees_with_its_maps(name: str) -> None:
    layers, _ = describe(name)
    for layer in (list(layers)[-1], *[key for key in ("features.12", "features.4") if key in layers]):
        if name == "squeezenet1_0" and layer.startswith("classifier"):
            continue
        backbone = load_backbone(Settings(backbone=name, weights="random", layers=(layer,)))
        (maps,) = backbone(torch.zeros(1, 3, 256, 256))
        assert maps[0] is not None
        assert (maps[0].shape[1], backbone.layers[0].strides[0]) == layers[layer]


def test_layers_that_are_the_same_map_are_refused() -> None:
    with pytest.raises(BackboneError, match="which are the same map"):
        load_backbone(Settings(backbone="squeezenet1_0", weights="random", layers=("features", "features.12")))


@pytest.mark.parametrize(("name", "layer"), [("fasterrcnn_resnet50_fpn", "0"), ("retinanet_resnet50_fpn", None)])
def test_levels_have_the_names_of_the_paper(name: str, layer: str | None) -> None:
    settings = Settings(backbone=name, weights="random", layers=("P2",))
    if layer is None:  # RetinaNet begins at P3
        with pytest.raises(BackboneError, match="or P2 to P6, found 'P2'"):
            load_backbone(settings)
    else:
        (found,) = load_backbone(settings).layers
        assert (found.name, found.strides) == (layer, (4,))


def test_dinov2_is_pointed_at_timm() -> None:
    with pytest.raises(BackboneError) as error:
        load_backbone(Settings(backbone="dinov2_vits14_reg"))
    assert error.value.hint == "--backbone timm:vit_small_patch14_reg4_dinov2.lvd142m"
