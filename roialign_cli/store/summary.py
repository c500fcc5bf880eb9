"""Summarise a feature file, or one image of it, for people and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import COLUMNS, STATUS_NAMES
from roialign_cli.store.statistics import ValueStatistics, sample_statistics


@dataclass(frozen=True)
class FileSummary:
    """Hold what `inspect` shows of a file: images by status, and statistics of sampled values by layer (None: no values)."""

    status: dict[str, int]
    values: dict[str, ValueStatistics | None]


@dataclass(frozen=True)
class ImageSummary:
    """Hold what `inspect --image` shows: columns of values by name and norms by layer, each with one entry per box."""

    name: str
    size: tuple[int, int]
    boxes: list[list[float]]
    columns: dict[str, list[Any]]
    features: dict[str, list[int]]
    norms: dict[str, list[float]]


def summarise_file(file: FeatureFile) -> FileSummary:
    """Count images by status, and sample the values of each layer."""
    counts = np.bincount(file.status, minlength=len(STATUS_NAMES))
    status = {name: int(count) for name, count in zip(STATUS_NAMES, counts, strict=False)}
    return FileSummary(status, {layer: sample_statistics(file, layer) for layer in file.layers})


def summarise_image(file: FeatureFile, name: str) -> ImageSummary:
    """Return the boxes of an image with their labels, scores and other columns, and the norm of each box's features.

    Raises OutputError if the image has no features.
    """
    regions = file[name]
    layers = regions.features if isinstance(regions.features, Mapping) else {file.layers[0]: regions.features}
    columns = {singular: getattr(regions, name) for name, singular in COLUMNS.items()}
    norms = {}
    for layer, features in layers.items():
        rows = np.array(features, np.float64).reshape(len(features), -1) if len(features) else np.empty((0, 1))
        norms[layer] = np.linalg.norm(rows, axis=1).tolist()
    return ImageSummary(
        name=name,
        size=regions.size,
        boxes=regions.boxes.tolist(),
        columns={key: values.tolist() for key, values in columns.items() if values is not None},
        features={layer: list(features.shape) for layer, features in layers.items()},
        norms=norms,
    )
