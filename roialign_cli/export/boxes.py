"""Export boxes without their features: as native JSON, or as COCO results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from roialign_cli.inputs.boxes.native_json import box_entry, exact, write_entries
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.regions import Regions

NUMBER = re.compile(r"0|[1-9][0-9]*")  # other digits, such as 007, are another name than 7


def write_native(_: FeatureFile, __: Sequence[str], images: Iterator[Regions], path: Path, ___: str) -> None:
    """Write {"image": {"boxes": [[x1, y1, x2, y2], ...], "labels": [...], "scores": [...]}}, in pixels, exactly.

    Rotated boxes and points are written, too; of masks, which files do not hold, the boxes around them.
    """

    def entry(regions: Regions) -> dict[str, Any]:
        labels, ids = (None if column is None else _plain(column) for column in (regions.labels, regions.ids))
        others = {"rotated": regions.rotated, "points": regions.points}
        shapes = {key: exact(column) for key, column in others.items() if column is not None}
        return box_entry(regions.boxes, labels, ids, regions.scores) | shapes

    with path.open("w", encoding="utf-8") as file:
        write_entries(file, ((regions.name, entry(regions)) for regions in images))


def write_coco_results(_: FeatureFile, __: Sequence[str], images: Iterator[Regions], path: Path, ___: str) -> None:
    """Write [{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, ...] as detectors do.

    Ids of images that are numbers without leading zeros are written as numbers. A box without a label has category 1, one
    without a score 1.0.
    """
    with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("[")
        first = True
        for regions in images:
            image = int(regions.name) if NUMBER.fullmatch(regions.name) else regions.name
            labels = [1] * len(regions) if regions.labels is None else _plain(regions.labels)
            scores = [1.0] * len(regions) if regions.scores is None else exact(regions.scores)
            for box, label, score in zip(regions.boxes.astype(float), labels, scores, strict=True):
                x1, y1, x2, y2 = box.tolist()
                result = {"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
                file.write(f"{'' if first else ','}\n {json.dumps(result)}")
                first = False
        file.write("\n]\n")


def _plain(column: npt.NDArray[Any]) -> list[int] | list[str]:
    """Return labels or ids as numbers or text."""
    return [
        value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in column.tolist()
    ]
