"""Load torchvision's models by name; models for classification and segmentation give maps at any node of their graph."""

from __future__ import annotations

import contextlib
import io
import re
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
from roialign_cli.backbones.base import Backbone, Layer, Preprocessing, resolve_resize
from roialign_cli.backbones.measure import measure_maps, measure_outputs
from roialign_cli.backbones.optimize import OnDemand, fold
from roialign_cli.backbones.weights import Weights, cached_file, find_weights, load_matching, load_part, state_sha256
from roialign_cli.config import Settings, suggest
from roialign_cli.errors import BackboneError

C4_LAYER = "layer3"  # the name of stage C4 in torchvision's ResNets
MIN_DEFAULT_STRIDE = 8  # pixels; finer layers see too little of the image to be the default layer


@cache
def available() -> dict[str, str]:
    """Return the kind of each model by its name; of the detection models only those with a feature pyramid."""
    detectors = [name for name in torchvision.models.list_models(module=detection) if "fpn" in name]
    classifiers = torchvision.models.list_models(module=torchvision.models)
    segmenters = torchvision.models.list_models(module=segmentation)
    kinds = {"classification": classifiers, "segmentation": segmenters, "detection": detectors}
    return {name: kind for kind, names in kinds.items() for name in names}


def load(settings: Settings) -> Backbone:
    """Build a model, remove what its layers do not need, load its weights and measure its strides."""
    kind = _find_kind(settings.backbone)
    entries = torchvision.models.get_model_weights(settings.backbone)
    weights = find_weights(settings.weights, entries)
    whole = _build(settings.backbone, weights.seed, vit.image_size(weights.state), pyramid.class_count(weights.state))
    if kind == "detection":
        return pyramid.load(settings, whole, weights)
    if isinstance(whole, VisionTransformer):
        return vit.load(settings, whole, weights, weights.origin or entries.DEFAULT)
    return _load_nodes(settings, whole, weights, weights.origin or entries.DEFAULT)


def fetch(name: str, weights: str) -> tuple[Path, str]:
    """Download weights, unless they are in the cache, and return their file and its SHA-256."""
    _find_kind(name)
    entries = torchvision.models.get_model_weights(name)
    found = find_weights(weights, entries)
    if found.origin is None:
        names = ", ".join(entries.__members__)
        raise BackboneError("weights-unknown", f"weights: expected one of {names}, found {weights!r}")
    return cached_file(found.origin), found.sha256


def _find_kind(name: str) -> str:
    """Return the kind of a model. Raises BackboneError if the name is unknown."""
    kind = available().get(name)
    if kind is None:
        hint = _dinov2_hint(name) or suggest(name, ["gabor", *available()]) or "`roialign backbones` lists all"
        raise BackboneError("backbone-unknown", f"backbone: no backbone is named {name!r}", hint)
    return kind


def _dinov2_hint(name: str) -> str:
    """Return a hint with timm's name of a model of DINOv2, or an empty string for other names."""
    found = re.fullmatch(r"dinov2_vit([sblg])14(_reg)?", name)
    if found is None:
        return ""
    size = {"s": "small", "b": "base", "l": "large", "g": "giant"}[found[1]]
    return f"--backbone timm:vit_{size}_patch14_{'reg4_' if found[2] else ''}dinov2.lvd142m"


def describe(name: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return (channels, stride) of each layer, down to two levels of nesting, and the names of the weights."""
    kind = _find_kind(name)
    entries = list(torchvision.models.get_model_weights(name).__members__)
    model = _build_without_memory(name)
    with torch.device("meta"):
        if kind == "detection":
            extractor: nn.Module = pyramid.Pyramid(
                model.backbone, {key: key for key in pyramid.level_names(model.backbone)}
            )
        elif isinstance(model, VisionTransformer):
            return dict.fromkeys(vit.layer_names(model), (model.hidden_dim, model.patch_size)), entries
        else:
            nodes = _node_names(model)
            blocks = dict.fromkeys(".".join(node.split(".")[:depth]) for node in nodes for depth in (1, 2))
            ends = {_last_node(block, nodes): block for block in blocks}  # a feature extractor returns each node once
            extractor = _extract_layers(model, tuple(ends.values()))
            try:
                by_end = measure_outputs(extractor, multiple=32)
            except RuntimeError as error:
                reason = str(error).split("\n", maxsplit=1)[0]
                message = f"{name}: expected a model that takes images of several sizes, found: {reason}"
                raise BackboneError("layer-not-spatial", message) from None
            found = {block: by_end[ends[_last_node(block, nodes)]] for block in blocks}
            return {block: measured for block, measured in found.items() if measured is not None}, entries
        found = measure_outputs(extractor, multiple=32)
    return {block: measured for block, measured in found.items() if measured is not None}, entries


def count_parameters(name: str) -> int:
    """Return the number of parameters of the whole model."""
    _find_kind(name)
    return sum(parameter.numel() for parameter in _build_without_memory(name).parameters())


def cached_weights(name: str) -> list[str]:
    """Return the names of the model's weights that are in torchvision's cache."""
    _find_kind(name)
    entries = torchvision.models.get_model_weights(name).__members__
    return [entry for entry, weights in entries.items() if cached_file(weights).is_file()]


def _build(name: str, seed: int, image_size: int | None = None, classes: int | None = None) -> Any:
    """Build the whole model with random weights from a seed.

    `image_size` is in pixels, for models that depend on it; `classes` is for two-stage detectors that were trained on others.
    """
    options: dict[str, Any] = {"weights_backbone": None} if available()[name] != "classification" else {}
    if image_size is not None:
        options["image_size"] = image_size
    if classes is not None and available()[name] == "detection":
        options["num_classes"] = classes
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builders warn about their initialisation, which is about to be replaced
        torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None, **options).eval()


def _build_without_memory(name: str) -> Any:
    """Build a model on the meta device, which allocates and computes nothing, however large the model is."""
    try:
        with torch.device("meta"):
            return _build(name, 0)
    except NotImplementedError:  # RegNets compute the sizes of their blocks with tensors
        return _build(name, 0).to("meta")


def _last_node(layer: str, nodes: list[str]) -> str:
    """Return the last node of a layer, whose output is that of the layer."""
    return next(node for node in reversed(nodes) if node == layer or node.startswith(f"{layer}."))


def _node_names(model: nn.Module) -> list[str]:
    """Return the names of the nodes in a model's graph in eval mode, without its input."""
    names: list[str] = get_graph_node_names(model, suppress_diff_warning=True)[1]
    return names[1:]


def _load_nodes(settings: Settings, whole: nn.Module, weights: Weights, entry: Any) -> Backbone:
    """Load a model whose layers are nodes of its graph; `entry` is the weights entry with the transform of its images."""
    nodes = _node_names(whole)
    head, head_channels = None, 0
    if settings.head == "c5":
        layers, head, head_channels = _c5_head(settings, whole)
    else:
        layers = settings.layers or (_last_spatial_block(whole),)
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
    ends: dict[str, str] = {}  # the layers by their last node
    for layer in layers:
        same = ends.setdefault(_last_node(layer, nodes), layer)
        if same != layer:
            message = (
                f"{settings.backbone}: expected different layers, found {same!r} and {layer!r}, which are the same map"
            )
            raise BackboneError("layer-unknown", message, f"--layers {same}")
    model = _extract_layers(whole, layers)
    if weights.state is not None:
        auxiliary = {key for key in weights.state if key.startswith("aux_classifier.")}  # only used in training
        load_matching(model, weights.state, set(whole.state_dict()) | auxiliary, weights.name)
        if head is not None:
            load_part(head[0], "layer4.", weights.state, weights.name)
    found = measure_maps(model, multiple=1)
    transform = entry.transforms()
    default = (transform.resize_size[0], None) if available()[settings.backbone] == "segmentation" else None
    return Backbone(
        name=settings.backbone,
        model=OnDemand(fold(model), compiled=settings.compile),
        layers=tuple(
            Layer(settings.head if head is not None else name, channels, (stride,))
            for name, (channels, stride) in found.items()
        ),
        preprocessing=Preprocessing(tuple(transform.mean), tuple(transform.std), resolve_resize(settings, default)),
        weights=weights.name,
        weights_sha256=weights.sha256 or state_sha256(model),
        head=head,
        head_channels=head_channels,
    )


def _c5_head(settings: Settings, whole: nn.Module) -> tuple[tuple[str, ...], nn.Sequential, int]:
    """Return the layer to pool, the head of a detector without a pyramid, and the length of the head's vectors.

    The head is a ResNet's last stage and its mean: Faster R-CNN (arXiv:1506.01497) on ResNets (arXiv:1512.03385,
    appendix A). It turns RoIs of 14 x 14 bins into vectors [K, 2048], or [K, 512] on a ResNet-18 or ResNet-34.
    """
    if not isinstance(whole, ResNet):
        message = f"{settings.backbone}: head: expected a ResNet, which has a stage C5, found another model"
        raise BackboneError("backbone-head", message, "--backbone resnet101")
    if settings.layers not in ((), (C4_LAYER,)):
        expected = f"expected layer {C4_LAYER} with head c5"
        message = f"{settings.backbone}: head: {expected}, found {', '.join(settings.layers)}"
        raise BackboneError("backbone-head", message)
    head = nn.Sequential(whole.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return (C4_LAYER,), head.eval(), whole.fc.in_features


def _extract_layers(model: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """Return a model that returns these layers by name, without the modules that only later layers need."""
    extractor: nn.Module = create_feature_extractor(model, list(layers), suppress_diff_warning=True)
    return extractor.eval()


def _last_spatial_block(model: nn.Module) -> str:
    """Return the last top-level block whose map grows with the image, which is the one before global pooling."""
    prefix = "backbone." if hasattr(model, "backbone") else ""  # segmentation models have one
    blocks = [prefix + name for name, _ in model.get_submodule(prefix.rstrip(".")).named_children()]
    for name in reversed(blocks):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints the failing line of a traced model
                _, stride = measure_maps(_extract_layers(model, (name,)), multiple=32)[name]
        except Exception:  # not a map, not a node of the graph, or a model that takes one image size only
            continue
        if stride >= MIN_DEFAULT_STRIDE:
            return name
    names = ", ".join(blocks)
    raise BackboneError("layer-unknown", f"expected a block that returns a map, found none of {names}", "pass --layers")
