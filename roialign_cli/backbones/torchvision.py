"""torchvision's models by name; those for classification and segmentation are tapped at any node of their graph."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import ResNet, VisionTransformer, detection, segmentation
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from roialign_cli.backbones import pyramid, vit
from roialign_cli.backbones.base import Backbone, Layer, Preprocessing, chosen_resize
from roialign_cli.backbones.measure import measure, measure_maps
from roialign_cli.backbones.optimize import OnDemand, fold
from roialign_cli.backbones.weights import Weights, cached_file, find_weights, load_matching, load_part, state_sha256
from roialign_cli.config import Settings, suggest
from roialign_cli.errors import BackboneError

C4 = "layer3"  # the layer that torchvision's ResNets call so
MIN_DEFAULT_STRIDE = (
    8  # of the layer that is taken where none is named: finer ones have seen next to nothing of the image
)


@cache
def available() -> dict[str, str]:
    """Names of the models for classification and segmentation, and of the detection models with a feature pyramid."""
    pyramids = [name for name in torchvision.models.list_models(module=detection) if "fpn" in name]
    plain = torchvision.models.list_models(module=torchvision.models)
    dense = torchvision.models.list_models(module=segmentation)
    kinds = {"classification": plain, "segmentation": dense, "detection": pyramids}
    return {name: kind for kind, names in kinds.items() for name in names}


def load(settings: Settings) -> Backbone:
    """Build, prune to the tapped layers, load weights, measure strides."""
    kind = _kind(settings.backbone)
    entries = torchvision.models.get_model_weights(settings.backbone)
    weights = find_weights(settings.weights, entries)
    whole = _build(settings.backbone, weights.seed, vit.image_size(weights.state))
    if kind == "detection":
        return pyramid.load(settings, whole, weights)
    if isinstance(whole, VisionTransformer):
        return vit.load(settings, whole, weights, weights.origin or entries.DEFAULT)
    return _tapped(settings, whole, weights, weights.origin or entries.DEFAULT)


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
        hint = suggest(name, ["gabor", *available()]) or "`roialign backbones` lists all"
        raise BackboneError("backbone-unknown", f"backbone: no backbone is named {name!r}", hint)
    return kind


def describe(name: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(channels, stride) of each layer that `--layers` can name, down to two levels of nesting, and the weights there are."""
    kind = _kind(name)
    entries = list(torchvision.models.get_model_weights(name).__members__)
    with torch.device("meta"):  # nothing is allocated or computed, however large the model
        model = _build(name, 0)
        if kind == "detection":
            tapped: nn.Module = pyramid.Pyramid(
                model.backbone, {key: key for key in pyramid.level_names(model.backbone)}
            )
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
    options: dict[str, Any] = {"weights_backbone": None} if available()[name] != "classification" else {}
    if image_size is not None:
        options["image_size"] = image_size
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builders warn of initial weights that are about to be replaced
        torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None, **options).eval()


def _nodes(model: nn.Module) -> list[str]:
    nodes: list[str] = get_graph_node_names(model, suppress_diff_warning=True)[1]
    return nodes[1:]  # the first is the image itself


def _tapped(settings: Settings, whole: nn.Module, weights: Weights, entry: Any) -> Backbone:
    nodes = _nodes(whole)
    head, head_channels = None, 0
    if settings.head == "c5":
        layers, head, head_channels = _c5_head(settings, whole)
    else:
        layers = settings.layers or (_last_spatial(whole),)
    for layer in layers:
        if not any(node == layer or node.startswith(f"{layer}.") for node in nodes):
            blocks = list(dict.fromkeys(node.split(".")[0] for node in nodes))
            hint = (
                suggest(layer, blocks)
                or suggest(layer, nodes)
                or f"`roialign backbones {settings.backbone}` lists all nodes"
            )
            known = f"expected a node such as {', '.join(blocks)}"
            raise BackboneError("layer-unknown", f"{settings.backbone}: {known}, found {layer!r}", hint)
    model = _tap(whole, layers)
    if weights.state is not None:
        extra = {key for key in weights.state if key.startswith("aux_classifier.")}  # only training uses it
        load_matching(model, weights.state, set(whole.state_dict()) | extra, weights.name)
        if head is not None:
            load_part(head[0], "layer4.", weights.state, weights.name)
    found = measure_maps(model, multiple=1)
    transform = entry.transforms()
    own = (transform.resize_size[0], None) if available()[settings.backbone] == "segmentation" else None
    return Backbone(
        name=settings.backbone,
        model=OnDemand(fold(model), compiled=settings.compile),
        layers=tuple(Layer(name, channels, (stride,)) for name, (channels, stride) in found.items()),
        preprocessing=Preprocessing(tuple(transform.mean), tuple(transform.std), chosen_resize(settings, own)),
        weights=weights.name,
        weights_sha256=weights.sha256 or state_sha256(model),
        head=head,
        head_channels=head_channels,
    )


def _c5_head(settings: Settings, whole: nn.Module) -> tuple[tuple[str, ...], nn.Sequential, int]:
    """The layer to pool, and a ResNet's last stage and mean on top of its RoIs, as detectors without a pyramid have them.

    arXiv:1506.01497 for ResNets (arXiv:1512.03385, appendix A); RoIs of 14 x 14 bins become vectors [K, 2048].
    """
    if not isinstance(whole, ResNet):
        message = f"{settings.backbone}: head: expected a ResNet, which has a stage C5, found another"
        raise BackboneError("backbone-head", message, "--backbone resnet101")
    if settings.layers not in ((), (C4,)):
        message = f"{settings.backbone}: head: expected layer {C4} beside head c5, found {', '.join(settings.layers)}"
        raise BackboneError("backbone-head", message)
    head = nn.Sequential(whole.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return (C4,), head.eval(), whole.fc.in_features


def _tap(model: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """The model up to the layers, which it returns; what only later layers need is pruned."""
    extractor: nn.Module = create_feature_extractor(model, list(layers), suppress_diff_warning=True)
    return extractor.eval()


def _last_spatial(model: nn.Module) -> str:
    """The last top-level block whose map still grows with the image: what comes before the pooling."""
    inside = "backbone." if hasattr(model, "backbone") else ""  # of a segmentation model
    blocks = [inside + name for name, _ in model.get_submodule(inside.rstrip(".")).named_children()]
    for name in reversed(blocks):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints where a traced model fails
                _, stride = measure_maps(_tap(model, (name,)), multiple=32)[name]
        except Exception:  # not a map, not a node of the graph, or a model of one image size only
            continue
        if stride >= MIN_DEFAULT_STRIDE:
            return name
    names = ", ".join(blocks)
    raise BackboneError("layer-unknown", f"no block of this model gives a map; its blocks are {names}", "pass --layers")
