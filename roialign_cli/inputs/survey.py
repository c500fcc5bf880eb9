"""Summarise a box file and look for signs of a wrong convention, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from roialign_cli.inputs.boxes.native_json import box_entry, exact, write_entries
from roialign_cli.shapes import KIND_NAMES, POLYGONS
from roialign_cli.system.atomic import replace_atomically
from roialign_cli.types import BoxTable, Plan

TINY_SIDE_PIXELS = 4.0  # shorter sides below this are less than a cell of the finest usual map
MIN_BOXES_TO_JUDGE = 10  # fewer boxes say too little about their convention
MAX_OUTSIDE_SHARE = 0.3  # of boxes that reach out of their image; more are suspicious
SIZE_EDGES_PIXELS = (0, 8, 16, 32, 64, 96, 128, 256, 512)  # of the histogram of box sizes


@dataclass(frozen=True)
class Survey:
    """Counts of images and boxes, and what looks wrong."""

    images: int
    boxes: int
    images_without_boxes: int
    unused_images: int
    problems: dict[str, str]  # by name of the image
    outside_boxes: int
    empty_boxes: int
    tiny_boxes: int
    duplicate_boxes: int
    labels: dict[str, int]  # number of boxes by label
    sizes: dict[str, int]  # number of boxes by the root of their area, from each edge in pixels to the next
    suspicions: list[str]
    regions: dict[str, int] = field(default_factory=dict)  # number of regions by kind, if they are not boxes


def survey(plan: Plan) -> Survey:
    """Return the survey of a plan whose sizes were read from the images."""
    table = plan.table
    boxes, counts = table.boxes, np.diff(table.offset)
    owner = np.repeat(np.arange(plan.images), counts)
    sides = boxes[:, 2:] - boxes[:, :2]
    keyed = np.concatenate([owner[:, None].astype(np.float64), boxes], axis=1)
    names, numbers = (np.unique(table.labels, return_counts=True)) if table.labels is not None else ((), ())
    histogram, _ = np.histogram(np.sqrt(sides.prod(axis=1)), [*SIZE_EDGES_PIXELS, np.inf])
    return Survey(
        images=plan.images,
        boxes=plan.rows,
        images_without_boxes=int((counts == 0).sum()),
        unused_images=plan.unused_images,
        problems={table.names[image]: problem for image, problem in plan.problems.items()},
        outside_boxes=plan.outside_boxes,
        empty_boxes=plan.empty_boxes,
        tiny_boxes=int((sides.min(axis=1, initial=np.inf) < TINY_SIDE_PIXELS).sum()),
        duplicate_boxes=len(boxes) - len(np.unique(keyed, axis=0)) if len(boxes) else 0,
        labels={str(name): int(number) for name, number in zip(names, numbers, strict=True)},
        sizes={f"{low}": int(number) for low, number in zip(SIZE_EDGES_PIXELS, histogram, strict=True)},
        suspicions=list(suspicions(plan)),
        regions=_count_regions(plan),
    )


def _count_regions(plan: Plan) -> dict[str, int]:
    """Return the number of regions by kind; empty for boxes."""
    table = plan.table
    if table.rotated is not None:
        return {"rotated boxes": len(table.rotated)}
    if table.points is not None:
        return {f"sets of {table.points.shape[1]} points": len(table.points)}
    if table.shapes is None:
        return {}
    kinds, numbers = np.unique(table.shapes.kind, return_counts=True)
    return {f"masks of {KIND_NAMES[kind]}": int(number) for kind, number in zip(kinds, numbers, strict=True)}


def suspicions(plan: Plan) -> Iterator[str]:
    """Yield sentences about signs that the boxes are in another convention than the one they were read in."""
    table = plan.table
    sizes = np.repeat(plan.sizes, np.diff(table.offset), axis=0)[:, ::-1]  # (width, height)
    readable = sizes.min(axis=1, initial=1) > 0
    boxes, sizes = table.boxes[readable], sizes[readable]
    if len(boxes) < MIN_BOXES_TO_JUDGE:
        return
    if (boxes <= 1).all():
        yield "all coordinates lie in 0..1: they may be relative to the image, not pixels"
    elif (boxes[:, :2] + boxes[:, 2:] <= sizes).all() and not plan.boxes_depend_on_size:
        yield "every box would also fit its image as x, y, width, height: they may have been read as corners by mistake"
    outside = (boxes[:, 2:] > sizes + 1).any(axis=1).mean()
    if outside > MAX_OUTSIDE_SHARE:
        reason = "corners may have been read as x, y, width, height, or the images may have been resized"
        yield f"{outside:.0%} of the boxes reach out of their image at the right or the bottom: {reason}"


def write_native(plan: Plan, path: Path) -> None:
    """Write boxes and regions as native JSON, in pixels, exactly. Raises OutputError if the file cannot be written."""
    table = plan.table

    def entry(rows: slice) -> dict[str, object]:
        labels, ids = (None if column is None else column[rows].tolist() for column in (table.labels, table.ids))
        boxes = box_entry(table.boxes[rows], labels, ids, None if table.scores is None else table.scores[rows])
        return boxes | _native_regions(table, rows)

    with replace_atomically(path) as partial, partial.open("w", encoding="utf-8") as file:
        write_entries(file, ((name, entry(table.rows_of(i))) for i, name in enumerate(table.names)))


def _native_regions(table: BoxTable, rows: slice) -> dict[str, object]:
    """Return the regions of an image under the keys of native JSON; none for boxes."""
    if table.rotated is not None:
        return {"rotated": exact(table.rotated[rows])}
    if table.points is not None:
        return {"points": exact(table.points[rows])}
    if table.shapes is None:
        return {}
    shapes = [table.shapes[row] for row in range(rows.start, rows.stop)]
    polygons = [[exact(np.ravel(part)) for part in shape.parts] if shape.kind == POLYGONS else None for shape in shapes]
    masks = [
        None if shape.kind == POLYGONS else {"size": list(shape.size), "counts": np.asarray(shape.counts).tolist()}
        for shape in shapes
    ]
    return {"polygons": polygons, "rle": masks} if any(masks) else {"polygons": polygons}
