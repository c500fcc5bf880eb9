"""Define the options that commands share, each with its help, once. Defaults come from `config.Settings`, their only home."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from roialign_cli.config import BoxesFormat, Settings, config_names

DEFAULTS = Settings()
BINS = "x".join(map(str, DEFAULTS.output_size))
BACKBONE, POOLING, BOXES, RUN, CLUSTER = "Backbone", "RoI Align", "Boxes", "Run", "Cluster"


def option(
    help_text: str, *names: str, panel: str, default: object = None, values: Callable[[], Iterable[str]] | None = None
) -> Any:
    """Return an option in a panel of the help, which states its default; `values` returns those that shells complete."""
    shown = help_text if default is None else f"{help_text} (default: {default})"

    def complete(incomplete: str) -> list[str]:
        return [value for value in (values() if values else ()) if value.startswith(incomplete)]

    completion = complete if values else None
    return typer.Option(*names, help=shown, rich_help_panel=panel, show_default=False, autocompletion=completion)


def backbone_names() -> Iterable[str]:
    """Return the names of backbones, which takes the seconds of importing torch."""
    from roialign_cli.backbones import available

    return available()


IMAGES_HELP = "Folder with images; or an image, a quoted pattern, a .txt list of paths, .zip or .tar."
Images = Annotated[str, typer.Argument(help=IMAGES_HELP, show_default=False)]
OptionalImages = Annotated[str | None, typer.Argument(help=IMAGES_HELP, show_default=False)]
Boxes = Annotated[
    Path | None,
    typer.Argument(
        help="Box file or folder (COCO, VOC, YOLO, CSV, ...); - is stdin.",
        show_default=False,
    ),
]
FeatureFilePath = Annotated[Path, typer.Argument(help="Feature file.", show_default=False)]
Overwrite = Annotated[bool, option("Replace an existing output.", "--overwrite", panel=RUN)]
AsJson = Annotated[bool, option("Print the result as JSON on stdout.", "--json", panel=RUN)]
AllowLinks = Annotated[
    bool,
    typer.Option("--allow-links", help="Let a file made by `merge --link` name files outside of its own folder."),
]

# The options of settings, by the name of the field of Settings. `config` names a configuration, and `whole_image` is a
# grid of 1x1.
SETTINGS: dict[str, Any] = {
    "config": Annotated[
        str | None, option("Named configuration or YAML file.", "-c", "--config", panel=BACKBONE, values=config_names)
    ],
    "backbone": Annotated[
        str | None,
        option("Name, see `roialign backbones`.", default=DEFAULTS.backbone, panel=BACKBONE, values=backbone_names),
    ],
    "weights": Annotated[
        str | None,
        option("DEFAULT, a torchvision name, a file, or random[:SEED].", default=DEFAULTS.weights, panel=BACKBONE),
    ],
    "layers": Annotated[str | None, option("Layers to tap: a,b or fpn.", default="the last", panel=BACKBONE)],
    "resize": Annotated[
        str | None, option("none or SHORT[,MAX] pixels.", default="the backbone's own", panel=BACKBONE)
    ],
    "decoder": Annotated[
        str | None,
        option("Image decoder: pillow, torchcodec, or auto.", default=DEFAULTS.decoder, panel=RUN),
    ],
    "precision": Annotated[
        str | None,
        option("Compute precision: float32, tf32, bfloat16, float16.", default=DEFAULTS.precision, panel=BACKBONE),
    ],
    "compile": Annotated[
        bool | None, option("Compile the backbone with torch.compile, for long runs.", "--compile", panel=BACKBONE)
    ],
    "region": Annotated[
        str | None, option("What is pooled: box, rotated, mask or points.", default=DEFAULTS.region, panel=POOLING)
    ],
    "region_missing": Annotated[
        str | None,
        option("Annotations without such a region: error, or box.", default=DEFAULTS.region_missing, panel=POOLING),
    ],
    "deform": Annotated[
        str | None,
        option("Move bins by a trained head, a .pth or .safetensors file.", panel=POOLING, default="none"),
    ],
    "output_size": Annotated[
        str | None, option("Bins: 7 or 7x5 (height x width); several: 7,14.", default=BINS, panel=POOLING)
    ],
    "sampling_ratio": Annotated[
        int | None, option("Samples per bin and axis; 0: adaptive.", default=DEFAULTS.sampling_ratio, panel=POOLING)
    ],
    "aligned": Annotated[
        bool | None,
        option("Shift by half a cell, as detectron2 does.", "--aligned/--no-aligned", default="aligned", panel=POOLING),
    ],
    "centers": Annotated[
        str | None,
        option("Where map cells look: assumed, or measured by gradients.", default=DEFAULTS.centers, panel=POOLING),
    ],
    "mode": Annotated[str | None, option("avg, max or exact.", default=DEFAULTS.mode, panel=POOLING)],
    "reduce": Annotated[
        str | None,
        option("One vector per box: none, mean or max over its bins.", default=DEFAULTS.reduce, panel=POOLING),
    ],
    "context": Annotated[
        str | None,
        option("Scale boxes about their centre; several, a layer each: 1,1.5,2.", default="1", panel=POOLING),
    ],
    "levels": Annotated[
        str | None, option("Levels of a pyramid: assign, all or soft.", default=DEFAULTS.levels, panel=POOLING)
    ],
    "fuse": Annotated[
        str | None,
        option("How all levels become one: mean, sum, max, concat.", default=DEFAULTS.fuse, panel=POOLING),
    ],
    "head": Annotated[
        str | None,
        option(
            "One vector per box: box (a detector's box head) or c5 (a ResNet's last stage).",
            default=DEFAULTS.head,
            panel=POOLING,
        ),
    ],
    "clip": Annotated[bool | None, option("Clip boxes to their image.", "--clip/--no-clip", panel=POOLING)],
    "kernel": Annotated[str | None, option("auto, cpu, cuda or torchvision.", default=DEFAULTS.kernel, panel=POOLING)],
    "dtype": Annotated[str | None, option("Storage type: float32 or float16.", default=DEFAULTS.dtype, panel=RUN)],
    "device": Annotated[str | None, option("auto, cpu, cuda, cuda:N, mps or xpu.", default=DEFAULTS.device, panel=RUN)],
    "processes": Annotated[int | None, option("Processes that share the work.", default="one per device", panel=RUN)],
    "batch_size": Annotated[int | None, option("Images of one size per batch.", default="by size", panel=RUN)],
    "workers": Annotated[int | None, option("Decoding threads.", default="one per core", panel=RUN)],
    "boxes_format": Annotated[
        str | None,
        option(
            f"{', '.join(get_args(BoxesFormat))}.",
            default=DEFAULTS.boxes_format,
            panel=BOXES,
            values=lambda: get_args(BoxesFormat),
        ),
    ],
    "box_units": Annotated[
        str | None,
        option("What boxes are: xyxy, xywh, cxcywh, yxyx, each also with -relative.", default="by format", panel=BOXES),
    ],
    "allow_outside": Annotated[
        bool | None,
        option("Accept a file of which most boxes lie outside their images.", "--allow-outside", panel=BOXES),
    ],
    "columns": Annotated[
        str | None,
        option(
            'Columns of a table: image=File,x1=Left,...,units=pixels; or all, in order: "label score x1 y1 x2 y2".',
            default="by their names",
            panel=BOXES,
        ),
    ],
    "classes": Annotated[
        str | None, option("File of YOLO's class names.", default="found beside the labels", panel=BOXES)
    ],
    "images_json": Annotated[
        str | None,
        option("COCO file that names the images of COCO results.", default="images named by id", panel=BOXES),
    ],
    "voc_origin": Annotated[
        int | None,
        option("Coordinate of the first pixel in VOC files: 1 or 0.", default=DEFAULTS.voc_origin, panel=BOXES),
    ],
    "labels": Annotated[str | None, option("Keep boxes with these labels: cat,dog.", panel=BOXES)],
    "min_score": Annotated[
        float | None, option("Keep boxes with at least this score.", default="0; with --detect 0.05", panel=BOXES)
    ],
    "min_size": Annotated[
        float | None, option("Keep boxes whose shorter side is at least this many pixels.", panel=BOXES)
    ],
    "max_boxes": Annotated[
        int | None,
        option(
            "Keep at most this many boxes per image, those with the highest scores.",
            default="all; with --detect 100, of proposals 1000",
            panel=BOXES,
        ),
    ],
    "crowd": Annotated[
        bool | None,
        option("Keep boxes that COCO marks as crowds.", "--crowd/--no-crowd", default="crowd", panel=BOXES),
    ],
    "whole_image": Annotated[
        bool, option("Use no box file, but one box per image that covers it.", "--whole-image", panel=BOXES)
    ],
    "grid": Annotated[str | None, option("Use no box file, but ROWSxCOLUMNS equal boxes per image.", panel=BOXES)],
    "detect": Annotated[
        bool | None,
        option(
            "Use no box file, but what the backbone's own detector finds: boxes, labels, scores.",
            "--detect",
            panel=BOXES,
        ),
    ],
    "proposals": Annotated[
        bool | None, option("With --detect: its proposals, before its box head.", "--proposals", panel=BOXES)
    ],
    "nms": Annotated[
        float | None,
        option(
            "With --detect: drop a box that overlaps a better one by more than this.",
            default="0.5; of proposals 0.7",
            panel=BOXES,
        ),
    ],
    "class_agnostic": Annotated[
        bool | None, option("With --detect: --nms also between classes.", "--class-agnostic", panel=BOXES)
    ],
    "max_pixels": Annotated[
        int | None, option("Refuse images with more pixels; 0: no limit.", default=str(DEFAULTS.max_pixels), panel=RUN)
    ],
    "image_timeout": Annotated[
        float | None,
        option("Seconds to decode an image; 0: no limit.", default=f"{DEFAULTS.image_timeout:g}", panel=RUN),
    ],
    "on_error": Annotated[
        str | None, option("If an image fails: skip (and record) or stop.", default=DEFAULTS.on_error, panel=RUN)
    ],
    "on_nonfinite": Annotated[
        str | None,
        option("If features are NaN or infinite: error or keep.", default=DEFAULTS.on_nonfinite, panel=RUN),
    ],
}
