"""`roialign bench`: measure the speed of this machine, stage by stage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roialign_cli.config import Settings, load

if TYPE_CHECKING:
    from roialign_cli.extraction.benchmark import PipelineSpeed

DEFAULTS = Settings()


def bench(
    backbone: Annotated[str, typer.Option(help="Name, see `roialign backbones`.")] = DEFAULTS.backbone,
    precision: Annotated[
        str, typer.Option(help="Compute precision: float32, tf32, bfloat16, float16.")
    ] = DEFAULTS.precision,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = DEFAULTS.device,
    images: Annotated[int, typer.Option(min=1, help="Number of images of 640 x 480, made for this.")] = 4,
    boxes: Annotated[int, typer.Option(min=1, help="Boxes per image.")] = 100,
    runs: Annotated[int, typer.Option(min=1, help="Runs; the median counts.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Picture to write, such as speed.png.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Measure the operator and a whole run on this machine, the run split into its stages.

    Weights are random. The script is the same work written by hand with torchvision and h5py. Takes about a minute.

    Example: roialign bench --backbone resnet50 --precision bfloat16
    """
    weights = "DEFAULT" if backbone == "gabor" else "random"
    settings = load(None, {"backbone": backbone, "weights": weights, "precision": precision, "device": device})
    from rich.table import Table

    from roialign_cli.cli.console import print_json, stdout
    from roialign_cli.extraction.benchmark import operator_speed, pipeline_speed
    from roialign_cli.system.devices import find_device

    chosen = find_device(settings.device)
    operator, pipeline = operator_speed(chosen, runs), pipeline_speed(settings, images, boxes, runs)
    if plot is not None:
        _draw(plot, pipeline, backbone)
    if json:
        print_json({"device": str(chosen), "operator_ms": operator, "seconds_per_image": asdict(pipeline)})
        return
    table = Table("RoI Align, ms", "torchvision", "ours", "", box=None, title_justify="left")
    for row in operator:
        ratio = row["torchvision"] / row["ours"]
        table.add_row(row["case"], f"{row['torchvision']:.1f}", f"{row['ours']:.1f}", f"{ratio:.1f}x")
    stdout.print(table, highlight=False)
    table = Table(f"{backbone}, {boxes} boxes per image", "ms per image", "", box=None)
    for stage, seconds in pipeline.stages.items():
        table.add_row(f"{stage}, alone", f"{seconds * 1e3:.1f}", "")
    share = pipeline.whole / pipeline.stages["backbone"]
    table.add_row("whole run", f"{pipeline.whole * 1e3:.1f}", f"{share:.2f} x the backbone alone")
    if pipeline.script is not None:
        ratio = pipeline.script / pipeline.whole
        table.add_row("script by hand", f"{pipeline.script * 1e3:.1f}", f"the whole run is {ratio:.2f} times as fast")
    stdout.print(table, highlight=False)


def _draw(path: Path, speed: PipelineSpeed, backbone: str) -> None:
    """Draw bars of milliseconds per image."""
    from matplotlib.figure import Figure

    from roialign_cli.figures.style import save

    bars = {**speed.stages, "whole run": speed.whole}
    if speed.script is not None:
        bars["script by hand"] = speed.script
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(bars)[::-1], [value * 1e3 for value in bars.values()][::-1], color="#4878a8")
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set_xlabel("ms per image")
    axes.set_title(f"{backbone}: each stage alone, and together")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    save(figure, path)
