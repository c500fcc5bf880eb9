"""`roialign boxes`: check a box file against its images, or convert it, without a backbone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roialign_cli.cli import options
from roialign_cli.cli.options import RUN, option
from roialign_cli.cli.settings import takes_settings
from roialign_cli.config import Settings
from roialign_cli.errors import ExitCode, OutputError

if TYPE_CHECKING:
    from roialign_cli.inputs.survey import Survey

BAR_WIDTH = 40  # characters of the longest bar of the histogram


@takes_settings(
    "boxes_format", "box_units", "columns", "allow_outside", "classes", "images_json", "voc_origin",
    "labels", "min_score", "min_size", "max_boxes", "crowd", "whole_image", "grid", "clip", "region", "region_missing",
)  # fmt: skip
def boxes(
    images: options.Images,
    boxes: options.Boxes = None,
    write: Annotated[
        Path | None, option("Write boxes and regions as native JSON, in pixels.", "--write", panel=RUN)
    ] = None,
    *,
    settings: Settings,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Check boxes against their images without extracting anything: what is there, and what looks wrong.

    Exit codes: 0 all images can be read; 7 some are missing or cannot be opened.

    Example: roialign boxes images/ boxes.json --write native.json
    """
    from dataclasses import replace

    from roialign_cli.cli.console import print_json, print_notes
    from roialign_cli.extraction.plan import make_plan
    from roialign_cli.inputs.boxes import read_boxes
    from roialign_cli.inputs.images import limit_pixels, open_images
    from roialign_cli.inputs.survey import survey, write_native
    from roialign_cli.system.atomic import check_not_input

    with limit_pixels():
        found_images = open_images(images, boxes)
        table = replace(
            read_boxes(boxes, found_images, settings), sizes=None
        )  # sizes come from the images, not from the file
        plan = make_plan(found_images, table, settings)
    print_notes(plan.table.notes)
    found = survey(plan)
    if write is not None:
        check_not_input(write, [] if boxes is None else [boxes])
        if write.exists() and not overwrite:
            message = f"{write}: expected nothing there"
            raise OutputError("output-exists", message, "choose another --write, or --overwrite")
        write_native(plan, write)
    if json:
        print_json(asdict(found))
    else:
        _print_survey(found, write)
    if found.problems:
        raise typer.Exit(ExitCode.IMAGES_FAILED)


def _print_survey(found: Survey, written: Path | None) -> None:
    """Print counts, a histogram of box sizes, and what looks wrong."""
    from roialign_cli.cli.console import key_value_table, print_failures, stderr, stdout

    rows = [
        (
            "images",
            f"{found.images}, {len(found.problems)} cannot be read; {found.unused_images} other files are not used",
        ),
        ("boxes", f"{found.boxes}; {found.images_without_boxes} images have none"),
        ("outside", f"{found.outside_boxes} reach outside of their image"),
        ("tiny", f"{found.tiny_boxes} have a side under 4 pixels, {found.empty_boxes} have no area"),
        ("duplicates", f"{found.duplicate_boxes} repeat a box of the same image"),
    ]
    if found.regions:
        rows.append(("regions", ", ".join(f"{number} {name}" for name, number in found.regions.items())))
    if found.labels:
        most = sorted(found.labels.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {number}" for name, number in most[:8])
        rows.append(("labels", f"{len(most)}: {shown}" + (", ..." if len(most) > 8 else "")))
    stdout.print(key_value_table("", rows), highlight=False)
    stdout.print("\nboxes by the square root of their area, pixels", highlight=False)
    longest = max([1, *found.sizes.values()])
    for low, number in found.sizes.items():
        bar = "█" * -(-BAR_WIDTH * number // longest)
        stdout.print(f"  from {low:>3}  {number:>8}  {bar}", highlight=False)
    for text in found.suspicions:
        stderr.print(f"warning: {text}", highlight=False)
    print_failures(found.problems, "--json lists all")
    if written is not None:
        stdout.print(f"\n{written}: written", highlight=False)
