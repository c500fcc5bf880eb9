"""Load backbones by name: models that return feature maps of known strides."""

from __future__ import annotations

from pathlib import Path

from roialign_cli.backbones.base import Backbone
from roialign_cli.config import Settings
from roialign_cli.errors import BackboneError

__all__ = [
    "Backbone",
    "available",
    "cached_weights",
    "count_parameters",
    "describe",
    "fetch_weights",
    "load_backbone",
]


def available() -> dict[str, str]:
    """Return the kind of each backbone by its name: built-in, classification, segmentation or detection."""
    from roialign_cli.backbones import torchvision

    return {"gabor": "built-in", **torchvision.available()}


def describe(name: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return (channels, stride) of each layer of a backbone, and the names of its weights.

    Models of the user's own and timm's are loaded for that, with random weights where they have none of their own. Raises
    BackboneError if the name is unknown.
    """
    from roialign_cli.backbones import custom

    if custom.is_custom(name):
        return custom.describe(name)
    if name == "gabor":
        from roialign_cli.backbones import gabor

        return {"gabor": (gabor.CHANNELS, gabor.STRIDE)}, []
    from roialign_cli.backbones import torchvision

    return torchvision.describe(name)


def count_parameters(name: str) -> int:
    """Return the number of parameters of a backbone's whole model, before it is cut at a layer."""
    from roialign_cli.backbones import custom

    if custom.is_custom(name):
        return custom.count_parameters(name)
    if name == "gabor":
        return 0
    from roialign_cli.backbones import torchvision

    return torchvision.count_parameters(name)


def cached_weights(name: str) -> list[str]:
    """Return the names of those weights of a backbone that are in torchvision's cache and need no network."""
    from roialign_cli.backbones import custom

    if name == "gabor" or custom.is_custom(name):
        return []
    from roialign_cli.backbones import torchvision

    return torchvision.cached_weights(name)


def fetch_weights(name: str, weights: str) -> tuple[Path, str]:
    """Download torchvision's weights into its cache and return the file and its SHA-256. Raises BackboneError."""
    from roialign_cli.backbones import torchvision

    return torchvision.fetch(name, weights)


def load_backbone(settings: Settings) -> Backbone:
    """Load the backbone of the settings with its weights, in eval mode on the CPU.

    If the settings ask for it, a head that moves bins is loaded, too, and centers are measured.

    Raises BackboneError if the name or a layer is unknown, or if the weights are unavailable or do not fit the model.
    """
    backbone = _load(settings)
    if settings.deform:
        from roialign_cli.backbones.deform import with_bin_mover

        backbone = with_bin_mover(backbone, settings)
    if settings.centers == "assumed":
        return backbone
    from roialign_cli.backbones.centers import measure_centers

    return measure_centers(backbone)


def _load(settings: Settings) -> Backbone:
    from roialign_cli.backbones import custom

    if settings.backbone == "gabor":  # without torchvision, which takes two seconds to import
        _check_parts(settings, "built-in")
        from roialign_cli.backbones import gabor

        return gabor.load(settings)
    if custom.is_custom(settings.backbone):
        _check_parts(settings, None)
        return custom.load(settings)
    _check_parts(settings, available().get(settings.backbone))
    from roialign_cli.backbones import torchvision

    return torchvision.load(settings)


def _check_parts(settings: Settings, kind: str | None) -> None:
    """Raise BackboneError if the settings ask for a part that a kind of model does not have: a head or a detector."""
    detector = "fasterrcnn_resnet50_fpn"
    for part, wanted, needed, expected, hint in (
        ("head", settings.head == "box", "detection", "a detection model, which has a box head", detector),
        ("detect", settings.detect, "detection", "a detection model", detector),
        ("head", settings.head == "c5", "classification", "a ResNet, which has a stage C5", "resnet101"),
    ):
        if wanted and kind != needed:
            message = f"{settings.backbone}: {part}: expected {expected}, found another model"
            raise BackboneError(f"backbone-{part}", message, f"--backbone {hint}")
