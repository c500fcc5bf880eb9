"""`roialign inspect`: show what a feature file holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roialign_cli.cli.options import AllowLinks, AsJson, FeatureFilePath
from roialign_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from roialign_cli.store import FeatureFile
    from roialign_cli.store.statistics import ValueStatistics
    from roialign_cli.store.summary import FileSummary, ImageSummary

MAX_SUGGESTED_NAMES = 10_000


def inspect(
    file: FeatureFilePath,
    image: Annotated[
        str | None, typer.Option(help="Show only this image: its boxes and values.", show_default=False)
    ] = None,
    allow_links: AllowLinks = False,
    json: AsJson = False,
) -> None:
    """Show a feature file: datasets with shapes, what made it, how far it is, and what values it holds.

    Example: roialign inspect features.h5
    """
    from roialign_cli.cli.console import print_json
    from roialign_cli.store import FeatureFile
    from roialign_cli.store.summary import summarise_file, summarise_image

    with FeatureFile(file, allow_links=allow_links) as features:
        if image is not None:
            _check_image(features, image)
            regions = summarise_image(features, image)
            if json:
                facts = asdict(regions)
                columns = facts.pop("columns")
                print_json({key: facts[key] for key in ("name", "size", "boxes")} | columns
                           | {key: facts[key] for key in ("features", "norms")})  # fmt: skip
            else:
                _print_image(regions)
            return
        summary = summarise_file(features)
        if json:
            datasets = {
                name: {"shape": extent.shape, "dtype": str(extent.dtype), "offset": extent.offset}
                for name, extent in features.extents.items()
            }
            print_json({
                "attributes": features.attributes, "datasets": datasets, "status": summary.status,
                "errors": features.errors, "notes": features.notes,
                "values": {layer: found and asdict(found) for layer, found in summary.values.items()},
            })  # fmt: skip
        else:
            _print_datasets(features)
            _print_summary(features, summary)


def _print_datasets(features: FeatureFile) -> None:
    """Print the datasets as a tree, each with its shape, type and size."""
    from rich.tree import Tree

    from roialign_cli.cli.console import human_bytes, stdout

    tree = Tree(str(features.path), highlight=False)
    groups = {"": tree}
    for name, extent in features.extents.items():
        group, _, leaf = name.rpartition("/")
        if group not in groups:
            groups[group] = tree.add(group)
        kind = f"utf-8, {extent.dtype.itemsize} bytes" if extent.dtype.kind == "S" else str(extent.dtype)
        size = human_bytes(extent.row_bytes * (extent.shape[0] if extent.shape else 1))
        groups[group].add(f"{leaf}  {list(extent.shape)}  {kind}  {size}")
    stdout.print(tree, highlight=False)


def _print_summary(features: FeatureFile, summary: FileSummary) -> None:
    """Print attributes, statuses, statistics of values, failures and notes."""
    from roialign_cli.cli.console import key_value_table, stdout

    attributes = [(name, str(value)) for name, value in sorted(features.attributes.items())]
    stdout.print(key_value_table("", attributes), highlight=False)
    status = ", ".join(f"{count} {name}" for name, count in summary.status.items())
    stdout.print(key_value_table("", [("images", status)]), highlight=False)
    for layer, found in summary.values.items():
        if found is not None:
            text = ", ".join(_describe(found))
            row = (f"values of {layer}", f"{text} ({found.rows} boxes)")
            stdout.print(key_value_table("", [row]), highlight=False)
    for name, reason in features.errors.items():
        stdout.print(f'failed: "{name}": {reason}', highlight=False)
    for name, note in features.notes.items():
        stdout.print(f'note: "{name}": {note}', highlight=False)


def _describe(found: ValueStatistics) -> Iterator[str]:
    """Yield what is known about the values of a layer."""
    if found.mean is not None:
        yield f"{found.least:.4g} to {found.greatest:.4g}, mean {found.mean:.4g}, {found.zeros:.1%} zero"
    if found.not_finite:
        yield f"{found.not_finite} not finite"


def _check_image(features: FeatureFile, name: str) -> None:
    """Raise InputError if the file has no image of this name."""
    if name not in features:
        from roialign_cli.config import suggest

        message = f'{features.path}: expected the name of an image in it, found "{name}"'
        raise InputError("image-unknown", message, suggest(name, features.names[:MAX_SUGGESTED_NAMES]))


def _print_image(regions: ImageSummary) -> None:
    """Print a row per box of an image."""
    from rich.table import Table

    from roialign_cli.cli.console import stdout

    height, width = regions.size
    norms = [f"norm of {layer}" for layer in regions.norms]
    table = Table("box", "x1, y1, x2, y2", *regions.columns, *norms, box=None, title_justify="left")
    table.title = f"{regions.name}: {width} x {height} pixels"
    for i, box in enumerate(regions.boxes):
        cells = [_cell(name, column[i]) for name, column in regions.columns.items()]
        cells += [f"{of_layer[i]:.4g}" for of_layer in regions.norms.values()]
        table.add_row(str(i), ", ".join(f"{value:g}" for value in box), *cells)
    stdout.print(table, highlight=False)


def _cell(name: str, value: Any) -> str:
    """Return one value of a column; of the coverage of many bins its range, as --json has all of them."""
    if not isinstance(value, list):
        return f"{value:.7g}" if isinstance(value, float) else str(value)
    if name == "coverage":
        shares = [share for row in value for share in row]
        return f"{min(shares):.3g} to {max(shares):.3g}"
    if isinstance(value[0], list):
        return "; ".join(_cell(name, one) for one in value)
    return ", ".join(f"{number:.7g}" for number in value)
