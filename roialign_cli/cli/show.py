"""`roialign show`: pictures of boxes, bins and samples, and of what a feature file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roialign_cli.cli import options
from roialign_cli.cli.options import option
from roialign_cli.cli.settings import takes_settings
from roialign_cli.config import Settings, require_one_size, require_plain_boxes
from roialign_cli.errors import ConfigError, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from roialign_cli.types import BoxTable

PICTURE = "Picture"
COLOURS = ("pca", "mean")
MAX_SUGGESTED_NAMES = 10_000


@takes_settings(
    "config", "backbone", "weights", "layers", "resize",
    "region", "region_missing", "deform", "output_size", "sampling_ratio", "aligned", "mode", "device",
    "boxes_format", "box_units", "columns",
    layers=Annotated[
        str | None, option("Layer to show.", "--layer", "--layers", default="the last", panel=options.BACKBONE)
    ],
)  # fmt: skip
def show(
    image: Annotated[Path | None, typer.Argument(help="Image.", show_default=False)] = None,
    boxes: Annotated[Path | None, typer.Argument(help="Box file with boxes of the image.", show_default=False)] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Picture to write: .png, .svg, .pdf.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    box: Annotated[int, option("Index of the box in the image, from 0.", default=0, panel=PICTURE)] = 0,
    colour: Annotated[
        str,
        option(
            "How to colour maps: pca (first principal component) or mean (of channels).", default="pca", panel=PICTURE
        ),
    ] = "pca",
    from_: Annotated[
        Path | None,
        option("Draw a contact sheet of a feature file; IMAGE then names one of its images.", "--from", panel=PICTURE),
    ] = None,
    *,
    settings: Settings,
    allow_links: options.AllowLinks = False,
    json: options.AsJson = False,
) -> None:
    """Draw an image with its boxes, the bins and samples of one, the feature map under it and the pooled result.

    Example: roialign show cat.jpg boxes.json -o cat.png --box 1 -c quickstart
    """
    if colour not in COLOURS:
        raise ConfigError("config-value", f"colour: expected one of {', '.join(COLOURS)}, found {colour!r}")
    require_one_size(settings, "show")
    require_plain_boxes(settings, "show")
    if settings.centers != "assumed":
        raise ConfigError("config-value", f"centers: expected assumed for show, found {settings.centers!r}")
    if from_ is None and (image is None or boxes is None):
        raise ConfigError("usage", "show: expected an image and a box file, or --from a feature file")
    from roialign_cli.cli.console import print_json, stdout
    from roialign_cli.figures.style import save
    from roialign_cli.system.atomic import check_not_input

    check_not_input(output, [path for path in (image, boxes, from_) if path is not None])
    if from_ is not None:
        layer = ",".join(settings.layers) or None
        figure, facts = _sheet(from_, layer, None if image is None else image.as_posix(), allow_links=allow_links)
    else:
        assert image is not None
        assert boxes is not None
        figure, facts = _overlay(image, boxes, box, settings, colour)
    save(figure, output)
    if json:
        print_json({"output": str(output), **facts})
    else:
        listed = ", ".join(f"{name} {value}" for name, value in facts.items())
        stdout.print(f"{output}: {listed}", highlight=False)


def _sheet(path: Path, layer: str | None, name: str | None, *, allow_links: bool) -> tuple[Figure, dict[str, object]]:
    """Return the contact sheet of a feature file, and facts to print."""
    from roialign_cli.figures.sheet import draw_sheet
    from roialign_cli.store import FeatureFile

    with FeatureFile(path, allow_links=allow_links) as file:
        figure = draw_sheet(file, layer, name)
        boxes = int(file.offset[-1]) if name is None else len(file[name].boxes)
        return figure, {"file": str(path), **({} if name is None else {"image": name}), "boxes": boxes}


def _overlay(image: Path, boxes: Path, box: int, settings: Settings, colour: str) -> tuple[Figure, dict[str, object]]:
    """Return the picture of a box of an image, and facts to print."""
    from roialign_cli.inputs.boxes import read_boxes
    from roialign_cli.inputs.boxes.regions import in_pixels, resolve
    from roialign_cli.inputs.images import ImageError, decode, limit_pixels

    table = read_boxes(boxes, image.parent, settings)
    index = _find(image, boxes, table)
    first, stop = int(table.offset[index]), int(table.offset[index + 1])
    if not 0 <= box < stop - first:
        raise InputError(
            "box-unknown", f"box: expected one of the {stop - first} boxes of {image}, from 0, found {box}"
        )
    try:
        with limit_pixels():
            pixels = decode(image)
    except ImageError as error:
        raise error.with_name(str(image)) from None
    import numpy as np

    from roialign_cli.backbones import load_backbone
    from roialign_cli.figures.overlay import draw_overlay
    from roialign_cli.figures.places import find_places
    from roialign_cli.regions.views import make_layer_views
    from roialign_cli.system.devices import find_device

    device = find_device(settings.device)
    loaded = load_backbone(settings)
    loaded.to(device)
    sizes = np.zeros((len(table.names), 2), np.int64)
    sizes[index] = pixels.shape[:2]
    table = resolve(table.source, in_pixels(table, sizes), sizes, settings)
    of_image = table.boxes[first:stop]
    view = make_layer_views(pixels, table, index, loaded, settings, device)[-1]
    labels = None if table.labels is None else [str(label) for label in table.labels[first:stop]]
    figure = draw_overlay(pixels, of_image, labels, view, box, settings, colour)
    places = find_places(view, box, settings).grid
    return figure, {"box": box, "layer": view.layer.name, "stride": view.map_of(box)[1], "samples": places}


def _find(image: Path, boxes: Path, table: BoxTable) -> int:
    """Return the index of the image in a box file: that with the longest name that the path ends with."""
    parts = image.absolute().parts
    ends = [i for i, name in enumerate(table.names) if parts[-len(Path(name).parts) :] == Path(name).parts]
    if not ends:
        from roialign_cli.config import suggest

        hint = suggest(image.name, list(table.names[:MAX_SUGGESTED_NAMES]))
        raise InputError("image-unknown", f'{boxes}: expected boxes of "{image.name}", found none', hint)
    return max(ends, key=lambda i: len(Path(table.names[i]).parts))
