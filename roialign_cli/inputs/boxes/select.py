"""Which boxes of a file are wanted: by label, score, size, number per image, and without COCO's crowds."""

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
    """The table without the rows that are not wanted; its images all stay, also those without boxes then.

    InputError: a choice by a column that the file has not, by a label that no box has, or by size where it is not known.
    """
    keep = np.ones(len(table.boxes), np.bool_)
    if settings.labels:
        keep &= _labelled(path, table, settings.labels)
    if settings.min_score > 0:
        keep &= _scores(path, table, "min_score") >= settings.min_score
    if not settings.crowd and table.crowd is not None:
        keep &= ~table.crowd
    if settings.min_size > 0:
        if table.relative_boxes is not None:
            raise InputError("boxes-select", f"{path}: min_size: expected boxes in pixels, found relative ones")
        keep &= (table.boxes[:, 2:] - table.boxes[:, :2]).min(axis=1, initial=np.inf) >= settings.min_size
    if settings.max_boxes > 0:
        keep &= _best(table, keep, settings.max_boxes)
    return table if keep.all() else take(table, keep)


def take(table: BoxTable, keep: npt.NDArray[np.bool_]) -> BoxTable:
    """The rows [N] that are to be kept."""
    owner = np.repeat(np.arange(len(table.names)), np.diff(table.offset))[keep]

    def some(column: Any) -> Any:
        return None if column is None else column[keep]

    return replace(
        table, boxes=table.boxes[keep], labels=some(table.labels), scores=some(table.scores), ids=some(table.ids),
        crowd=some(table.crowd), relative_boxes=some(table.relative_boxes),
        offset=offsets(np.bincount(owner, minlength=len(table.names))),
    )  # fmt: skip


def _labelled(path: str, table: BoxTable, wanted: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    if table.labels is None:
        raise InputError("boxes-select", f"{path}: labels: expected boxes with labels, found none")
    labels = table.labels.astype(np.str_)
    unknown = sorted(set(wanted) - set(np.unique(labels).tolist()))
    if unknown:
        there = ", ".join(np.unique(labels).tolist()[:20])
        raise InputError("boxes-select", f"{path}: labels: expected some of {there}, found {unknown[0]!r}")
    chosen: npt.NDArray[np.bool_] = np.isin(labels, list(wanted))
    return chosen


def _scores(path: str, table: BoxTable, setting: str) -> npt.NDArray[np.float32]:
    if table.scores is None:
        raise InputError("boxes-select", f"{path}: {setting}: expected boxes with scores, found none")
    return table.scores


def _best(table: BoxTable, keep: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.bool_]:
    """Of each image the boxes with the highest scores, the first where there are none or they are equal."""
    rows = np.flatnonzero(keep)
    owner = np.repeat(np.arange(len(table.names)), np.diff(table.offset))[rows]
    scores = np.zeros(len(rows)) if table.scores is None else -table.scores[rows].astype(np.float64)
    order = np.lexsort((rows, scores, owner))
    first = np.searchsorted(owner[order], owner[order])
    chosen = np.zeros(len(keep), np.bool_)
    chosen[rows[order[np.arange(len(order)) - first < most]]] = True
    return chosen
