"""`roialign boxes`: check a box file against its images, or convert it, without a backbone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roialign_cli.cli import options
from roialign_cli.cli.extract import SOME_FAILED
from roialign_cli.cli.options import RUN, option
from roialign_cli.config import load
from roialign_cli.errors import OutputError

if TYPE_CHECKING:
    from roialign_cli.inputs.survey import Survey


def boxes(
    images: options.Images,
    boxes: options.Boxes = None,
    write: Annotated[Path | None, option("Write the boxes as native JSON, in pixels.", "--write", panel=RUN)] = None,
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
    clip: options.Clip = None,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Check boxes against their images without extracting anything: what is there, and what looks wrong.

    Exit codes: 0 all images are there; 7 some are missing or cannot be opened.

    Example: roialign boxes images/ boxes.json --write native.json
    """
    given = options.settings_given(locals())
    settings = load(None, given)
    from dataclasses import replace

    from roialign_cli.cli.console import print_json
    from roialign_cli.extraction.plan import make_plan
    from roialign_cli.inputs.boxes import read_boxes
    from roialign_cli.inputs.images import limit_pixels
    from roialign_cli.inputs.survey import survey, write_native
    from roialign_cli.system.atomic import check_not_input

    with limit_pixels():
        table = replace(read_boxes(boxes, images, settings), sizes=None)  # the images' own, whatever the file says
        plan = make_plan(images, table, clip=settings.clip, on_error="skip")
    found = survey(plan)
    if write is not None:
        check_not_input(write, [] if boxes is None else [boxes])
        if write.exists() and not overwrite:
            raise OutputError(
                "output-exists", f"{write}: expected nothing there", "choose another --write, or --overwrite"
            )
        write_native(plan, write)
    if json:
        print_json(asdict(found))
    else:
        _tell(found, write)
    if found.problems:
        raise typer.Exit(SOME_FAILED)


def _tell(found: Survey, written: Path | None) -> None:
    from roialign_cli.cli.console import key_value_table, stderr, stdout

    rows = [
        (
            "images",
            f"{found.images}, of which {len(found.problems)} cannot be read; {found.unused_images} more are not used",
        ),
        ("boxes", f"{found.boxes}; {found.images_without_boxes} images have none"),
        ("outside", f"{found.outside_boxes} reach outside their image"),
        ("tiny", f"{found.tiny_boxes} have a side under 4 pixels, {found.empty_boxes} no area"),
        ("twice", f"{found.duplicate_boxes} are in the same image already"),
    ]
    if found.labels:
        most = sorted(found.labels.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {number}" for name, number in most[:8])
        rows.append(("labels", f"{len(most)}: {shown}" + (", ..." if len(most) > 8 else "")))
    stdout.print(key_value_table("", rows), highlight=False, markup=False)
    stdout.print("\nboxes by the root of their area, pixels", highlight=False)
    longest = max([1, *found.sizes.values()])
    for low, number in found.sizes.items():
        bar = "█" * -(-40 * number // longest)
        stdout.print(f"  from {low:>3}  {number:>8}  {bar}", highlight=False)
    for text in found.suspicions:
        stderr.print(f"warning: {text}", highlight=False)
    for name, problem in list(found.problems.items())[:10]:
        stderr.print(f'failed: "{name}": {problem}', highlight=False, markup=False)
    if len(found.problems) > 10:
        stderr.print(f"... and {len(found.problems) - 10} more; --json lists all", highlight=False)
    if written is not None:
        stdout.print(f"\n{written}: written", highlight=False, markup=False)
