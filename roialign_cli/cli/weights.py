"""`roialign weights`: fetch weights where there is a network, for machines that have none."""

from __future__ import annotations

from typing import Annotated

import typer

weights = typer.Typer(
    help="Weights of torchvision's models.\n\nExample: roialign weights fetch resnet50", no_args_is_help=True
)


@weights.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Backbone, see `roialign backbones`.", show_default=False)],
    weights: Annotated[str, typer.Option(help="DEFAULT or a name that `roialign backbones NAME` lists.")] = "DEFAULT",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Download a model's weights into torch's cache, and print their path.

    On a cluster without a network, fetch the weights elsewhere; then copy the file and pass it as --weights PATH, or set
    TORCH_HOME to a folder that the nodes share.

    Example: roialign weights fetch fasterrcnn_resnet50_fpn
    """
    from roialign_cli.backbones import fetch_weights
    from roialign_cli.cli.console import human_bytes, print_json, stdout

    path, digest = fetch_weights(name, weights)
    if json:
        print_json(
            {"name": name, "weights": weights, "path": str(path), "sha256": digest, "bytes": path.stat().st_size}
        )
    else:
        stdout.print(f"{path}\n{human_bytes(path.stat().st_size)}, SHA-256 {digest}", highlight=False)
