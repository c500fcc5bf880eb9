"""Print the arithmetic of a rotated box and of a mask, for `roialign explain --region`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from roialign_cli.config import Settings

if TYPE_CHECKING:
    from roialign_cli.ops.explain import Lookup
    from roialign_cli.ops.explain_regions import MaskExplanation, RotatedExplanation
    from roialign_cli.ops.reference import Map


def explain_region(
    settings: Settings, roi: str, polygon: str, spatial_scale: float, output: Path | None, *, json: bool
) -> None:
    """Work out one rotated box or one mask, and print each step. Raises ConfigError if the numbers are not right."""
    from roialign_cli.ops.explain import parse_roi
    from roialign_cli.ops.explain_regions import (
        MASK_EXAMPLE,
        ROTATED_EXAMPLE,
        explain_mask,
        explain_rotated,
        parse_numbers,
    )

    size, ratio, aligned = settings.output_size, settings.sampling_ratio, settings.aligned
    explanation: RotatedExplanation | MaskExplanation
    if output is not None:
        from roialign_cli.figures.region_panels import draw_mask_panels, draw_rotated_panels
        from roialign_cli.figures.style import save
    if settings.region == "rotated":
        numbers = parse_numbers("roi", roi or ROTATED_EXAMPLE, 5, ROTATED_EXAMPLE)
        explanation = explain_rotated(numbers, size, spatial_scale, ratio, aligned)
        if output is not None:
            save(draw_rotated_panels(explanation, spatial_scale, settings), output)
    else:
        corners = parse_numbers("polygon", polygon or MASK_EXAMPLE, None, MASK_EXAMPLE)
        box = parse_roi(roi) if roi else (min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2]))
        explanation = explain_mask(box, corners, size, spatial_scale, aligned)
        if output is not None:
            save(draw_mask_panels(explanation), output)
    if json:
        from roialign_cli.cli.console import print_json

        arrays = {name: value.tolist() for name, value in vars(explanation).items() if hasattr(value, "tolist")}
        print_json({**asdict(explanation), **arrays})
    elif settings.region == "rotated":
        _print_rotated(explanation, spatial_scale, ratio, aligned=aligned)  # type: ignore[arg-type]
    else:
        _print_mask(explanation, aligned=aligned)  # type: ignore[arg-type]


def _print_rotated(told: RotatedExplanation, scale: float, ratio: int, *, aligned: bool) -> None:
    x, y, width, height, angle = told.roi
    shift = " - 0.5" if aligned else ""
    _say("1  mapping: image pixels to map cells" + (", minus half a cell" if aligned else ""), "bold")
    for name, value, cells in (("x", x, told.centre[0]), ("y", y, told.centre[1])):
        _say(f"   centre {name}: {value:g} * {scale:g}{shift} = {cells:.6g}")
    for name, value, cells in (("width", width, told.sides[0]), ("height", height, told.sides[1])):
        least = "" if cells == value * scale else ", at least 1, since not aligned"
        _say(f"   {name}: {value:g} * {scale:g} = {value * scale:.6g}{least}")
    _say("\n2  bins: the sides divided by their numbers", "bold")
    rows, columns = told.pooled.shape
    _say(
        f"   {told.sides[0]:.6g} / {columns} = {told.bin[0]:.6g} wide, {told.sides[1]:.6g} / {rows} = {told.bin[1]:.6g} high"
    )
    _say("\n3  samples: on a regular grid in each bin, on the axes of the box", "bold")
    for name, side, count in (("across", told.bin[0], told.grid[0]), ("down", told.bin[1], told.grid[1])):
        _say(f"   {name}: {f'ceil({side:.6g})' if ratio == 0 else 'sampling ratio'} = {count}")
    xx, yy = told.offset
    _say(f"   the first one is (xx, yy) = ({xx:.6g}, {yy:.6g}) from the centre")
    _say(f"\n4  turning by a = {angle:g} degrees, counter-clockwise on the screen", "bold")
    _say(f"   u = yy sin a + xx cos a + centre x = {told.place[0]:.6g}")
    _say(f"   v = yy cos a - xx sin a + centre y = {told.place[1]:.6g}")
    _say("\n5  bilinear lookup of that sample", "bold")
    _print_lookup(told.lookup)
    _say("\n6  pooled: the mean over the samples of each bin", "bold")
    _print_grid(told.pooled)


def _print_mask(told: MaskExplanation, *, aligned: bool) -> None:
    _say("1  mapping: image pixels to map cells" + (", minus half a cell" if aligned else ""), "bold")
    _say("   corners of the mask: " + ", ".join(f"({u:g}, {v:g})" for u, v in told.corners))
    for name, axis in (("x", told.x), ("y", told.y)):
        _say(f"   box along {name}: {axis.start:g} to {axis.start + axis.bins * axis.bin:g}")
    _say("\n2  coverage: the share of each bin that the mask covers", "bold")
    _print_grid(told.coverage)
    _say(
        "\n3  weights: a cell counts by the integral of its hat function over mask and bin, divided by their area",
        "bold",
    )
    if told.first is None:
        _say("   the mask touches no bin, so all features are 0")
    else:
        _say(f"   in row {told.first[0]}, column {told.first[1]}, the first bin that the mask touches:")
        _print_products(told.cells, told.weights, told.values)
    _say("\n4  pooled: the mean over mask and bin; 0 where the mask does not reach", "bold")
    _print_grid(told.pooled)


def _print_lookup(look: Lookup) -> None:
    if look.clamped is None:
        _say("   more than one cell outside the map: counts as 0")
    else:
        _print_products(look.cells, look.weights, look.values)


def _print_products(cells: tuple[tuple[int, int], ...], weights: tuple[float, ...], values: tuple[float, ...]) -> None:
    """Print cells (x, y), their values and weights, the products, and their sum."""
    from rich.table import Table

    from roialign_cli.cli.console import stdout

    table = Table("cell (x, y)", "value", "weight", "product", box=None, padding=(0, 2, 0, 1))
    for cell, weight, value in zip(cells, weights, values, strict=True):
        table.add_row(f"{cell}", f"{value:g}", f"{weight:.6g}", f"{value * weight:.6g}")
    stdout.print(table, highlight=False)
    _say(f"   sum: {sum(w * v for w, v in zip(weights, values, strict=True)):.6g}")


def _print_grid(values: Map) -> None:
    from rich.table import Table

    from roialign_cli.cli.console import stdout

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    for row in values:
        table.add_row(*(f"{value:.6g}" for value in row))
    stdout.print(table, highlight=False)


def _say(text: str, style: str | None = None) -> None:
    from roialign_cli.cli.console import stdout

    stdout.print(text, style=style, highlight=False)
