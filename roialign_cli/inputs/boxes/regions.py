"""Turn the shapes of annotations into the regions that a run pools: rotated boxes, masks or points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Floats, Integers
from roialign_cli.config import Settings
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.common import as_boxes
from roialign_cli.inputs.boxes.shape_parsing import shape_error
from roialign_cli.inputs.boxes.units import Numbers, enclose_rotated
from roialign_cli.inputs.boxes.validate import row_location
from roialign_cli.shapes import KIND_NAMES, POINTS, POLYGONS, ROTATED, RUNS, Shapes, rotated_corners
from roialign_cli.types import BoxTable

REGION_WORDS = {"rotated": "rotated boxes", "mask": "masks", "points": "points"}
ONE_WORDS = {"rotated": "rotated box", "mask": "mask", "points": "points"}
EQUAL_AREAS = 1e-9  # relative difference of areas that is rounding
ROWS_PER_BLOCK = 1 << 16  # four-point polygons that are fitted at a time


def in_pixels(table: BoxTable, sizes: Integers) -> BoxTable:
    """Return a table of relative boxes and shapes in pixels; others are returned as they are.

    Raises InputError for rotated boxes in relative units: their angle says nothing without the sides of the image.
    """
    if table.relative_boxes is None:
        return table
    known = np.repeat(sizes[:, ::-1], np.diff(table.offset), axis=0)
    boxes = as_boxes(table.relative_boxes * np.concatenate([known, known], axis=1))
    shapes = table.shapes
    if shapes is not None:
        turned = shapes.kind == ROTATED
        if turned.any():
            where = row_location(table.source, table, int(turned.argmax()))
            raise shape_error(where, f"expected a rotated box in pixels, found units {table.units}")
        shapes = shapes.scaled(known.astype(np.float64))
    return replace(table, boxes=boxes, relative_boxes=None, shapes=shapes)


def resolve(where: str, table: BoxTable, sizes: Integers, settings: Settings) -> BoxTable:
    """Return the table with the regions that the settings ask for, given boxes and shapes in pixels.

    rotated: `rotated` is set, and `boxes` are the enclosing boxes; mask: `shapes` are polygons and run lengths only; points:
    `points` is set. `sizes` [M, 2] are (height, width), zeros where an image is not known. Raises InputError naming an
    annotation that lacks such a region, unless the settings replace it by its box, which a note counts.
    """
    if settings.region == "box" or table.shapes is None:
        return table
    if settings.region == "rotated":
        return _rotated(where, table, table.shapes, settings)
    if settings.region == "mask":
        return _masks(where, table, table.shapes, sizes, settings)
    return _points(where, table, table.shapes)


def _rotated(where: str, table: BoxTable, shapes: Shapes, settings: Settings) -> BoxTable:
    shapes = _opened(shapes)
    stated, corners = shapes.kind == ROTATED, _has_four_points(shapes)
    missing = ~(stated | corners)
    notes = _note_missing(where, table, shapes, missing, "rotated", settings.region_missing)
    rotated = np.zeros((len(shapes), 5))
    rotated[stated] = _numbers_of(shapes, stated, 5)
    rows = np.flatnonzero(corners)
    for begin in range(0, len(rows), ROWS_PER_BLOCK):
        block = rows[begin : begin + ROWS_PER_BLOCK]
        rotated[block] = smallest_rectangles(_numbers_of(shapes, block, 8).reshape(-1, 4, 2))
    boxes = table.boxes.copy()
    kept = table.boxes[missing].astype(np.float64)
    rotated[missing, :2], rotated[missing, 2:4] = (kept[:, :2] + kept[:, 2:]) / 2, kept[:, 2:] - kept[:, :2]
    boxes[~missing] = as_boxes(enclose_rotated(rotated[:, :4], rotated[:, 4]))[~missing]
    return replace(table, boxes=boxes, rotated=rotated.astype(np.float32), shapes=None, notes=notes)


def _masks(where: str, table: BoxTable, shapes: Shapes, sizes: Integers, settings: Settings) -> BoxTable:
    _check_run_sizes(where, table, shapes, sizes)
    whole = (shapes.kind == POLYGONS) | (shapes.kind == RUNS)
    turned = shapes.kind == ROTATED
    missing = ~(whole | turned)
    notes = _note_missing(where, table, shapes, missing, "mask", settings.region_missing)
    if not whole.all():
        x1, y1, x2, y2 = table.boxes[missing].T
        made = (
            Shapes.uniform(POLYGONS, rotated_corners(_numbers_of(shapes, turned, 5)).reshape(-1, 8)),
            Shapes.uniform(POLYGONS, np.stack([x1, y1, x2, y1, x2, y2, x1, y2], axis=1)),
        )
        rows = np.concatenate([np.flatnonzero(mask) for mask in (whole, turned, missing)])
        shapes = Shapes.join([shapes.take(whole), *made], rows)
    away = int(_lie_outside(shapes, table.boxes).sum())
    if away:
        notes = (*notes, f"{away} of {len(missing)} masks lie outside of their boxes: their features are zeros")
    return replace(table, shapes=shapes, notes=notes)


def _lie_outside(shapes: Shapes, boxes: Floats) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of the polygons no corner of which can lie in their box."""
    found = np.zeros(len(shapes), np.bool_)
    rows = np.flatnonzero(shapes.kind == POLYGONS)
    if not len(rows):
        return found
    polygons = shapes.take(rows)
    corners = polygons.coordinates.reshape(-1, 2)
    begins = polygons.part[polygons.first[:-1]] // 2
    low, high = np.minimum.reduceat(corners, begins), np.maximum.reduceat(corners, begins)
    found[rows] = ((high < boxes[rows, :2]) | (low > boxes[rows, 2:])).any(axis=1)
    return found


def _points(where: str, table: BoxTable, shapes: Shapes) -> BoxTable:
    _note_missing(where, table, shapes, shapes.kind != POINTS, "points", "error")
    counts = np.diff(shapes.part) // 3
    different = counts != counts[:1]
    if different.any():
        row = int(different.argmax())
        expected = f"expected {counts[0]} points as in the first annotation"
        raise shape_error(row_location(where, table, row), f"{expected}, found {counts[row]}")
    number = int(counts[0]) if len(counts) else 1  # the format has at least one
    return replace(table, shapes=None, points=shapes.coordinates.reshape(len(shapes), number, 3))


def _opened(shapes: Shapes) -> Shapes:
    """Return shapes in which a polygon of five points that ends where it begins, as many tools write it, has four."""
    single = (shapes.kind == POLYGONS) & (np.diff(shapes.first) == 1)
    rows = np.flatnonzero(single)
    part = shapes.first[:-1][rows]
    begins, lengths = shapes.part[part], np.diff(shapes.part)[part]
    five = lengths == 10
    numbers = shapes.coordinates[begins[five, None] + np.arange(10)]
    closed = rows[five][(numbers[:, :2] == numbers[:, 8:]).all(axis=1)]
    if not len(closed):
        return shapes
    others = np.setdiff1d(np.arange(len(shapes)), closed)
    corners = _numbers_of(shapes, closed, 8)
    return Shapes.join([shapes.take(others), Shapes.uniform(POLYGONS, corners)], np.concatenate([others, closed]))


def smallest_rectangles(corners: Numbers) -> Numbers:
    """Return rotated boxes [N, 5] of least area around four points [N, 4, 2]; the width points from the first to the second.

    A side of such a rectangle lies along two of the points, so the lines through all pairs of points are tried. Of
    rectangles of equal area the first wins; points of no extent give an upright box without area.
    """
    pairs = np.array([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)])
    sides = corners[:, pairs[:, 1]] - corners[:, pairs[:, 0]]
    length = np.linalg.norm(sides, axis=2, keepdims=True)
    along = np.where(length > 0, sides / np.where(length > 0, length, 1), [1.0, 0.0])
    down = np.stack([-along[..., 1], along[..., 0]], axis=2)  # a quarter turn clockwise on the screen
    shifted = corners - corners[:, :1]  # small numbers lose less to rounding
    spans = [np.einsum("npd,nkd->npk", axis, shifted) for axis in (along, down)]
    low, high = (np.stack([bound(span, axis=2) for span in spans], axis=2) for bound in (np.min, np.max))
    area = np.prod(high - low, axis=2)
    best = (area <= area.min(axis=1, keepdims=True) * (1 + EQUAL_AREAS)).argmax(axis=1)
    row = np.arange(len(corners))
    low, high, along, down = low[row, best], high[row, best], along[row, best], down[row, best]
    middle, extent = (low + high) / 2, high - low
    centre = corners[:, 0] + middle[:, :1] * along + middle[:, 1:] * down
    # Of the four directions of the sides, the width points in that which is closest to the way from first to second point.
    wanted = np.where(length[:, 0] > 0, sides[:, 0], -sides[:, 2])
    directions = np.stack([along, down, -along, -down], axis=1)
    turn = np.einsum("nkd,nd->nk", directions, wanted).argmax(axis=1)
    width = directions[row, turn]
    extent = np.where((turn % 2 == 1)[:, None], extent[:, ::-1], extent)
    angle = np.degrees(np.arctan2(-width[:, 1], width[:, 0])) + 0.0  # no -0
    return np.concatenate([centre, extent, angle[:, None]], axis=1)


def _has_four_points(shapes: Shapes) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of the shapes that are one polygon of four points."""
    single = (shapes.kind == POLYGONS) & (np.diff(shapes.first) == 1)
    lengths = np.append(np.diff(shapes.part), 0)  # rows without parts look at the one after them, or at this
    found: npt.NDArray[np.bool_] = single & (lengths[shapes.first[:-1]] == 8)
    return found


def _numbers_of(shapes: Shapes, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_], length: int) -> Numbers:
    """Return the coordinates [n, length] of rows with one part of this length each."""
    begins = shapes.part[shapes.first[:-1][rows]]
    return np.asarray(shapes.coordinates[begins[:, None] + np.arange(length)], np.float64)


def _note_missing(
    where: str, table: BoxTable, shapes: Shapes, missing: npt.NDArray[np.bool_], region: str, otherwise: str
) -> tuple[str, ...]:
    """Return the notes of the table, one more if some annotations lack a region and `otherwise` says to take their box.

    Raises InputError naming the first of them if it does not.
    """
    count = int(missing.sum())
    if not count:
        return table.notes
    word = ONE_WORDS[region]
    if otherwise == "box":
        return (*table.notes, f"{count} of {len(missing)} annotations have no {word}: pooled by their box")
    row, article = int(missing.argmax()), "" if region == "points" else "a "
    message = (
        f"expected {article}{word}, found {_found(shapes, row)}; {count} of {len(missing)} annotations have no {word}"
    )
    hint = "" if region == "points" else "--region-missing box pools such annotations by their box"
    raise InputError("region-missing", f"{row_location(where, table, row)}: {message}", hint)


def _found(shapes: Shapes, row: int) -> str:
    shape = shapes[row]
    if shape.kind == POLYGONS:
        sizes = ", ".join(str(len(np.asarray(part))) for part in shape.parts)
        return f"a polygon of {sizes} points" if len(shape.parts) == 1 else f"polygons of {sizes} points"
    return "only a box" if shape.kind == 0 else KIND_NAMES[shape.kind]


def _check_run_sizes(where: str, table: BoxTable, shapes: Shapes, sizes: Integers) -> None:
    """Raise InputError naming the first mask of run lengths over another size than that of its image, where it is known."""
    of_row = np.repeat(sizes, np.diff(table.offset), axis=0)
    wrong = (shapes.kind == RUNS) & (of_row.min(axis=1, initial=2**31) > 0) & (shapes.sizes != of_row).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        (height, width), (rows, columns) = of_row[row].tolist(), shapes.sizes[row].tolist()
        expected = f"expected a mask of the image's height x width, {height} x {width}"
        raise shape_error(row_location(where, table, row), f"{expected}, found {rows} x {columns}")
