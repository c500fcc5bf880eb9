"""`roialign backbones`: list the backbones, or describe one."""

from __future__ import annotations

from typing import Annotated

import typer


def backbones(
    name: Annotated[str | None, typer.Argument(help="Describe this backbone.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """List backbones, or the layers, channels, strides and weights of one.

    Example: roialign backbones resnet50
    """
    from rich.table import Table
    from rich.text import Text

    from roialign_cli.backbones import available, cached_weights, count_parameters, describe
    from roialign_cli.cli.console import print_json, stdout

    if name is None:
        kinds = available()
        if json:
            print_json(kinds)
            return
        for kind in dict.fromkeys(kinds.values()):
            names = ", ".join(name for name, other in kinds.items() if other == kind)
            stdout.print(Text(kind, "cyan") + Text(f": {names}", "default"), highlight=False)
        return
    layers, weights = describe(name)
    parameters, cached = count_parameters(name), cached_weights(name)
    if json:
        print_json({
            "name": name,
            "layers": {layer: {"channels": c, "stride": s} for layer, (c, s) in layers.items()},
            "weights": weights,
            "cached": cached,
            "parameters": parameters,
        })  # fmt: skip
        return
    is_pyramid = available().get(name) == "detection"
    table = Table("layer", "channels", "stride", box=None, title=name, title_justify="left")
    for layer, (channels, stride) in layers.items():
        shown = f"{layer} or P{stride.bit_length() - 1}" if is_pyramid else layer
        table.add_row(shown, str(channels), str(stride))
    stdout.print(table, highlight=False)
    listed = [f"{entry} (in the cache)" if entry in cached else entry for entry in weights]
    stdout.print(f"parameters: {parameters / 1e6:.1f} million in the whole model", highlight=False)
    stdout.print(f"weights: {', '.join(listed) or 'none needed'}", highlight=False)
