"""Select boxes by label, score, size, number per image, and COCO's iscrowd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.config import Settings
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.common import offsets
from roialign_cli.types import BoxTable


def select(path: str, table: BoxTable, settings: Settings) -> BoxTable:
    """Return the table with only the boxes that the settings ask for; images that lose all their boxes stay in it.

    Raises InputError if the settings select by a column that the file lacks, by a label that no box has, or by size
    while the boxes are relative to their image.
    """
    keep = np.ones(len(table.boxes), np.bool_)
    if settings.labels:
        keep &= _mask_of_labels(path, table, settings.labels)
    if settings.min_score > 0:
        keep &= _require_scores(path, table, "min_score") >= settings.min_score
    if not settings.crowd and table.crowd is not None:
        keep &= ~table.crowd
    if settings.min_size > 0:
        if table.relative_boxes is not None:
            raise InputError("boxes-select", f"{path}: min_size: expected boxes in pixels, found relative ones")
        keep &= (table.boxes[:, 2:] - table.boxes[:, :2]).min(axis=1, initial=np.inf) >= settings.min_size
    notes = table.notes
    if settings.max_boxes > 0:
        if table.scores is None and (np.diff(table.offset) > settings.max_boxes).any():
            notes = (*notes, f"boxes have no scores: the first {settings.max_boxes} of each image are kept")
        keep &= _mask_of_highest_scores(table, keep, settings.max_boxes)
    return table if keep.all() else replace(keep_rows(table, keep), notes=notes)


def keep_rows(table: BoxTable, keep: npt.NDArray[np.bool_]) -> BoxTable:
    """Return the table with only the rows for which the mask [N] is true."""
    owner = np.repeat(np.arange(len(table.names)), np.diff(table.offset))[keep]

    def kept(column: Any) -> Any:
        return None if column is None else column[keep]

    return replace(
        table, boxes=table.boxes[keep], labels=kept(table.labels), scores=kept(table.scores), ids=kept(table.ids),
        crowd=kept(table.crowd), relative_boxes=kept(table.relative_boxes),
        rotated=kept(table.rotated), points=kept(table.points),
        shapes=None if table.shapes is None else table.shapes.take(keep),
        offset=offsets(np.bincount(owner, minlength=len(table.names))),
    )  # fmt: skip


def keep_images(table: BoxTable, keep: npt.NDArray[np.bool_]) -> BoxTable:
    """Return the table with only the images for which the mask [M] is true, and their rows."""
    counts = np.diff(table.offset)
    kept = keep_rows(table, np.repeat(keep, counts))
    return replace(
        kept, names=table.names.where(keep), offset=offsets(counts[keep]),
        sizes=None if table.sizes is None else table.sizes[keep],
    )  # fmt: skip


def _mask_of_labels(path: str, table: BoxTable, wanted: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of the boxes with one of the labels. Raises InputError if no box has a label."""
    if table.labels is None:
        raise InputError("boxes-select", f"{path}: labels: expected boxes with labels, found none")
    labels = table.labels.astype(np.str_)
    unknown = sorted(set(wanted) - set(np.unique(labels).tolist()))
    if unknown:
        known = ", ".join(np.unique(labels).tolist()[:20])
        raise InputError("boxes-select", f"{path}: labels: expected some of {known}, found {unknown[0]!r}")
    mask: npt.NDArray[np.bool_] = np.isin(labels, list(wanted))
    return mask


def _require_scores(path: str, table: BoxTable, setting: str) -> npt.NDArray[np.float32]:
    if table.scores is None:
        raise InputError("boxes-select", f"{path}: {setting}: expected boxes with scores, found none")
    return table.scores


def _mask_of_highest_scores(table: BoxTable, keep: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of at most `most` kept boxes per image with the highest scores; earlier boxes win ties.

    Without scores all boxes tie.
    """
    rows = np.flatnonzero(keep)
    owner = np.repeat(np.arange(len(table.names)), np.diff(table.offset))[rows]
    scores = np.zeros(len(rows)) if table.scores is None else -table.scores[rows].astype(np.float64)
    order = np.lexsort((rows, scores, owner))
    first = np.searchsorted(owner[order], owner[order])
    mask = np.zeros(len(keep), np.bool_)
    mask[rows[order[np.arange(len(order)) - first < most]]] = True
    return mask
