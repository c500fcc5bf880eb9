"""Make feature files of regions that are not boxes: rotated boxes, masks and points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from roialign_cli.arrays import PackedNames
from roialign_cli.extraction.shards import shard_plan, split_plan
from roialign_cli.store.identity import table_sha256
from roialign_cli.store.layout import Layout, create_file
from roialign_cli.store.schema import features_path
from roialign_cli.store.writer import FeatureWriter, open_writer
from roialign_cli.types import BoxTable, Plan

KINDS = ("rotated", "mask", "points")
TABLES = {"rotated": {"rotated", "area"}, "mask": {"coverage", "area"}, "points": {"points"}}


@dataclass(frozen=True)
class Content:
    """All values of a file of regions: its plan, and what a run computes of each row."""

    kind: str
    plan: Plan
    layers: dict[str, np.ndarray]
    filled: dict[str, np.ndarray]  # coverage and area

    @property
    def layout(self) -> Layout:
        """The layout of its file."""
        about = dict.fromkeys(("backbone", "weights", "weights_sha256", "boxes_sha256", "created_by", "created"), "")
        about |= {"config": json.dumps({"region": self.kind}), "table_sha256": table_sha256(self.plan.table)}
        about |= {"strides": json.dumps({layer: [4] for layer in self.layers}), "preprocessing": "{}", "versions": "{}"}
        return Layout(
            layers={layer: rows.shape[1:] for layer, rows in self.layers.items()},
            dtype="float32",
            levels=False,
            attributes=about,
            versions=False,
            tables={name: rows.shape[1:] for name, rows in self.filled.items()},
        )

    def part(self, first: int, stop: int) -> dict[str, Any]:
        """Return the computed values of some rows."""
        return {
            "layers": {layer: rows[first:stop] for layer, rows in self.layers.items()},
            "filled": {name: rows[first:stop] for name, rows in self.filled.items()},
        }


def region_content(
    kind: str,
    counts: Sequence[int] = (2, 0, 3, 1),
    *,
    bins: tuple[int, int] = (2, 3),
    points: int = 4,
    layers: Sequence[str] = ("one",),
) -> Content:
    """Return random content: `counts` are the regions of each image."""
    rng, n = np.random.default_rng(0), sum(counts)
    corner = rng.uniform(0, 40, (n, 2))
    table = BoxTable(
        names=PackedNames.from_strings([f"{i}.png" for i in range(len(counts))]),
        offset=np.cumsum([0, *counts], dtype=np.int64),
        boxes=np.hstack([corner, corner + rng.uniform(1, 20, (n, 2))]).astype(np.float32),
        labels=np.array([f"label {i}" for i in range(n)], np.str_),
        rotated=rng.uniform(1, 90, (n, 5)).astype(np.float32) if kind == "rotated" else None,
        points=rng.uniform(0, 64, (n, points, 3)).astype(np.float32) if kind == "points" else None,
    )
    plan = Plan(table, np.full((len(counts), 2), 64, np.int64), {}, 0, 0, 0, table_sha256=table_sha256(table))
    row = (points, 8) if kind == "points" else (8, *bins)
    filled = {}
    if kind == "mask":
        filled["coverage"] = rng.uniform(0, 1, (n, *(() if bins == (1, 1) else bins))).astype(np.float32)
    if kind != "points":
        filled["area"] = rng.uniform(0, 900, n).astype(np.float32)
    return Content(kind, plan, {layer: rng.normal(size=(n, *row)).astype(np.float32) for layer in layers}, filled)


def write_content(path: Path, content: Content, *, failed: Sequence[int] = (), **attributes: Any) -> Path:
    """Write a file with all images of the content, of which some fail."""
    layout = content.layout
    create_file(path, content.plan, replace(layout, attributes=layout.attributes | attributes))
    with open_writer(path) as writer:
        for image in range(content.plan.images):
            write_image(writer, content, image, failed=image in failed)
    return path


def write_image(writer: FeatureWriter, content: Content, image: int, *, failed: bool = False) -> None:
    """Write what a run computes of an image."""
    rows = content.plan.table.rows_of(image)
    writer.begin(image)
    if failed:
        writer.failed(image, "no image")
        return
    for name, values in content.filled.items():
        writer.rows(name, rows.start, values[rows])
    for layer, values in content.layers.items():
        writer.features(features_path(layer, len(content.layers)), image, rows.start, values[rows])
    writer.done(image)


def write_shards(folder: Path, content: Content, count: int = 2) -> list[Path]:
    """Write the content as shards."""
    whole, paths, first = split_plan(content.plan, count, None), [], 0
    for number in range(1, count + 1):
        plan, attributes = shard_plan(whole, number)
        part = replace(content, plan=plan, **content.part(first, first + plan.rows))
        first += plan.rows
        about = {**attributes, "table_sha256": content.plan.table_sha256}
        paths.append(write_content(folder / f"f-{number:04}-of-{count:04}.h5", part, **about))
    return paths
