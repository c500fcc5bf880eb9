"""Load torchvision's detection models: the levels of their feature pyramid, and the box head on top of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from roialign_cli.backbones.base import Backbone, Layer, Preprocessing, resolve_resize
from roialign_cli.backbones.detector import Detector
from roialign_cli.backbones.measure import measure_maps
from roialign_cli.backbones.optimize import OnDemand, fold
from roialign_cli.backbones.weights import Weights, load_matching, load_part, state_sha256
from roialign_cli.config import Settings, format_size
from roialign_cli.errors import BackboneError

PYRAMID = "fpn"
PAPER_NAMES = tuple(f"P{level}" for level in range(2, 8))


def all_level_names(backbone: nn.Module) -> list[str]:
    """Return the names of the levels, finest first."""
    with torch.inference_mode():
        return list(backbone(torch.zeros(1, 3, 64, 64)))


def level_names(backbone: nn.Module) -> list[str]:
    """Return the names of the levels, finest first, without `pool`, which only the proposal network uses."""
    return [key for key in all_level_names(backbone) if key != "pool"]


def paper_names(backbone: Any) -> dict[str, str]:
    """Return the names of the levels by those of the paper (arXiv:1612.03144): P2 has a stride of 2^2 pixels."""
    keys = level_names(backbone)
    measured = measure_maps(Pyramid(backbone, {key: key for key in keys}), multiple=32)
    return {f"P{stride.bit_length() - 1}": key for key, (_, stride) in measured.items()}


def class_count(state: Mapping[str, Tensor] | None) -> int | None:
    """Return the number of classes, with the background, of weights of a two-stage detector; None for other weights."""
    scores = (state or {}).get("roi_heads.box_predictor.cls_score.bias")
    return None if scores is None else len(scores)


class Pyramid(nn.Module):
    """A feature pyramid that returns the requested maps; `names` gives the key of torchvision for each output name."""

    def __init__(self, backbone: BackboneWithFPN, names: dict[str, str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = names

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps of images [N, 3, H, W] whose sides are multiples of 32 pixels."""
        maps = self.backbone(images)
        return OrderedDict((name, maps[key]) for name, key in self.names.items())


def load(settings: Settings, whole: Any, weights: Weights) -> Backbone:
    """Load the pyramid or single levels of a detection model, and its box head with --head box."""
    backbone = whole.backbone
    assert isinstance(backbone, BackboneWithFPN)
    levels = level_names(backbone)
    layers = settings.layers or (PYRAMID,)
    if any(layer in PAPER_NAMES for layer in layers):
        layers = tuple(paper_names(backbone).get(layer, layer) for layer in layers)
    for layer in layers:
        if layer not in (PYRAMID, *levels):
            known = f"expected {PYRAMID}, {', '.join(levels)}, or P2 to P6"
            raise BackboneError("layer-unknown", f"{settings.backbone}: {known}, found {layer!r}")
    names = {f"{layer}/{key}": key for layer in layers for key in (levels if layer == PYRAMID else [layer])}
    tapped = dict(names)
    read_by_detector: dict[str, str] = {}  # name of the map by torchvision's key, in the order of the model
    if settings.detect:
        by_key = {key: name for name, key in names.items()}
        read_by_detector = {key: by_key.get(key, f"detector/{key}") for key in all_level_names(backbone)}
        names |= {name: key for key, name in read_by_detector.items()}
    head, head_channels = _box_head(settings, whole) if settings.head == "box" else (None, 0)
    model = Pyramid(backbone, names).eval()
    if weights.state is not None:
        known_keys = set(whole.state_dict())
        state = weights.state
        if not any(key.startswith("backbone.") for key in state):
            state = {f"backbone.{key}": value for key, value in state.items()}
        own = {key for key in state if key.startswith("backbone.")}
        if settings.detect:  # the whole model is used, with its pyramid and head
            load_matching(whole, state, known_keys, weights.name)
        else:
            unused = known_keys if own else set()  # a fine-tuned head may have any shape, because it is not used here
            load_matching(model, {key: state[key] for key in own}, unused, weights.name)
            if head is not None:
                load_part(head, "roi_heads.box_head.", state, weights.name)
        if weights.origin is not None and weights.origin.name in ("COCO_V1", "COCO_LEGACY"):
            _set_legacy_epsilon(settings.backbone, model)
    folded = fold(model)  # before it runs: torch 2.11 refuses an epsilon of 0
    found = measure_maps(folded, multiple=32)
    described = []
    for layer in layers:
        maps = [found[name] for name in tapped if name.startswith(f"{layer}/")]
        described.append(Layer(layer, maps[0][0], tuple(stride for _, stride in maps)))
    transform = whole.transform
    resize = resolve_resize(settings, (transform.min_size[0], transform.max_size))
    return Backbone(
        name=settings.backbone,
        model=OnDemand(folded, compiled=settings.compile),
        layers=tuple(described),
        preprocessing=Preprocessing(
            tuple(transform.image_mean), tuple(transform.image_std), resize, antialias=False, multiple=32
        ),
        weights=weights.name,
        weights_sha256=weights.sha256 or state_sha256(model),
        head=head,
        head_channels=head_channels,
        detector=_detector(settings, whole, weights, read_by_detector, found) if settings.detect else None,
    )


def _detector(
    settings: Settings, whole: Any, weights: Weights, names: dict[str, str], found: Mapping[str, tuple[int, int]]
) -> Detector:
    """Return the detector of a model; `found` has (channels, stride) of each map by name."""
    strides = {key: found[name][1] for key, name in names.items()}
    categories = weights.origin.meta.get("categories", ()) if weights.origin is not None else ()
    return Detector(whole, names, strides, settings, categories)


def _box_head(settings: Settings, whole: Any) -> tuple[nn.Module, int]:
    """Return the model's box head and the length of its vectors. Raises BackboneError if the settings do not fit it.

    The head takes RoIs that are pooled from the whole pyramid in the output size that it was trained with.
    """
    if not hasattr(whole, "roi_heads"):
        message = f"{settings.backbone}: head: expected a two-stage detector, which has a box head, found another model"
        raise BackboneError("backbone-head", message, "--backbone fasterrcnn_resnet50_fpn")
    size = tuple(whole.roi_heads.box_roi_pool.output_size)
    if settings.output_size != size or settings.layers not in ((), (PYRAMID,)):
        found = f"{format_size(settings.output_size)} of {', '.join(settings.layers) or PYRAMID}"
        expected = f"expected output size {format_size(size)} of {PYRAMID}"
        raise BackboneError("backbone-head", f"{settings.backbone}: head: {expected}, found {found}")
    head: nn.Module = whole.roi_heads.box_head.eval()
    with torch.inference_mode():
        return head, int(head(torch.zeros(1, whole.backbone.out_channels, *size)).shape[1])


def _set_legacy_epsilon(name: str, model: nn.Module) -> None:
    """Set the epsilon of batch norms to 0, with which torchvision's first ResNet-50 detection weights were trained."""
    if "resnet50_fpn" in name and not name.endswith("_v2") and "fcos" not in name:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
