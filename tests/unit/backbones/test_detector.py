"""Compare what detectors find with torchvision's own models of the same weights."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.tensors import relative_error
from PIL import Image
from torch import nn
from torchvision.models.detection.transform import resize_boxes

from roialign_cli.backbones import load_backbone
from roialign_cli.backbones.base import Backbone
from roialign_cli.backbones.detector import Detections
from roialign_cli.config import Settings, load
from roialign_cli.errors import BackboneError, ConfigError
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.regions.resize import resized

SIZE, SHORT, LONG = (120, 160), 100, 200  # of the images; the resize
MOST = 30
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"  # 150 proposals
TWO_STAGE, ONE_STAGE = "fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2"


class Given(nn.Module):
    """A backbone that returns given maps."""

    def __init__(self, maps: OrderedDict[str, torch.Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, _: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return self.maps


def make_settings(name: str, **more: Any) -> Settings:
    given = {"backbone": name, "weights": "random:0", "detect": True, "max_boxes": MOST, "resize": f"{SHORT},{LONG}"}
    scores = {} if more.get("proposals") else {"min_score": 0.0}
    return load(None, {**given, **scores, **more})


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)) for _ in range(2)]
    return [np.asarray(one.resize(SIZE[::-1], Image.Resampling.BICUBIC)) for one in small]


def detect(settings: Settings, pictures: list[np.ndarray]) -> tuple[Backbone, torch.Tensor, Any, list[Detections]]:
    backbone = load_backbone(settings)
    inputs = prepare(pictures, backbone.preprocessing, torch.device("cpu"))
    with torch.inference_mode():
        maps, found = backbone.with_detections(inputs, "float32", resized(SIZE, backbone.preprocessing.resize))
    return backbone, inputs, maps, found


def torchvision_model(name: str, settings: Settings) -> Any:
    """Return torchvision's model with the weights random:0, and the settings under the names that torchvision gives them."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, min_size=SHORT, max_size=LONG)
    heads = model.roi_heads if hasattr(model, "roi_heads") else model
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = settings.min_score, settings.nms, MOST
    return model.eval()


def maps_of_detector(backbone: Backbone, inputs: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
    assert backbone.detector is not None
    with torch.inference_mode():
        maps = backbone.model(inputs)
    return OrderedDict((key, maps[name]) for key, name in backbone.detector.names.items())


@pytest.mark.parametrize(
    "name",
    [TWO_STAGE, ONE_STAGE, "fcos_resnet50_fpn", pytest.param("keypointrcnn_resnet50_fpn", marks=pytest.mark.slow)],
)
def test_equals_torchvision_on_the_same_maps(name: str, pictures: list[np.ndarray]) -> None:
    settings = make_settings(name)
    backbone, inputs, _, found = detect(settings, pictures)
    model = torchvision_model(name, settings)
    model.backbone = Given(maps_of_detector(backbone, inputs))
    with torch.inference_mode():
        theirs = model([torch.tensor(one).permute(2, 0, 1) / 255 for one in pictures])
    size = resized(SIZE, backbone.preprocessing.resize)
    for own, their in zip(found, theirs, strict=True):
        assert len(own.scores) == MOST
        assert torch.equal(own.labels, their["labels"])
        assert relative_error(resize_boxes(own.boxes, list(size), list(SIZE)), their["boxes"]) < 1e-5
        assert relative_error(own.scores, their["scores"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        (ONE_STAGE, 1e-5),
        ("fcos_resnet50_fpn", 1e-5),
        # Random weights let the rounding of a folded batch norm grow; it moves the proposals, too.
        (TWO_STAGE, 1e-4),
        ("maskrcnn_resnet50_fpn_v2", 1e-4),
    ],
)
def test_equals_torchvision_by_hand(name: str, tolerance: float, pictures: list[np.ndarray]) -> None:
    settings = make_settings(name)
    backbone, _, _, found = detect(settings, pictures)
    model = torchvision_model(name, settings)
    with torch.inference_mode():
        theirs = model([torch.tensor(one).permute(2, 0, 1) / 255 for one in pictures])
    size = resized(SIZE, backbone.preprocessing.resize)
    for own, their in zip(found, theirs, strict=True):
        assert torch.equal(own.labels, their["labels"])
        assert relative_error(resize_boxes(own.boxes, list(size), list(SIZE)), their["boxes"]) < tolerance
        assert relative_error(own.scores, their["scores"]) < tolerance


def test_vectors_are_those_of_the_box_head_for_the_same_proposal(pictures: list[np.ndarray]) -> None:
    settings = make_settings(TWO_STAGE)
    backbone, inputs, _, found = detect(settings, pictures[:1])
    model = torchvision_model(TWO_STAGE, settings)
    model.backbone = Given(maps_of_detector(backbone, inputs))
    seen: dict[str, torch.Tensor] = {}
    model.roi_heads.box_predictor.register_forward_hook(
        lambda _, given, out: seen.update(vectors=given[0], logits=out[0])
    )
    with torch.inference_mode():
        (their,) = model([torch.tensor(pictures[0]).permute(2, 0, 1) / 255])
    scores = seen["logits"].softmax(-1)
    proposals = [
        int((scores[:, label] - score).abs().argmin())
        for score, label in zip(their["scores"], their["labels"], strict=True)
    ]
    assert found[0].vectors is not None
    assert relative_error(found[0].vectors, seen["vectors"][proposals]) < 1e-5


def test_proposals_are_those_of_the_proposal_network(pictures: list[np.ndarray]) -> None:
    settings = make_settings(TWO_STAGE, proposals=True)
    backbone, inputs, _, found = detect(settings, pictures)
    model = torchvision_model(TWO_STAGE, settings)
    model.rpn._post_nms_top_n["testing"] = MOST
    model.backbone = Given(maps_of_detector(backbone, inputs))
    with torch.inference_mode():
        images, _ = model.transform([torch.tensor(one).permute(2, 0, 1) / 255 for one in pictures])
        theirs, _ = model.rpn(images, model.backbone(images.tensors))
    for own, their in zip(found, theirs, strict=True):
        assert relative_error(own.boxes, their) < 1e-5
        assert (own.scores.diff() <= 0).all()
        assert own.vectors is None


def test_class_agnostic_boxes_do_not_overlap(pictures: list[np.ndarray]) -> None:
    overlaps = {}
    for agnostic in (False, True):
        _, _, _, found = detect(make_settings(SMALL, class_agnostic=agnostic, nms=0.3, max_boxes=300), pictures[:1])
        shares = [torchvision.ops.box_iou(own.boxes, own.boxes).fill_diagonal_(0) for own in found]
        overlaps[agnostic] = max(float(share.max()) for share in shares)
    assert overlaps[True] <= 0.3 < overlaps[False]


def test_weights_with_classes_of_their_own(tmp_path: Any, pictures: list[np.ndarray]) -> None:
    model = torchvision.models.get_model(SMALL, weights=None, weights_backbone=None, num_classes=4)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    _, _, _, found = detect(make_settings(SMALL, weights=str(tmp_path / "own.pth")), pictures[:1])
    assert set(found[0].labels.tolist()) <= {1, 2, 3}


def test_weights_of_a_backbone_alone_are_refused(tmp_path: Any) -> None:
    model = torchvision.models.get_model(SMALL, weights=None, weights_backbone=None)
    part = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
    torch.save(part, tmp_path / "part.pth")
    load_backbone(load(None, {"backbone": SMALL, "weights": str(tmp_path / "part.pth")}))
    with pytest.raises(BackboneError, match="are missing, the first is 'rpn"):
        load_backbone(make_settings(SMALL, weights=str(tmp_path / "part.pth")))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"nms": 0.4}, "nms: expected detect with it"),
        ({"proposals": True}, "proposals: expected detect with it"),
        ({"detect": True, "max_boxes": 0}, "max_boxes: expected 1 to 10,000 with detect, found 0"),
        ({"detect": True, "max_boxes": 10_001}, "max_boxes: expected 1 to 10,000 with detect, found 10,001"),
        ({"detect": True, "region": "mask"}, "region: expected box with detect"),
        ({"detect": True, "proposals": True, "head": "box"}, "head: expected none with proposals"),
        ({"detect": True, "proposals": True, "class_agnostic": True}, "class_agnostic: expected no proposals"),
        ({"detect": True, "nms": 1.5}, "nms: expected at most 1"),
        ({"detect": True, "head": "c5"}, "head: expected none or box with detect"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load(None, given)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"backbone": "resnet50"}, "resnet50: detect: expected a detection model"),
        ({"backbone": "gabor"}, "gabor: detect: expected a detection model"),
        ({"backbone": ONE_STAGE, "proposals": True}, "proposals: expected a two-stage detector"),
        ({"backbone": ONE_STAGE, "class_agnostic": True}, "class_agnostic: expected a two-stage detector"),
    ],
)
def test_models_that_cannot_detect_so(given: dict[str, Any], match: str) -> None:
    with pytest.raises(BackboneError, match=match):
        load_backbone(load(None, {"detect": True, "weights": "random:0", **given}))
