"""`roialign inspect`: what a feature file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roialign_cli.cli.options import AllowLinks, AsJson
from roialign_cli.errors import InputError

if TYPE_CHECKING:
    from roialign_cli.store import FeatureFile


def inspect(
    file: Annotated[Path, typer.Argument(help="Feature file.", show_default=False)],
    image: Annotated[
        str | None, typer.Option(help="Only this image: its boxes and values.", show_default=False)
    ] = None,
    allow_links: AllowLinks = False,
    json: AsJson = False,
) -> None:
    """Show a feature file: datasets with shapes, what made it, how far it is, and what values it holds.

    Example: roialign inspect features.h5
    """
    import numpy as np
    from rich.tree import Tree

    from roialign_cli.cli.console import human_bytes, key_value_table, print_json, stdout
    from roialign_cli.store import FeatureFile
    from roialign_cli.store.schema import STATUS_NAMES
    from roialign_cli.store.statistics import sample_statistics

    with FeatureFile(file, allow_links=allow_links) as features:
        if image is not None:
            _tell_image(features, image, as_json=json)
            return
        sampled = {layer: sample_statistics(features, layer) for layer in features.layers}
        counts = np.bincount(features.status, minlength=len(STATUS_NAMES))
        status = {name: int(count) for name, count in zip(STATUS_NAMES, counts, strict=False)}
        if json:
            datasets = {
                name: {"shape": place.shape, "dtype": str(place.dtype), "offset": place.offset}
                for name, place in features.extents.items()
            }
            print_json({
                "attributes": features.attributes, "datasets": datasets, "status": status, "errors": features.errors,
                "notes": features.notes,
                "values": {layer: found and asdict(found) for layer, found in sampled.items()},
            })  # fmt: skip
            return
        tree = Tree(str(file), highlight=False)
        groups = {"": tree}
        for name, place in features.extents.items():
            group, _, leaf = name.rpartition("/")
            if group not in groups:
                groups[group] = tree.add(group)
            kind = f"utf-8, {place.dtype.itemsize} bytes" if place.dtype.kind == "S" else str(place.dtype)
            size = human_bytes(place.row_bytes * (place.shape[0] if place.shape else 1))
            groups[group].add(f"{leaf}  {list(place.shape)}  {kind}  {size}".replace("[", r"\["))
        stdout.print(tree, highlight=False)
        shown = [(name, str(value)) for name, value in sorted(features.attributes.items())]
        stdout.print(key_value_table("", shown), highlight=False, markup=False)
        stdout.print(
            key_value_table("", [("images", ", ".join(f"{count} {name}" for name, count in status.items()))]),
            highlight=False,
        )
        for layer, found in sampled.items():
            if found is not None:
                text = f"{found.least:.4g} to {found.greatest:.4g}, mean {found.mean:.4g}, {found.zeros:.1%} zero"
                text += f", {found.not_finite} not finite" if found.not_finite else ""
                stdout.print(
                    key_value_table("", [(f"values of {layer}", f"{text} ({found.rows} boxes)")]), highlight=False
                )
        for name, reason in features.errors.items():
            stdout.print(f'failed: "{name}": {reason}', highlight=False, markup=False)
        for name, note in features.notes.items():
            stdout.print(f'note: "{name}": {note}', highlight=False, markup=False)


def _tell_image(features: FeatureFile, name: str, *, as_json: bool) -> None:
    """A row per box."""
    import numpy as np
    from rich.table import Table

    from roialign_cli.cli.console import print_json, stdout

    if name not in features:
        from roialign_cli.config import suggest

        message = f'{features.path}: expected the name of an image in it, found "{name}"'
        raise InputError("image-unknown", message, suggest(name, features.names[:10000]))
    regions = features[name]
    layers = regions.features if isinstance(regions.features, Mapping) else {features.layers[0]: regions.features}
    columns = {key: getattr(regions, key) for key in ("labels", "scores", "ids", "levels")}
    there = {key[:-1]: column.tolist() for key, column in columns.items() if column is not None}
    norms = {
        layer: np.linalg.norm(np.array(found, np.float64).reshape(len(found), -1), axis=1).tolist()
        if len(found)
        else []
        for layer, found in layers.items()
    }
    if as_json:
        shapes = {layer: list(found.shape) for layer, found in layers.items()}
        boxes = regions.boxes.tolist()
        print_json({"name": name, "size": regions.size, "boxes": boxes, **there, "features": shapes, "norms": norms})
        return
    height, width = regions.size
    table = Table(
        "box", "x1, y1, x2, y2", *there, *(f"norm of {layer}" for layer in layers), box=None, title_justify="left"
    )
    table.title = f"{name}: {width} x {height} pixels"
    for i, box in enumerate(regions.boxes.tolist()):
        cells = [str(column[i]) for column in there.values()] + [f"{norms[layer][i]:.4g}" for layer in layers]
        table.add_row(str(i), ", ".join(f"{value:g}" for value in box), *cells)
    stdout.print(table, highlight=False, markup=False)
