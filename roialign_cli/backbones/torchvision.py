"""torchvision's models: classification models tapped at any node, detection models at their feature pyramid."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import VisionTransformer, detection
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from roialign_cli.backbones import vit
from roialign_cli.backbones.base import Backbone, chosen_resize, measure, measure_maps
from roialign_cli.backbones.optimize import Compiled, OnDemand, fold
from roialign_cli.backbones.weights import Weights, cached_file, find_weights, fit, state_sha256
from roialign_cli.config import Settings, nearest
from roialign_cli.errors import BackboneError
from roialign_cli.structures import Layer, Preprocessing

PYRAMID = "fpn"
LEAST_STRIDE = 8  # of the layer that is taken where none is named: finer ones have seen next to nothing of the image


@cache
def available() -> dict[str, str]:
    """Names of the classification models and of the detection models with a feature pyramid."""
    pyramids = [name for name in torchvision.models.list_models(module=detection) if "fpn" in name]
    plain = torchvision.models.list_models(module=torchvision.models)
    return dict.fromkeys(plain, "classification") | dict.fromkeys(pyramids, "detection")


def load(settings: Settings) -> Backbone:
    """Build, prune to the tapped layers, load weights, measure strides."""
    kind = _kind(settings.backbone)
    entries = torchvision.models.get_model_weights(settings.backbone)
    weights = find_weights(settings.weights, entries)
    whole = _build(settings.backbone, weights.seed, vit.image_size(weights.state))
    if kind == "detection":
        return _pyramid(settings, whole, weights)
    if isinstance(whole, VisionTransformer):
        return _transformer(settings, whole, weights, weights.origin or entries.DEFAULT)
    return _classifier(settings, whole, weights, weights.origin or entries.DEFAULT)


def fetch(name: str, weights: str) -> tuple[Path, str]:
    """Download weights, unless they are in the cache: their file and its SHA-256."""
    _kind(name)
    entries = torchvision.models.get_model_weights(name)
    found = find_weights(weights, entries)
    if found.origin is None:
        names = ", ".join(entries.__members__)
        raise BackboneError("weights-unknown", f"weights: expected one of {names}, found {weights!r}")
    return cached_file(found.origin), found.sha256


def _kind(name: str) -> str:
    kind = available().get(name)
    if kind is None:
        hint = nearest(name, ["gabor", *available()]) or "`roialign backbones` lists all"
        raise BackboneError("backbone-unknown", f"backbone: no backbone is named {name!r}", hint)
    return kind


def describe(name: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(channels, stride) of each layer that `--layers` can name, down to two levels of nesting, and the weights there are."""
    kind = _kind(name)
    entries = list(torchvision.models.get_model_weights(name).__members__)
    with torch.device("meta"):  # nothing is allocated or computed, however large the model
        model = _build(name, 0)
        if kind == "detection":
            tapped: nn.Module = _Pyramid(model.backbone, {key: key for key in _pyramid_keys(model.backbone)})
        elif isinstance(model, VisionTransformer):
            return dict.fromkeys(vit.layer_names(model), (model.hidden_dim, model.patch_size)), entries
        else:
            blocks = dict.fromkeys(".".join(node.split(".")[:depth]) for node in _nodes(model) for depth in (1, 2))
            tapped = _tap(model, tuple(blocks))
        found = measure(tapped, multiple=32)
    return {block: size for block, size in found.items() if size is not None}, entries


def size(name: str) -> tuple[int, list[str]]:
    """Number of parameters of the whole model, and which of its weights are in the cache: those need no network."""
    _kind(name)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in _build(name, 0).parameters())
    entries = torchvision.models.get_model_weights(name).__members__
    return count, [entry for entry, weights in entries.items() if cached_file(weights).is_file()]


def _build(name: str, seed: int, image_size: int | None = None) -> Any:
    """The whole model, randomly initialised from the seed; for images of a size, where the model depends on it."""
    options: dict[str, Any] = {"weights_backbone": None} if available()[name] == "detection" else {}
    if image_size is not None:
        options["image_size"] = image_size
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builders warn of initial weights that are about to be replaced
        torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None, **options).eval()


def _pyramid_keys(backbone: nn.Module) -> list[str]:
    """Names of the levels, finest first; `pool`, which serves proposals only, is none."""
    with torch.inference_mode():
        return [key for key in backbone(torch.zeros(1, 3, 64, 64)) if key != "pool"]


def _nodes(model: nn.Module) -> list[str]:
    nodes: list[str] = get_graph_node_names(model, suppress_diff_warning=True)[1]
    return [node for node in nodes if node != "x"]


def _classifier(settings: Settings, whole: nn.Module, weights: Weights, entry: Any) -> Backbone:
    nodes = _nodes(whole)
    layers = settings.layers or (_last_spatial(whole),)
    for layer in layers:
        if not any(node == layer or node.startswith(f"{layer}.") for node in nodes):
            blocks = list(dict.fromkeys(node.split(".")[0] for node in nodes))
            hint = (
                nearest(layer, blocks)
                or nearest(layer, nodes)
                or f"`roialign backbones {settings.backbone}` lists all nodes"
            )
            known = f"expected a node such as {', '.join(blocks)}"
            raise BackboneError("layer-unknown", f"{settings.backbone}: {known}, found {layer!r}", hint)
    model = _tap(whole, layers)
    if weights.state is not None:
        fit(model, weights.state, set(whole.state_dict()), weights.name)
    found = measure_maps(model, multiple=1)
    transform = entry.transforms()
    return Backbone(
        name=settings.backbone,
        model=OnDemand(fold(model), compiled=settings.compile),
        layers=tuple(Layer(name, channels, (stride,)) for name, (channels, stride) in found.items()),
        preprocessing=Preprocessing(tuple(transform.mean), tuple(transform.std), chosen_resize(settings, None)),
        weights=weights.name,
        weights_sha256=weights.sha256 or state_sha256(model),
    )


def _transformer(settings: Settings, whole: VisionTransformer, weights: Weights, entry: Any) -> Backbone:
    names = vit.layer_names(whole)
    layers = settings.layers or (vit.LAST,)
    for layer in layers:
        if layer not in names:
            hint = nearest(layer, names)
            raise BackboneError(
                "layer-unknown", f"{settings.backbone}: expected {', '.join(names)}, found {layer!r}", hint
            )
    if weights.state is not None:
        fit(whole, weights.state, set(whole.state_dict()), weights.name)
    model: nn.Module = vit.TokenMaps(whole, layers).eval()
    digest = weights.sha256 or state_sha256(model)
    transform = entry.transforms()
    resize = chosen_resize(settings, None)
    return Backbone(
        name=settings.backbone,
        model=Compiled(model) if settings.compile else model,
        layers=tuple(Layer(layer, whole.hidden_dim, (whole.patch_size,)) for layer in layers),
        preprocessing=Preprocessing(tuple(transform.mean), tuple(transform.std), resize, multiple=whole.patch_size),
        weights=weights.name,
        weights_sha256=digest,
    )


def _tap(model: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """The model up to the layers, which it returns; what only later layers need is pruned."""
    extractor: nn.Module = create_feature_extractor(model, list(layers), suppress_diff_warning=True)
    return extractor.eval()


def _last_spatial(model: nn.Module) -> str:
    """The last top-level block whose map still grows with the image: what comes before the pooling."""
    blocks = [name for name, _ in model.named_children()]
    for name in reversed(blocks):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints where a traced model fails
                _, stride = measure_maps(_tap(model, (name,)), multiple=32)[name]
        except Exception:  # not a map, not a node of the graph, or a model of one image size only
            continue
        if stride >= LEAST_STRIDE:
            return name
    names = ", ".join(blocks)
    raise BackboneError("layer-unknown", f"no block of this model gives a map; its blocks are {names}", "pass --layers")


class _Pyramid(nn.Module):
    """The maps of a pyramid that were asked for, named."""

    def __init__(self, backbone: BackboneWithFPN, names: dict[str, str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = names

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.backbone(images)
        return OrderedDict((name, maps[key]) for name, key in self.names.items())


def _pyramid(settings: Settings, whole: Any, weights: Weights) -> Backbone:
    backbone = whole.backbone
    assert isinstance(backbone, BackboneWithFPN)
    keys = _pyramid_keys(backbone)
    layers = settings.layers or (PYRAMID,)
    for layer in layers:
        if layer not in (PYRAMID, *keys):
            known = f"expected {PYRAMID}, {', '.join(keys)}"
            raise BackboneError("layer-unknown", f"{settings.backbone}: {known}, found {layer!r}")
    names = {f"{layer}/{key}": key for layer in layers for key in (keys if layer == PYRAMID else [layer])}
    head, head_channels = _box_head(settings, whole) if settings.head == "box" else (None, 0)
    model = _Pyramid(backbone, names).eval()
    if weights.state is not None:
        everything = set(whole.state_dict())
        state = weights.state
        if not any(key.startswith("backbone.") for key in state):
            state = {f"backbone.{key}": value for key, value in state.items()}
        own = {key for key in state if key.startswith("backbone.")}
        rest = everything if own else set()  # a fine-tuned head of any shape is of no concern here
        fit(model, {key: state[key] for key in own}, rest, weights.name)
        if head is not None:
            begin = "roi_heads.box_head."
            of_head = {key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)}
            fit(head, of_head, set(head.state_dict()), weights.name)
        if weights.origin is not None and weights.origin.name in ("COCO_V1", "COCO_LEGACY"):
            _legacy_epsilon(settings.backbone, model)
    found = measure_maps(model, multiple=32)
    tapped = []
    for layer in layers:
        own_maps = [found[name] for name in names if name.startswith(f"{layer}/")]
        tapped.append(Layer(layer, own_maps[0][0], tuple(stride for _, stride in own_maps)))
    transform = whole.transform
    resize = chosen_resize(settings, (transform.min_size[0], transform.max_size))
    return Backbone(
        name=settings.backbone,
        model=OnDemand(fold(model), compiled=settings.compile),
        layers=tuple(tapped),
        preprocessing=Preprocessing(
            tuple(transform.image_mean), tuple(transform.image_std), resize, antialias=False, multiple=32
        ),
        weights=weights.name,
        weights_sha256=weights.sha256 or state_sha256(model),
        head=head,
        head_channels=head_channels,
    )


def _box_head(settings: Settings, whole: Any) -> tuple[nn.Module, int]:
    """The model's box head and the length of its vectors; it takes RoIs of the whole pyramid in its own output size."""
    if not hasattr(whole, "roi_heads"):
        message = f"{settings.backbone}: head: expected a two-stage detector, which has a box head, found another"
        raise BackboneError("backbone-head", message, "--backbone fasterrcnn_resnet50_fpn")
    size = tuple(whole.roi_heads.box_roi_pool.output_size)
    if settings.output_size != size or settings.layers not in ((), (PYRAMID,)):
        found = f"{'x'.join(map(str, settings.output_size))} of {', '.join(settings.layers) or PYRAMID}"
        expected = f"expected output size {'x'.join(map(str, size))} of {PYRAMID}"
        raise BackboneError("backbone-head", f"{settings.backbone}: head: {expected}, found {found}")
    head: nn.Module = whole.roi_heads.box_head.eval()
    with torch.inference_mode():
        return head, int(head(torch.zeros(1, whole.backbone.out_channels, *size)).shape[1])


def _legacy_epsilon(name: str, model: nn.Module) -> None:
    """torchvision's first ResNet-50 detection weights were trained with frozen batch norm of epsilon 0."""
    if "resnet50_fpn" in name and not name.endswith("_v2") and "fcos" not in name:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
