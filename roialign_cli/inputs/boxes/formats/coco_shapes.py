"""Read the shapes of COCO annotations: segmentations of polygons or run lengths, boxes with an angle, and keypoints.

What is not pooled is not decoded: each kind of region has a structure of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from roialign_cli.inputs.boxes.common import format_error, offsets
from roialign_cli.inputs.boxes.shape_parsing import Number, Runs, enclosing_box, numbers, points, polygon, rotated, runs
from roialign_cli.inputs.boxes.units import Numbers, Units
from roialign_cli.shapes import NONE, POINTS, POLYGONS, ROTATED, RUNS, Shapes

ROTATED_NUMBERS = 5  # of a bbox: centre x, centre y, width, height, angle in degrees, counter-clockwise (detectron2)


class Annotation(msgspec.Struct, gc=False):
    """One entry of `annotations`; other keys, such as segmentations, are skipped and not decoded."""

    image_id: int | str
    bbox: tuple[Number, Number, Number, Number]
    category_id: int | None = None
    id: int | str | None = None
    score: float | None = None
    iscrowd: int = 0


class Outlined(msgspec.Struct, gc=False):
    """An entry with its segmentation, or whose bbox may be missing or rotated."""

    image_id: int | str
    bbox: list[Number] | None = None
    segmentation: list[list[Number]] | Runs | None = None
    category_id: int | None = None
    id: int | str | None = None
    score: float | None = None
    iscrowd: int = 0


class Pointed(msgspec.Struct, gc=False):
    """An entry with its keypoints: x, y, visibility, x, y, ..."""

    image_id: int | str
    bbox: list[Number] | None = None
    keypoints: list[Number] | None = None
    category_id: int | None = None
    id: int | str | None = None
    score: float | None = None
    iscrowd: int = 0


AnyAnnotation = Annotation | Outlined | Pointed
TYPES: dict[str, Any] = {"box": Annotation, "rotated": Outlined, "mask": Outlined, "points": Pointed}


def box_numbers(annotations: Sequence[AnyAnnotation], units: Units, where: Callable[[int], str]) -> Numbers:
    """Return the four numbers of every box [n, 4] in the units of the file, those of its shape if it has none.

    `where` returns the place of an annotation, for errors.
    """
    try:
        found = np.array([annotation.bbox for annotation in annotations], np.float64)
        if found.shape[1:] == (4,) or not annotations:
            return found.reshape(-1, 4)
    except (ValueError, TypeError):
        pass
    return np.array([_box(where(i), annotation, units) for i, annotation in enumerate(annotations)])


def _box(where: str, annotation: AnyAnnotation, units: Units) -> list[float]:
    box = annotation.bbox
    if box is None or len(box) == ROTATED_NUMBERS:
        corners = _bound(where, annotation) if box is None else enclosing_box(rotated(where, box))
        found: list[float] = units.numbers(np.array([corners]))[0].tolist()
        return found
    if len(box) != 4:
        raise format_error(where, f"bbox: expected four numbers, or five with an angle, found {len(box)}")
    wrong = next((value for value in box if isinstance(value, str) and not value.startswith("\0")), None)
    if wrong is not None:
        raise format_error(where, f"bbox: expected four numbers, found {wrong!r}")
    return [float(value[1:]) if isinstance(value, str) else value for value in box]


def _bound(where: str, annotation: AnyAnnotation) -> list[float]:
    """Return the box around the segmentation or the keypoints of an annotation without bbox. Raises InputError."""
    if isinstance(annotation, Pointed) and annotation.keypoints:
        return enclosing_box(points(where, _triples(annotation.keypoints)))
    found = annotation.segmentation if isinstance(annotation, Outlined) else None
    if isinstance(found, Runs):
        return enclosing_box(runs(where, found.size, found.counts))
    if not found:
        raise format_error(where, "expected bbox, segmentation or keypoints, found none")
    xs, ys = ([value for ring in found for value in ring[axis::2]] for axis in (0, 1))
    if not xs or len(xs) != len(ys) or any(isinstance(value, str) for value in chain(xs, ys)):
        return enclosing_box(polygon(where, found))  # which says what is wrong
    return [min(xs), min(ys), max(xs), max(ys)]  # type: ignore[list-item]


def _triples(values: list[Number]) -> list[list[Number]]:
    return [values[i : i + 3] for i in range(0, len(values), 3)]


def pack_shapes(annotations: Sequence[AnyAnnotation], region: str, where: Callable[[int], str]) -> Shapes:
    """Return the shapes of annotations that a region may be made of; `where` returns the place of one, for errors.

    Coordinates are taken in bulk. A wrong number of them is found when the table is checked.
    """
    kind = [NONE] * len(annotations)
    sizes = np.zeros((len(annotations), 2), np.int32)
    part_counts, run_counts = [0] * len(annotations), [0] * len(annotations)
    parts: list[list[Number]] = []
    masks: list[Any] = []
    for i, annotation in enumerate(annotations):
        shape: list[list[Number]] | None = None
        if isinstance(annotation, Pointed):
            if annotation.keypoints:
                kind[i], shape = POINTS, [annotation.keypoints]
        elif isinstance(annotation, Outlined):
            box, outline = annotation.bbox, annotation.segmentation
            if box is not None and len(box) == ROTATED_NUMBERS and (region == "rotated" or not outline):
                kind[i], shape = ROTATED, [box]
            elif isinstance(outline, Runs):
                mask = runs(where(i), outline.size, outline.counts)
                masks.append(mask.counts)
                kind[i], sizes[i], run_counts[i] = RUNS, mask.size, len(masks[-1])
            elif outline:
                kind[i], shape = POLYGONS, outline
        if shape:
            part_counts[i] = len(shape)
            parts += shape
    lengths = list(map(len, parts))
    try:
        with np.errstate(over="ignore"):  # values that overflow become infinite, which the check of shapes reports
            coordinates = np.fromiter(chain.from_iterable(parts), np.float32, sum(lengths))
    except ValueError:
        _raise_wrong_number(annotations, where)
    return Shapes(
        kind=np.array(kind, np.uint8),
        first=offsets(part_counts),
        part=offsets(lengths),
        coordinates=coordinates,
        run=offsets(run_counts),
        counts=np.concatenate([*masks, np.empty(0, np.int64)]).astype(np.uint32),
        sizes=sizes,
    )


def _raise_wrong_number(annotations: Sequence[AnyAnnotation], where: Callable[[int], str]) -> None:
    """Raise the InputError of the first annotation with NaN or text among its coordinates."""
    for i, annotation in enumerate(annotations):
        if isinstance(annotation, Pointed):
            numbers(where(i), annotation.keypoints or [])
        elif isinstance(annotation, Outlined):
            found = annotation.segmentation
            numbers(where(i), list(chain.from_iterable(found if isinstance(found, list) else [])))
            numbers(where(i), annotation.bbox or [])
