"""What is in a box file, and what looks wrong in it, before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roialign_cli.system.atomic import replace_atomically
from roialign_cli.types import Plan

TINY = 4.0  # pixels of the shorter side: less than a cell of the finest usual map
ENOUGH = 10  # boxes, to judge a file by
EDGES = (0, 8, 16, 32, 64, 96, 128, 256, 512)  # pixels; of the histogram


@dataclass(frozen=True)
class Survey:
    """Counts; `problems` of images by name; `sizes` counts boxes by the root of their area, from each edge to the next."""

    images: int
    boxes: int
    images_without_boxes: int
    unused_images: int
    problems: dict[str, str]
    outside_boxes: int
    empty_boxes: int
    tiny_boxes: int
    duplicate_boxes: int
    labels: dict[str, int]
    sizes: dict[str, int]
    suspicions: list[str]


def survey(plan: Plan) -> Survey:
    """Of a plan whose sizes come from the images."""
    table = plan.table
    boxes, counts = table.boxes, np.diff(table.offset)
    owner = np.repeat(np.arange(plan.images), counts)
    sides = boxes[:, 2:] - boxes[:, :2]
    keyed = np.concatenate([owner[:, None].astype(np.float64), boxes], axis=1)
    names, numbers = (np.unique(table.labels, return_counts=True)) if table.labels is not None else ((), ())
    histogram, _ = np.histogram(np.sqrt(sides.prod(axis=1)), [*EDGES, np.inf])
    return Survey(
        images=plan.images,
        boxes=plan.rows,
        images_without_boxes=int((counts == 0).sum()),
        unused_images=plan.unused_images,
        problems={table.names[image]: problem for image, problem in plan.problems.items()},
        outside_boxes=plan.outside_boxes,
        empty_boxes=plan.empty_boxes,
        tiny_boxes=int((sides.min(axis=1, initial=np.inf) < TINY).sum()),
        duplicate_boxes=len(boxes) - len(np.unique(keyed, axis=0)) if len(boxes) else 0,
        labels={str(name): int(number) for name, number in zip(names, numbers, strict=True)},
        sizes={f"{low}": int(number) for low, number in zip(EDGES, histogram, strict=True)},
        suspicions=list(_suspicions(plan)),
    )


def _suspicions(plan: Plan) -> Iterator[str]:
    """What boxes would look like in another convention than they were read in."""
    table = plan.table
    known = np.repeat(plan.sizes, np.diff(table.offset), axis=0)[:, ::-1]
    there = known.min(axis=1, initial=1) > 0
    boxes, sizes = table.boxes[there], known[there]
    if len(boxes) < ENOUGH:
        return
    if (boxes <= 1).all():
        yield "all coordinates lie in 0..1: they may be relative to the image, not pixels"
    elif (boxes[:, :2] + boxes[:, 2:] <= sizes).all() and not plan.boxes_depend_on_size:
        yield "every box would fit its image as x, y, width, height too: it may be read as corners by mistake"
    outside = (boxes[:, 2:] > sizes + 1).any(axis=1).mean()
    if outside > 0.3:
        reason = "corners may have been read as x, y, width, height, or the images were resized since"
        yield f"{outside:.0%} of the boxes reach out of their image to the right or below: {reason}"


def write_native(plan: Plan, path: Path) -> None:
    """Write boxes as native JSON, in pixels, exactly. Raises OutputError if the file cannot be written."""
    table = plan.table
    with replace_atomically(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write("{")
        for i, name in enumerate(table.names):
            rows = slice(int(table.offset[i]), int(table.offset[i + 1]))
            entry: dict[str, object] = {"boxes": [[float(str(v)) for v in box] for box in table.boxes[rows]]}
            for key, column in (("labels", table.labels), ("ids", table.ids), ("scores", table.scores)):
                if column is not None:
                    entry[key] = [float(str(v)) for v in column[rows]] if key == "scores" else column[rows].tolist()
            file.write(f"{',' if i else ''}\n {json.dumps(name)}: {json.dumps(entry)}")
        file.write("\n}\n")
