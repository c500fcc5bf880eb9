"""Render report.html, one page that needs no other file and no network; names and labels are escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from roialign_cli.ablation.report.plots import picture
from roialign_cli.ablation.run import Ablation
from roialign_cli.ablation.summary import Row, setting_label

TITLES = {
    "error_by_ratio": "Error against the sampling ratio",
    "time_by_ratio": "Time against the sampling ratio",
    "error_by_class": "Error by class of boxes",
    "alignment": "How far features miss a shift of half a pixel",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #ffffff; --mark: #ddf4e4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b3; --line: #3d444d; --paper: #0d1117; --mark: #12361f; }
}
body { margin: 0 auto; padding: 1rem; max-width: 76rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
       background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.875rem; overflow-wrap: normal; }
th, td { padding: 0.3rem 0.5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; } summary { cursor: pointer; padding: 0.3rem 0; }
th:first-child, td:first-child { text-align: left; } tr.best td { background: var(--mark); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } svg { width: 100%; height: auto; max-width: 34rem; } figcaption { font-weight: 600; }
pre { white-space: pre-wrap; font-size: 0.8rem; }
"""
COLUMNS: dict[str, tuple[str, str]] = {
    "boxes": ("boxes", "{:d}"),
    "error_mean": ("error, mean", "{:.3%}"),
    "error_median": ("median", "{:.3%}"),
    "error_p95": ("95th", "{:.3%}"),
    "error_max": ("max", "{:.3%}"),
    "cosine_mean": ("cosine", "{:.5f}"),
    "alignment_px_mean": ("alignment error, px", "{:.3f}"),
    "offset_px_median": ("offset, px", "{:+.2f}"),
    "samples_per_bin_mean": ("samples per bin", "{:.1f}"),
    "ms_per_1000": ("ms per 1000 boxes", "{:.2f}"),
    "bytes_per_box": ("bytes per box", "{:,d}"),
    "probe_accuracy": ("probe accuracy", "{:.1%}"),
}


def render(ablation: Ablation, plots: Mapping[str, Mapping[str, Figure]]) -> str:
    """Return the page of an ablation with the plots of each layer, by layer and name."""
    made = ablation.provenance
    best = {choice.setting for choice in ablation.recommendations}
    counted = f"{ablation.images} of {ablation.total_images} images measured, {len(ablation.failures)} failed"
    body = [
        f"<h1>RoI Align ablation: {escape(str(made['backbone']))}</h1>",
        f'<p class="soft">{counted}; {escape(str(made["created"]))}, {escape(str(made["created_by"]))}</p>',
        "" if ablation.finished else "<p><strong>Interrupted: the figures cover the images so far.</strong></p>",
        "<h2>Recommended</h2>",
        *(
            f"<p><strong>{escape(choice.geometry)}: {escape(choice.label)}</strong><br>{escape(choice.reason)}</p>"
            for choice in ablation.recommendations
        ),
        f'<p class="soft">The fastest whose mean error is at most {ablation.tolerance:.2%} of the exact integral. '
        "Of several layers, the largest error and the sum of the times count.</p>",
        f"<h2>Plots</h2>{_plots(plots)}<h2>All boxes</h2>",
        _tables([row for row in ablation.rows if row["class"] == "all"], best),
        _probe(ablation.probe),
        "<h2>By class</h2><p class='soft'>Sizes are COCO's: small under 32 x 32 pixels, large from 96 x 96 on.</p>",
        *(
            f"<details><summary>{escape(name)}</summary>"
            f"{_tables([row for row in ablation.rows if row['class'] == name], best)}</details>"
            for name in dict.fromkeys(row["class"] for row in ablation.rows if row["class"] != "all" and row["boxes"])
        ),
        "<h2>How to read it</h2>",
        "<p>Error: the distance of a box's features from the exact integral over its bins, relative to their length; the "
        "same geometry on both sides; maxima approximate no integral and have none. Alignment error: boxes are moved by "
        "half a pixel; how many pixels the change of the features misses that by. "
        "Offset: how far right and down of the box the features lie, "
        "against aligned exact ones, to first order. Times are of this machine, on its maps.</p>",
        f"<h2>What made it</h2><pre>{escape(json.dumps(made, indent=1))}</pre>",
        *_failures(ablation.failures),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    icon = '<link rel="icon" href="data:,">'  # so that browsers do not request one
    title = f"<title>RoI Align ablation: {escape(str(made['backbone']))}</title>"
    content = "\n".join(part for part in body if part)
    opening = f'<!doctype html>\n<html lang="en"><head>{head}{icon}{title}<style>{STYLE}</style></head>'
    return f"{opening}\n<body>{content}</body></html>\n"


def _plots(plots: Mapping[str, Mapping[str, Figure]]) -> str:
    """Return the plots of every layer; with several, a button for each shows those of its layer."""
    buttons, groups = [], []
    for number, (layer, figures) in enumerate(plots.items()):
        checked = " checked" if number == 0 else ""
        buttons.append(f"<label><input type='radio' name='layer' value='{number}'{checked}> {escape(layer)}</label>")
        inside = "".join(
            f"<figure><figcaption>{TITLES[name]}</figcaption>{_inline(figure)}</figure>"
            for name, figure in figures.items()
        )
        groups.append(f"<div class='plots layer-{number}'>{inside}</div>")
    if len(plots) < 2:
        return "".join(groups)
    rules = "".join(
        f".layers:has(input[value='{number}']:not(:checked)) .layer-{number} {{ display: none; }}"
        for number in range(len(plots))
    )
    return f"<style>{rules}</style><div class='layers'><p>Layer: {' '.join(buttons)}</p>{''.join(groups)}</div>"


def _tables(rows: Sequence[Row], best: set[str | None]) -> str:
    """Return a table per layer; columns without any value are left out."""
    found = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        of_layer = [row for row in rows if row["layer"] == layer]
        columns = [name for name in COLUMNS if any(row[name] is not None for row in of_layer)]
        head = "".join(f"<th>{COLUMNS[name][0]}</th>" for name in columns)
        lines = []
        for row in of_layer:
            cells = "".join(f"<td>{_cell(row[name], COLUMNS[name][1])}</td>" for name in columns)
            mark = " class='best'" if row["setting"] in best else ""
            lines.append(f"<tr{mark}><td>{escape(setting_label(row))}</td>{cells}</tr>")
        found.append(f"<div class='wide'><table><tr><th>{escape(layer)}</th>{head}</tr>{''.join(lines)}</table></div>")
    return "".join(found)


def _cell(value: Any, form: str) -> str:
    """Format one value, or a dash."""
    return "–" if value is None else form.format(value)


def _probe(probe: Mapping[str, Any] | None) -> str:
    """Return a line about the probe."""
    if probe is None:
        return ""
    text = (
        f"Probe: leave-one-out nearest centroid of {probe['boxes']} boxes in {probe['classes']} classes; "
        f"always naming the most common one would reach {probe['chance']:.2%}."
    )
    return f'<p class="soft">{text}</p>'


def _failures(failures: Mapping[str, str]) -> list[str]:
    """Return the list of images that failed."""
    if not failures:
        return []
    lines = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in failures.items())
    return [f"<h2>Images that failed</h2><ul>{lines}</ul>"]


def _inline(figure: Figure) -> str:
    """Return the SVG of a plot in the colours of the page: black becomes the ink, the background becomes transparent."""
    text = picture(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<g id="patch_1">\s*<path [^>]*?)style="[^"]*"', r'\1style="fill: none"', text, count=1)
    text = re.sub(r'(<g id="patch_2">\s*<path [^>]*?)style="[^"]*"', r'\1style="fill: none"', text, count=1)
    ids = f"f{id(figure)}-"
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{ids}", text)  # ids must be unique on the page
    text = re.sub(r"(stroke|fill): #000000", r"\1: currentColor", text)
    return re.sub(r"<text (?![^>]*fill)", '<text fill="currentColor" ', text)
