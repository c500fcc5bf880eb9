"""Write an ablation: ablation.csv, ablation.json, report.html and its plots; each file is replaced whole."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

from roialign_cli.ablation.report.page import render
from roialign_cli.ablation.report.plots import draw, picture
from roialign_cli.ablation.run import Ablation
from roialign_cli.errors import OutputError
from roialign_cli.system.atomic import partial_path, publish

FACTS, PAGE = "ablation.json", "report.html"


def write_tables(ablation: Ablation, folder: Path) -> None:
    """The table and all facts: what is known so far, readable at any time, also after a kill."""
    if ablation.rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(ablation.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(ablation.rows)
        _replace(folder / TABLE, text.getvalue().encode())
    _replace(folder / FACTS, (json.dumps(asdict(ablation), indent=1) + "\n").encode())


def write_report(ablation: Ablation, folder: Path) -> None:
    """The page, and every plot as PNG and SVG."""
    plots = draw(ablation.rows)
    for name, figure in plots.items():
        _replace(folder / f"{name}.png", picture(figure, "png"))
        _replace(folder / f"{name}.svg", picture(figure, "svg"))
    page = render(ablation, plots).encode("utf-8", "backslashreplace")  # names of files may be no text
    _replace(folder / PAGE, page)


def _replace(path: Path, content: bytes) -> None:
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        publish(partial, path)
    except OSError as error:
        raise OutputError("output-write", f"{path}: cannot be written: {error.strerror}") from None


TABLE = "ablation.csv"  # by which a folder is known to hold an ablation


def open_folder(folder: Path, *, overwrite: bool) -> None:
    """Make the folder of an ablation, or OutputError: it cannot be made, or one is in it already."""
    if (folder / TABLE).exists() and not overwrite:
        message = f"{folder}: expected a folder without an ablation, found {TABLE}"
        raise OutputError("output-exists", message, "choose another -o, or --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("output-folder", f"{folder}: cannot be created: {error.strerror}") from None
