"""The command line, one file per command. Nothing here imports torch before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from roialign_cli.cli.ablate import ablate
from roialign_cli.cli.backbones import backbones
from roialign_cli.cli.bench import bench
from roialign_cli.cli.boxes import boxes
from roialign_cli.cli.doctor import doctor
from roialign_cli.cli.explain import explain
from roialign_cli.cli.export import export
from roialign_cli.cli.extract import extract
from roialign_cli.cli.inspect import inspect
from roialign_cli.cli.merge import merge
from roialign_cli.cli.plan import plan
from roialign_cli.cli.settings import with_environment
from roialign_cli.cli.show import show
from roialign_cli.cli.verify import verify
from roialign_cli.cli.weights import weights

app = typer.Typer(
    name="roialign",
    help="RoI-aligned backbone features of your images and boxes, in HDF5.",
    epilog="Example: roialign extract images/ boxes.json -o features.h5",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (extract, ablate, show, explain, boxes, inspect, verify, plan, merge, export, backbones, bench, doctor):
    app.command()(with_environment(command))
app.add_typer(weights, name="weights")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from roialign_cli.version import __version__

        typer.echo(f"roialign {__version__} (torch {version('torch')}, CUDA {_cuda_of_torch() or 'none'})")
        raise typer.Exit


def _cuda_of_torch() -> str:
    """Return the CUDA version that torch was built for, or an empty string, without importing torch, which takes seconds."""
    import re
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    found = re.search(r"^cuda\b.*=\s*'([^']+)'", (Path(spec.origin).parent / "version.py").read_text(), re.MULTILINE)
    return found[1] if found else ""


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors; may be given anywhere.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print errors and --json results only; may be given anywhere.")
    ] = False,
) -> None:
    """RoI-aligned backbone features of your images and boxes, in HDF5."""
