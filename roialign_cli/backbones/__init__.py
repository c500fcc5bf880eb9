"""Backbones: a name becomes a model that gives feature maps of known strides."""

from __future__ import annotations

from pathlib import Path

from roialign_cli.backbones.base import Backbone
from roialign_cli.config import Settings
from roialign_cli.errors import BackboneError

__all__ = ["Backbone", "available", "describe", "fetch_weights", "load_backbone", "size"]


def available() -> dict[str, str]:
    """Names of all backbones with their kind: built-in, classification, segmentation, detection."""
    from roialign_cli.backbones import torchvision

    return {"gabor": "built-in", **torchvision.available()}


def describe(name: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(channels, stride) of every layer of a backbone, and the names of its weights."""
    if name == "gabor":
        from roialign_cli.backbones import gabor

        return {"gabor": (gabor.CHANNELS, gabor.STRIDE)}, []
    from roialign_cli.backbones import torchvision

    return torchvision.describe(name)


def size(name: str) -> tuple[int, list[str]]:
    """Number of parameters of a backbone's whole model, and which of its weights are in the cache."""
    if name == "gabor":
        return 0, []
    from roialign_cli.backbones import torchvision

    return torchvision.size(name)


def fetch_weights(name: str, weights: str) -> tuple[Path, str]:
    """Download torchvision's weights into its cache: their file and its SHA-256. BackboneError where that cannot be."""
    from roialign_cli.backbones import torchvision

    return torchvision.fetch(name, weights)


def load_backbone(settings: Settings) -> Backbone:
    """The backbone of the settings with its weights, in eval mode on the CPU.

    Raises BackboneError: unknown name or layer, weights that cannot be had or do not fit.
    """
    from roialign_cli.backbones import custom

    kind = available().get(settings.backbone)
    if settings.head == "box" and kind != "detection":
        message = f"{settings.backbone}: head: expected a detection model, which has a box head, found another"
        raise BackboneError("backbone-head", message, "--backbone fasterrcnn_resnet50_fpn")
    if settings.head == "c5" and kind != "classification":
        message = f"{settings.backbone}: head: expected a ResNet, which has a stage C5, found another"
        raise BackboneError("backbone-head", message, "--backbone resnet101")
    if settings.backbone == "gabor":
        from roialign_cli.backbones import gabor

        return gabor.load(settings)
    if custom.is_custom(settings.backbone):
        return custom.load(settings)
    from roialign_cli.backbones import torchvision

    return torchvision.load(settings)
