"""Write an ablation: ablation.csv, ablation.json, report.html and its plots; each file is replaced as a whole."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path

from roialign_cli.ablation.report.page import render
from roialign_cli.ablation.report.plots import draw, picture
from roialign_cli.ablation.run import Ablation
from roialign_cli.errors import OutputError
from roialign_cli.json_output import to_json
from roialign_cli.system.atomic import replace_atomically

FACTS, PAGE = "ablation.json", "report.html"


def write_tables(ablation: Ablation, folder: Path) -> None:
    """Write the table and all facts known so far; both can be read at any time, also after a kill."""
    if ablation.rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(ablation.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(ablation.rows)
        _replace(folder / TABLE, text.getvalue().encode())
    _replace(folder / FACTS, (to_json(asdict(ablation)) + "\n").encode())


def write_report(ablation: Ablation, folder: Path) -> None:
    """Write the page, and every plot as PNG and SVG, with the name of the layer if there are several."""
    best = {choice.setting for choice in ablation.recommendations}
    layers = dict.fromkeys(row["layer"] for row in ablation.rows)
    plots = {layer: draw(ablation.rows, layer, best) for layer in layers}
    for layer, figures in plots.items():
        suffix = f"-{layer.replace('/', '_')}" if len(plots) > 1 else ""
        for name, figure in figures.items():
            _replace(folder / f"{name}{suffix}.png", picture(figure, "png"))
            _replace(folder / f"{name}{suffix}.svg", picture(figure, "svg"))
    page = render(ablation, plots).encode("utf-8", "backslashreplace")  # names of files need not be text
    _replace(folder / PAGE, page)


def _replace(path: Path, content: bytes) -> None:
    """Replace a file as a whole."""
    with replace_atomically(path) as partial:
        partial.write_bytes(content)


TABLE = "ablation.csv"  # a folder that has it holds an ablation


def open_folder(folder: Path, *, overwrite: bool) -> None:
    """Make the folder of an ablation. Raises OutputError if it cannot be made, or if an ablation is in it already."""
    if (folder / TABLE).exists() and not overwrite:
        message = f"{folder}: expected a folder without an ablation, found {TABLE}"
        raise OutputError("output-exists", message, "choose another -o, or --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("output-folder", f"{folder}: cannot be created: {error.strerror}") from None
