"""Options that commands share, each with its help; defaults are told from `Settings`, the only home of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from roialign_cli.config import SETTING_NAMES, Settings
from roialign_cli.config import BoxesFormat as Formats

DEFAULTS = Settings()
BINS = "x".join(map(str, DEFAULTS.output_size))
MODEL, POOLING, BOXES, RUN, CLUSTER = "Backbone", "RoI Align", "Boxes", "Run", "Cluster"


def option(help_text: str, *names: str, panel: str, default: object = None) -> Any:
    """An option of a panel whose help tells its default."""
    shown = help_text if default is None else f"{help_text} (default: {default})"
    return typer.Option(*names, help=shown, rich_help_panel=panel, show_default=False)


def settings_given(arguments: Mapping[str, object]) -> dict[str, object]:
    """The settings among a command's arguments; `compile_` means compile, and --whole-image a grid of one."""
    found = {name.rstrip("_"): value for name, value in arguments.items()}
    if found.get("whole_image"):
        found["grid"] = "1x1"
    return {name: found[name] for name in SETTING_NAMES if name in found}


Images = Annotated[Path, typer.Argument(help="Folder of images, searched with its subfolders.", show_default=False)]
Boxes = Annotated[
    Path | None,
    typer.Argument(
        help="Box file or folder: native JSON or JSON Lines, COCO instances or results, VOC, YOLO, LabelMe, CSV, Parquet, npz.",
        show_default=False,
    ),
]

Config = Annotated[str | None, option("Named configuration or YAML file.", "-c", "--config", panel=MODEL)]
Backbone = Annotated[str | None, option("Name, see `roialign backbones`.", default=DEFAULTS.backbone, panel=MODEL)]
Weights = Annotated[
    str | None, option("DEFAULT, a torchvision name, a file, or random[:SEED].", default=DEFAULTS.weights, panel=MODEL)
]
Layers = Annotated[str | None, option("Layers to tap: a,b or fpn.", default="the last", panel=MODEL)]
Resize = Annotated[str | None, option("none or SHORT[,MAX] pixels.", default="the backbone's own", panel=MODEL)]
Precision = Annotated[
    str | None, option("Of the computation: float32, bfloat16, float16.", default=DEFAULTS.precision, panel=MODEL)
]
Compile = Annotated[
    bool | None, option("Compile the backbone (torch.compile): for long runs.", "--compile", panel=MODEL)
]

OutputSize = Annotated[str | None, option("Bins: 7 or 7x5 (height x width).", default=BINS, panel=POOLING)]
SamplingRatio = Annotated[
    int | None, option("Samples per bin and axis; 0: adaptive.", default=DEFAULTS.sampling_ratio, panel=POOLING)
]
Aligned = Annotated[
    bool | None,
    option("Half-cell shift, as in detectron2.", "--aligned/--no-aligned", default="aligned", panel=POOLING),
]
Mode = Annotated[str | None, option("avg, max or exact.", default=DEFAULTS.mode, panel=POOLING)]
Reduce = Annotated[
    str | None, option("One vector per box: none, mean or max over its bins.", default=DEFAULTS.reduce, panel=POOLING)
]
Head = Annotated[
    str | None,
    option(
        "A vector per box: box, by a detector's box head; c5, by a ResNet's last stage.",
        default=DEFAULTS.head,
        panel=POOLING,
    ),
]
Clip = Annotated[bool | None, option("Clip boxes to their image.", "--clip/--no-clip", panel=POOLING)]
Kernel = Annotated[str | None, option("auto, cpu, cuda or torchvision.", default=DEFAULTS.kernel, panel=POOLING)]

Dtype = Annotated[str | None, option("As stored: float32 or float16.", default=DEFAULTS.dtype, panel=RUN)]
Device = Annotated[str | None, option("auto, cpu, cuda or cuda:N.", default=DEFAULTS.device, panel=RUN)]
Workers = Annotated[int | None, option("Decoding threads.", default="one per core", panel=RUN)]
BoxesFormat = Annotated[
    str | None, option(f"{', '.join(get_args(Formats))}.", default=DEFAULTS.boxes_format, panel=BOXES)
]
Columns = Annotated[
    str | None,
    option("Of a table: image=File,x1=Left,...,units=pixels or relative.", default="by their names", panel=BOXES),
]
Classes = Annotated[str | None, option("YOLO's class names.", default="found beside the labels", panel=BOXES)]
ImagesJson = Annotated[
    str | None, option("COCO file that names the images of COCO results.", default="images named by id", panel=BOXES)
]
VocOrigin = Annotated[
    int | None, option("What a VOC file calls the first pixel: 1 or 0.", default=DEFAULTS.voc_origin, panel=BOXES)
]
Labels = Annotated[str | None, option("Only boxes with these labels: cat,dog.", panel=BOXES)]
MinScore = Annotated[float | None, option("Only boxes of at least this score.", panel=BOXES)]
MinSize = Annotated[float | None, option("Only boxes whose shorter side has so many pixels.", panel=BOXES)]
MaxBoxes = Annotated[int | None, option("At most so many per image, those with the highest scores.", panel=BOXES)]
Crowd = Annotated[
    bool | None, option("Whether COCO's crowds count.", "--crowd/--no-crowd", default="crowd", panel=BOXES)
]
WholeImage = Annotated[bool, option("No box file: one box per image, all of it.", "--whole-image", panel=BOXES)]
Grid = Annotated[str | None, option("No box file: ROWSxCOLUMNS equal boxes per image.", panel=BOXES)]
MaxPixels = Annotated[int | None, option("Refuse larger images; 0: none.", default=str(DEFAULTS.max_pixels), panel=RUN)]
ImageTimeout = Annotated[
    float | None, option("Seconds to decode an image; 0: any.", default=f"{DEFAULTS.image_timeout:g}", panel=RUN)
]
OnError = Annotated[
    str | None, option("Images that fail: skip (and record) or stop.", default=DEFAULTS.on_error, panel=RUN)
]
OnNonfinite = Annotated[
    str | None,
    option("Images with NaN or infinite features: error or keep.", default=DEFAULTS.on_nonfinite, panel=RUN),
]
Overwrite = Annotated[bool, option("Replace an existing output.", "--overwrite", panel=RUN)]
AllowLinks = Annotated[
    bool,
    typer.Option("--allow-links", help="Let a file made by `merge --link` name files outside of its own folder."),
]
AsJson = Annotated[bool, option("Print the result as JSON on stdout.", "--json", panel=RUN)]
