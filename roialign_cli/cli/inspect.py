"""`roialign inspect`: what a feature file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    file: Annotated[Path, typer.Argument(help="Feature file.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Show a feature file: datasets with shapes, what made it, how far it is.

    Example: roialign inspect features.h5
    """
    import numpy as np
    from rich.tree import Tree

    from roialign_cli.cli.console import human_bytes, pairs, print_json, stdout
    from roialign_cli.store import FeatureFile
    from roialign_cli.store.schema import STATUS_NAMES

    with FeatureFile(file) as features:
        counts = np.bincount(features.status, minlength=len(STATUS_NAMES))
        status = {name: int(count) for name, count in zip(STATUS_NAMES, counts, strict=False)}
        if json:
            datasets = {
                name: {"shape": place.shape, "dtype": str(place.dtype), "offset": place.offset}
                for name, place in features.places.items()
            }
            print_json(
                {"attributes": features.attributes, "datasets": datasets, "status": status, "errors": features.errors}
            )
            return
        tree = Tree(str(file), highlight=False)
        groups = {"": tree}
        for name, place in features.places.items():
            group, _, leaf = name.rpartition("/")
            if group not in groups:
                groups[group] = tree.add(group)
            kind = f"utf-8, {place.dtype.itemsize} bytes" if place.dtype.kind == "S" else str(place.dtype)
            size = human_bytes(place.row_bytes * (place.shape[0] if place.shape else 1))
            groups[group].add(f"{leaf}  {list(place.shape)}  {kind}  {size}".replace("[", r"\["))
        stdout.print(tree, highlight=False)
        shown = [(name, str(value)) for name, value in sorted(features.attributes.items())]
        stdout.print(pairs("", shown), highlight=False, markup=False)
        stdout.print(
            pairs("", [("images", ", ".join(f"{count} {name}" for name, count in status.items()))]), highlight=False
        )
        for name, reason in features.errors.items():
            stdout.print(f'failed: "{name}": {reason}', highlight=False, markup=False)
