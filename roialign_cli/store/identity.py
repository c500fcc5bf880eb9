"""Hash the images and boxes of a run, which identify it: a resumed run and all shards must have the same hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.types import BoxTable, Plan


def table_sha256(table: BoxTable) -> str:
    """Return the SHA-256 of a table: names, offsets, boxes, labels, scores, ids and regions, in this order.

    Relative boxes count as they were read, so the hash does not depend on the sizes of the images.
    """
    boxes = table.boxes if table.relative_boxes is None else table.relative_boxes
    columns = (table.labels, table.scores, table.ids)
    present = "".join("-" if column is None else column.dtype.kind for column in columns)
    present += "r" * (table.rotated is not None) + "p" * (table.points is not None) + "s" * (table.shapes is not None)
    arrays = [table.names.text, table.names.ends, table.offset, boxes, *(c for c in columns if c is not None)]
    return _sha256(present.encode(), [*arrays, *_regions(table)])


def plan_sha256(plan: Plan) -> str:
    """Return the SHA-256 of a plan: names, offsets, boxes, sizes and regions, which all shards of a run share."""
    table = plan.table
    return _sha256(b"", (table.names.text, table.names.ends, table.offset, table.boxes, plan.sizes, *_regions(table)))


def _regions(table: BoxTable) -> list[npt.NDArray[Any]]:
    """Return the arrays of regions that are not boxes."""
    shapes = [] if table.shapes is None else [getattr(table.shapes, field.name) for field in fields(table.shapes)]
    return [*(values for values in (table.rotated, table.points) if values is not None), *shapes]


def _sha256(begin: bytes, arrays: Iterable[npt.NDArray[np.generic]]) -> str:
    digest = hashlib.sha256(begin)
    for values in arrays:
        digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()
