"""State what made a feature file: settings, weights, boxes, versions."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from roialign_cli.backbones import Backbone
from roialign_cli.config import Settings
from roialign_cli.regions.pooling import pooled_layers
from roialign_cli.types import Plan
from roialign_cli.version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "pillow")  # whose versions decide how values are rounded


def provenance(settings: Settings, plan: Plan, backbone: Backbone) -> dict[str, Any]:
    """Return the attributes of a file that state what made it."""
    measured = {layer.name: layer.offsets for layer in backbone.layers} if settings.centers == "measured" else {}
    return {
        "created_by": f"roialign {__version__}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": json.dumps(settings.identity()),
        "backbone": backbone.name,
        "weights": backbone.weights,
        "weights_sha256": backbone.weights_sha256,
        **({"deform_sha256": backbone.deform_sha256} if backbone.deform is not None else {}),
        "boxes_sha256": plan.table.sha256,
        "table_sha256": plan.table_sha256,
        "strides": json.dumps(
            {layer.name: backbone.layers[layer.index].strides for layer in pooled_layers(backbone.layers, settings)}
        ),
        **({"centers": json.dumps(measured)} if measured else {}),
        "preprocessing": json.dumps(asdict(backbone.preprocessing)),
        "versions": json.dumps(
            {name: version(name) for name in PACKAGES + ("torchcodec",) * (settings.decoder == "torchcodec")}
        ),
    }
