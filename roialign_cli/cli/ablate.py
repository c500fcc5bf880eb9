"""`roialign ablate`: which RoI Align setting to take, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roialign_cli import config as configuration
from roialign_cli.cli import options
from roialign_cli.cli.options import option
from roialign_cli.cli.settings import takes_settings
from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from roialign_cli.ablation.run import Ablation
    from roialign_cli.ablation.summary import Row

VARY, VARIED = "vary", "What is varied"
TOLERANCE = 0.01
SHOWN = {  # column: (title on the terminal, format); the files have all columns
    "error_mean": ("error", "{:.3%}"),
    "error_p95": ("95th", "{:.2%}"),
    "alignment_px_mean": ("align px", "{:.3f}"),
    "offset_px_median": ("offset px", "{:+.2f}"),
    "samples_per_bin_mean": ("samples", "{:.1f}"),
    "ms_per_1000": ("ms/1000", "{:.1f}"),
    "probe_accuracy": ("probe", "{:.1%}"),
}

HIDDEN_FIRST = (  # columns that a narrow terminal has no room for, in this order; the last is never hidden
    "error_p95", "samples_per_bin_mean", "offset_px_median", "alignment_px_mean", "probe_accuracy", "ms_per_1000", "error_mean",
)  # fmt: skip


@takes_settings(
    "config", "backbone", "weights", "layers", "resize", "decoder", "precision", "compile",
    "region_missing", "output_size", "sampling_ratio", "aligned", "mode", "clip", "kernel", "dtype", "device", "workers",
    "boxes_format", "box_units", "columns", "allow_outside", "classes", "images_json", "voc_origin",
    "labels", "min_score", "min_size", "max_boxes", "crowd", "whole_image", "grid",
    "max_pixels", "image_timeout", "on_error",
    others=frozenset({VARY}),
)  # fmt: skip
def ablate(
    images: options.Images,
    boxes: options.Boxes = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for tables and report.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    vary: Annotated[
        list[str] | None,
        option(
            "NAME=VALUE,VALUE,...; give it several times for a grid. Names: sampling-ratio, output-size, aligned, "
            "centers, mode, region, op (roi_align, roi_pool).",
            default="sampling-ratio=0,1,2,4,8",
            panel=VARIED,
        ),
    ] = None,
    region: Annotated[
        str | None,
        option("What is pooled: box, rotated or mask; box,mask compares them.", default="box", panel=VARIED),
    ] = None,
    tolerance: Annotated[
        float, option("Mean error that the recommended setting may have.", default=f"{TOLERANCE:.0%}", panel=VARIED)
    ] = TOLERANCE,
    probe: Annotated[
        str | None,
        option(
            "`label`: also measure how well the nearest centroid tells the labels of boxes apart, leave-one-out.",
            panel=VARIED,
        ),
    ] = None,
    save_features: Annotated[
        bool, option("Also write a feature file per setting.", "--save-features", panel=VARIED)
    ] = False,
    *,
    config: str | None = None,
    settings: Settings,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Compare RoI Align settings on your boxes: one backbone pass, each setting against the exact integral.

    Writes ablation.csv, ablation.json, report.html and its plots, and recommends the fastest setting within the tolerance.
    If it is interrupted, the tables keep what was measured.

    Example: roialign ablate images/ boxes.json -o ablation/ --vary sampling-ratio=0,1,2,4 --vary output-size=7,14
    """
    from roialign_cli.ablation.grid import DEFAULT, make_grid, parse_vary

    varied = parse_vary(vary) if vary else _from_file(config)
    if region is not None:
        varied = {**(varied or DEFAULT), **parse_vary([f"region={region}"])}
    variants = make_grid(settings, varied)
    if probe not in (None, "label", "labels"):
        raise ConfigError("config-value", f"probe: expected label, found {probe!r}")
    if not 0 < tolerance < 1:
        raise ConfigError("config-value", f"tolerance: expected a share such as 0.01, found {tolerance}")
    from roialign_cli.ablation.report.write import open_folder

    if save_features and any(variant.settings.region != "box" for variant in variants):
        raise ConfigError("config-value", "save_features: expected region box alone beside it, found another region")
    open_folder(output, overwrite=overwrite)
    from dataclasses import asdict

    from roialign_cli.ablation.report.write import write_report, write_tables
    from roialign_cli.ablation.run import ablate as run
    from roialign_cli.cli.console import print_json
    from roialign_cli.cli.progress import show_progress, stop_on_interrupt
    from roialign_cli.inputs.images import limit_pixels, open_images

    with stop_on_interrupt("the tables keep what is measured") as should_stop, limit_pixels(settings.max_pixels):
        with show_progress("measuring") as progress:
            result = run(
                open_images(images, boxes), boxes, settings, variants, tolerance=tolerance, probe=probe is not None,
                save=(lambda variant: output / f"{variant.name}.h5") if save_features else None,
                on_progress=progress, on_checkpoint=lambda so_far: write_tables(so_far, output), should_stop=should_stop,
            )  # fmt: skip
        write_tables(result, output)
        write_report(result, output)
    if json:
        print_json(asdict(result))
    else:
        _print_result(result, output)
    if not result.finished:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if result.failures:
        raise typer.Exit(ExitCode.IMAGES_FAILED)


def _from_file(config: str | None) -> Any:
    """Return what a configuration says is varied."""
    varied = configuration.read(config).get(VARY, {}) if config else {}
    if not isinstance(varied, dict):
        raise ConfigError("config-value", f"{config}: vary: expected lines `name: [value, value]`, found {varied!r}")
    return varied


def _print_result(result: Ablation, folder: Path) -> None:
    """Print a row per setting, what is recommended, and what failed."""
    from rich.measure import Measurement

    from roialign_cli.cli.console import PIPE_WIDTH, pluralise, print_failures, stderr, stdout

    best = {choice.setting for choice in result.recommendations}
    rows = [row for row in result.rows if row["class"] == "all"]
    columns = {name: form for name, form in SHOWN.items() if any(row[name] is not None for row in rows)}
    if all(row["aligned"] for row in rows) and len({row["centers"] for row in rows}) == 1:
        columns.pop("offset_px_median", None)  # it is zero then
    shown = dict(columns)
    table = _table(rows, shown, best)
    hidden: list[str] = []
    unlimited = stdout.options.update(width=PIPE_WIDTH)
    while Measurement.get(stdout, unlimited, table).maximum > stdout.width and len(shown) > 1:
        hidden.append(next(name for name in HIDDEN_FIRST if name in shown))
        del shown[hidden[-1]]
        table = _table(rows, shown, best)
    stdout.print(table, highlight=False)
    if hidden:
        stdout.print(f"not shown: {', '.join(columns[name][0] for name in hidden)}; see ablation.csv", highlight=False)
    for choice in result.recommendations:
        stdout.print(f"\n{choice.geometry}: take {choice.label}", style="bold", highlight=False)
        stdout.print(f"  {choice.reason}", highlight=False)
    if result.background is not None:
        mixed = ", ".join(f"{_percent(value)} on {layer}" for layer, value in result.background.distance.items())
        kind = "mask" if result.background.region == "mask" else "rotated box"
        outside = f"{_percent(result.background.outside)} of a box lies outside of its {kind}"
        stdout.print(f"\nbackground: {outside}, on average", highlight=False)
        stdout.print(f"  exact features of the box differ from those of the {kind} by {mixed}", highlight=False)
    if result.probe:
        probed = f"{result.probe['boxes']} boxes in {result.probe['classes']} classes"
        stdout.print(f"\nprobe: {probed}; always the commonest: {result.probe['chance']:.1%}", highlight=False)
    if not result.finished:
        stdout.print(f"\ninterrupted after {result.images} of {result.total_images} images", highlight=False)
    stdout.print(f"\n{pluralise(result.images, 'image')} measured; {folder / 'report.html'}", highlight=False)
    if result.value_report:
        stderr.print(f"warning: the features saved have {result.value_report}", highlight=False)
    print_failures(result.failures, "ablation.json lists all")


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{share:.0%}"


def _table(rows: list[Row], columns: dict[str, tuple[str, str]], best: set[str | None]) -> Table:
    """Return a table with a line per setting of each layer."""
    from rich.table import Table

    from roialign_cli.ablation.summary import setting_label

    table = Table("setting", box=None, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for title, _ in columns.values():
        table.add_column(title, justify="right", no_wrap=True)
    layers = dict.fromkeys(row["layer"] for row in rows)
    for layer in layers:
        if len(layers) > 1:
            table.add_row(layer, style="cyan")
        for row in (row for row in rows if row["layer"] == layer):
            cells = ["-" if row[name] is None else form.format(row[name]) for name, (_, form) in columns.items()]
            table.add_row(setting_label(row), *cells, style="bold green" if row["setting"] in best else None)
    return table
