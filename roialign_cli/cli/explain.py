"""`roialign explain`: show the arithmetic of one RoI, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roialign_cli.cli.explain_regions import explain_region

if TYPE_CHECKING:
    from roialign_cli.ops.explain import Explanation


def explain(
    roi: Annotated[
        str,
        typer.Argument(
            help="x1,y1,x2,y2 in pixels of the image; of a rotated box: centre x, centre y, width, height, angle.",
            show_default="0.8,0,2.4,4.5",
        ),
    ] = "",
    output_size: Annotated[str, typer.Option(help="Bins: 2 or 2x3 (height x width).")] = "2",
    spatial_scale: Annotated[float, typer.Option(help="Map cells per image pixel: 1 / stride.")] = 1.0,
    sampling_ratio: Annotated[int, typer.Option(help="Samples per bin and axis; 0: adaptive.")] = 0,
    aligned: Annotated[bool, typer.Option("--aligned/--no-aligned", help="Shift by half a cell.")] = False,
    region: Annotated[str, typer.Option(help="What is pooled: box, rotated or mask.")] = "box",
    polygon: Annotated[
        str, typer.Option(help="Mask in the box: x1,y1,x2,y2,x3,y3,...", show_default="1,1,7,1,7,5")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Picture to write, such as explain.png.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Work out one RoI by hand: mapping, bins, samples, one bilinear lookup, the averages.

    The map is made up: the cell in column x and row y holds 10 y + x.

    Example: roialign explain 0.8,0,2.4,4.5 --output-size 2 --no-aligned -o explain.png

    Example: roialign explain 6,4,8,4,30 --region rotated
    """
    from roialign_cli.config import load, require_one_size
    from roialign_cli.errors import ConfigError

    settings = load(
        None, {"output_size": output_size, "sampling_ratio": sampling_ratio, "aligned": aligned, "region": region}
    )
    require_one_size(settings, "explain")
    if not 0 < spatial_scale <= 1024:
        raise ConfigError("config-value", f"spatial_scale: expected a number above 0, found {spatial_scale}")
    if region != "box":
        if region == "points":
            raise ConfigError("config-value", f"region: expected box, rotated or mask to explain, found {region!r}")
        explain_region(settings, roi, polygon, spatial_scale, output, json=json)
        return
    from roialign_cli.ops.explain import EXAMPLE, parse_roi
    from roialign_cli.ops.explain import explain as run

    size, ratio = settings.output_size, settings.sampling_ratio
    explanation = run(parse_roi(roi or EXAMPLE), size, spatial_scale, ratio, aligned)
    if output is not None:
        from roialign_cli.figures.panels import draw_panels
        from roialign_cli.figures.style import save

        save(draw_panels(explanation), output)
    if json:
        _print_json(explanation)
    else:
        _print_steps(explanation)


def _print_json(explanation: Explanation) -> None:
    """Print every number as JSON, with the samples of each bin."""
    from dataclasses import asdict

    from roialign_cli.cli.console import print_json

    facts = asdict(explanation)
    bins = [(p, q) for p in range(explanation.y.bins) for q in range(explanation.x.bins)]
    samples = {f"{p},{q}": explanation.samples(p, q) for p, q in bins}
    print_json(
        {**facts, "features": explanation.features.tolist(), "pooled": explanation.pooled.tolist(), "samples": samples}
    )


def _print_steps(explanation: Explanation) -> None:
    """Print each step with its numbers."""
    from rich.table import Table

    from roialign_cli.cli.console import stdout

    def say(text: str = "", style: str | None = None) -> None:
        stdout.print(text, style=style, highlight=False)

    scale, shift = f"{explanation.spatial_scale:g}", " - 0.5" if explanation.aligned else ""
    say("1  mapping: image pixels to map cells" + (", minus half a cell" if explanation.aligned else ""), "bold")
    for name, axis, low, high in (
        ("x", explanation.x, explanation.roi[0], explanation.roi[2]),
        ("y", explanation.y, explanation.roi[1], explanation.roi[3]),
    ):
        end = high * explanation.spatial_scale - (0.5 if explanation.aligned else 0.0)
        say(f"   {name}: {low:g} * {scale}{shift} = {axis.start:g}   to   {high:g} * {scale}{shift} = {end:g}")
        if axis.bins * axis.bin > end - axis.start + 1e-9:
            say("      less than a cell: counts as 1, since not aligned")
    say("\n2  bins: the extent divided by their number", "bold")
    for name, axis in (("x", explanation.x), ("y", explanation.y)):
        say(f"   {name}: {axis.bins * axis.bin:.6g} / {axis.bins} = {axis.bin:.6g}")
    say("\n3  samples: on a regular grid in each bin", "bold")
    for name, axis in (("x", explanation.x), ("y", explanation.y)):
        rule = f"ceil({axis.bin:.6g})" if explanation.sampling_ratio == 0 else "sampling ratio"
        say(f"   {name}: {rule} = {axis.grid}")
    points = explanation.samples(0, 0)
    shown = ", ".join(f"({x:.6g}, {y:.6g})" for x, y in points[:6]) + (", ..." if len(points) > 6 else "")
    say(f"   in the top-left bin, {explanation.y.grid} x {explanation.x.grid}, as (x, y): {shown or 'none'}")
    say("\n4  bilinear lookup of the first sample", "bold")
    look = explanation.lookup
    if look is None:
        say("   no samples: the RoI has no area, so its features are 0")
    elif look.clamped is None:
        say("   more than one cell outside the map: counts as 0")
    else:
        table = Table("cell (x, y)", "value", "weight", "product", box=None, padding=(0, 2, 0, 1))
        for cell, weight, value in zip(look.cells, look.weights, look.values, strict=True):
            table.add_row(f"{cell}", f"{value:g}", f"{weight:.6g}", f"{value * weight:.6g}")
        stdout.print(table, highlight=False)
        say(f"   sum: {look.value:.6g}")
    say("\n5  pooled: the mean over the samples of each bin", "bold")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    for row in explanation.pooled:
        table.add_row(*(f"{value:.6g}" for value in row))
    stdout.print(table, highlight=False)
