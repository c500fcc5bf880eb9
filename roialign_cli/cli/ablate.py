"""`roialign ablate`: which RoI Align setting, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roialign_cli import config as configuration
from roialign_cli.cli import options
from roialign_cli.cli.extract import SOME_FAILED
from roialign_cli.cli.options import option
from roialign_cli.errors import ConfigError
from roialign_cli.system.signals import INTERRUPTED

if TYPE_CHECKING:
    from roialign_cli.ablation.run import Ablation

VARY, VARIED = "vary", "What is varied"
TOLERANCE = 0.01
SHOWN = {  # on the terminal; the files have all
    "error_mean": ("error", "{:.3%}"),
    "error_p95": ("95th", "{:.2%}"),
    "alignment_px_mean": ("align px", "{:.3f}"),
    "offset_px_median": ("offset px", "{:+.2f}"),
    "samples_per_bin_mean": ("samples", "{:.1f}"),
    "ms_per_1000": ("ms/1000", "{:.1f}"),
    "probe_accuracy": ("probe", "{:.1%}"),
}


def ablate(
    images: options.Images,
    boxes: options.Boxes = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for tables and report.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    vary: Annotated[
        list[str] | None,
        option(
            "NAME=VALUE,VALUE,...; may be given several times, for a grid. Names: sampling-ratio, output-size, aligned, "
            "mode, op (roi_align, roi_pool).",
            default="sampling-ratio=0,1,2,4,8",
            panel=VARIED,
        ),
    ] = None,
    tolerance: Annotated[
        float, option("Mean error that the recommended setting may have.", default=f"{TOLERANCE:.0%}", panel=VARIED)
    ] = TOLERANCE,
    probe: Annotated[
        str | None,
        option(
            "`label`: how well the nearest centroid tells the labels of the boxes apart, leaving each out in turn.",
            panel=VARIED,
        ),
    ] = None,
    save_features: Annotated[
        bool, option("Also write a feature file per setting.", "--save-features", panel=VARIED)
    ] = False,
    config: options.Config = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    layers: options.Layers = None,
    resize: options.Resize = None,
    precision: options.Precision = None,
    compile_: options.Compile = None,
    output_size: options.OutputSize = None,
    sampling_ratio: options.SamplingRatio = None,
    aligned: options.Aligned = None,
    mode: options.Mode = None,
    clip: options.Clip = None,
    kernel: options.Kernel = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    workers: options.Workers = None,
    boxes_format: options.BoxesFormat = None,
    columns: options.Columns = None,
    classes: options.Classes = None,
    images_json: options.ImagesJson = None,
    voc_origin: options.VocOrigin = None,
    labels: options.Labels = None,
    min_score: options.MinScore = None,
    min_size: options.MinSize = None,
    max_boxes: options.MaxBoxes = None,
    crowd: options.Crowd = None,
    whole_image: options.WholeImage = False,
    grid: options.Grid = None,
    max_pixels: options.MaxPixels = None,
    image_timeout: options.ImageTimeout = None,
    on_error: options.OnError = None,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Compare RoI Align settings on your boxes: one backbone pass, each setting against the exact integral.

    Writes ablation.csv, ablation.json, report.html and its plots, and recommends the fastest setting that is close
    enough. Interrupted, it leaves what was measured so far.

    Example: roialign ablate images/ boxes.json -o ablation/ --vary sampling-ratio=0,1,2,4 --vary output-size=7,14
    """
    given = options.settings_given(locals())
    from roialign_cli.ablation.grid import make_grid, parse_vary

    settings = configuration.load(config, given, others=frozenset({VARY}))
    varied = parse_vary(vary) if vary else _from_file(config)
    variants = make_grid(settings, varied)
    if probe not in (None, "label", "labels"):
        raise ConfigError("config-value", f"probe: expected label, found {probe!r}")
    if not 0 < tolerance < 1:
        raise ConfigError("config-value", f"tolerance: expected a share such as 0.01, found {tolerance}")
    from roialign_cli.ablation.report.write import open_folder

    open_folder(output, overwrite=overwrite)
    from dataclasses import asdict

    from roialign_cli.ablation.report.write import write_report, write_tables
    from roialign_cli.ablation.run import ablate as run
    from roialign_cli.cli.console import print_json
    from roialign_cli.cli.progress import show_progress, stop_on_interrupt
    from roialign_cli.inputs.images import limit_pixels

    with stop_on_interrupt("the tables keep what is measured") as should_stop, limit_pixels(settings.max_pixels):
        with show_progress("measuring") as progress:
            result = run(
                images, boxes, settings, variants, tolerance=tolerance, probe=probe is not None,
                save=(lambda variant: output / f"{variant.name}.h5") if save_features else None,
                on_progress=progress, on_checkpoint=lambda so_far: write_tables(so_far, output), should_stop=should_stop,
            )  # fmt: skip
        write_tables(result, output)
        write_report(result, output)
    if json:
        print_json(asdict(result))
    else:
        _tell(result, output)
    if not result.finished:
        raise typer.Exit(INTERRUPTED)
    if result.failures:
        raise typer.Exit(SOME_FAILED)


def _from_file(config: str | None) -> Any:
    """What a configuration says is varied."""
    varied = configuration.read(config).get(VARY, {}) if config else {}
    if not isinstance(varied, dict):
        raise ConfigError("config-value", f"{config}: vary: expected lines `name: [value, value]`, found {varied!r}")
    return varied


def _tell(result: Ablation, folder: Path) -> None:
    from rich.table import Table

    from roialign_cli.ablation.summary import setting_label
    from roialign_cli.cli.console import pluralise, stderr, stdout

    best = {choice.setting for choice in result.recommendations}
    rows = [row for row in result.rows if row["class"] == "all"]
    columns = {name: form for name, form in SHOWN.items() if any(row[name] is not None for row in rows)}
    if all(row["aligned"] for row in rows):
        columns.pop("offset_px_median", None)  # there is none to speak of
    table = Table("setting", box=None, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for name in columns:
        table.add_column(columns[name][0], justify="right", no_wrap=True)
    for layer in dict.fromkeys(row["layer"] for row in rows):
        if len({row["layer"] for row in rows}) > 1:
            table.add_row(layer, style="cyan")
        for row in (row for row in rows if row["layer"] == layer):
            cells = ["-" if row[name] is None else form.format(row[name]) for name, (_, form) in columns.items()]
            table.add_row(setting_label(row), *cells, style="bold green" if row["setting"] in best else None)
    stdout.print(table, highlight=False)
    for choice in result.recommendations:
        stdout.print(f"\n{choice.geometry}: take {choice.label}", style="bold", highlight=False)
        stdout.print(f"  {choice.reason}", highlight=False)
    if result.probe:
        probed = f"{result.probe['boxes']} boxes in {result.probe['classes']} classes"
        stdout.print(f"\nprobe: {probed}; always the commonest: {result.probe['chance']:.1%}", highlight=False)
    if not result.finished:
        stdout.print(f"\ninterrupted after {result.images} of {result.total_images} images", highlight=False)
    stdout.print(f"\n{pluralise(result.images, 'image')} measured; {folder / 'report.html'}", highlight=False)
    if result.flaws:
        stderr.print(f"warning: the features saved have {result.flaws}", highlight=False)
    for name, reason in list(result.failures.items())[:10]:
        stderr.print(f'failed: "{name}": {reason}', highlight=False, markup=False)
