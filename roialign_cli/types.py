"""The frozen dataclasses that travel between the parts; sizes are (height, width), boxes (x1, y1, x2, y2) in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Floats, Integers, PackedNames


@dataclass(frozen=True)
class BoxTable:
    """What a box file says: rows offset[i]:offset[i+1] belong to image names[i].

    boxes [N, 4] float32. labels and ids are int64 or strings, scores float32; each [N], or None where the file has none.
    sizes [M, 2] (height, width) of the images, where the file states all of them. crowd [N]: COCO's iscrowd. Where
    boxes are relative to their image, shares [N, 4] float64 has them exactly, and boxes are pixels once sizes are known.
    """

    names: PackedNames
    offset: Integers
    boxes: Floats
    labels: npt.NDArray[np.generic] | None = None
    scores: Floats | None = None
    ids: npt.NDArray[np.generic] | None = None
    sizes: Integers | None = None
    crowd: npt.NDArray[np.bool_] | None = None
    relative_boxes: npt.NDArray[np.float64] | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything known before the first image is decoded: which images, which rows, how big.

    sizes [M, 2] int64 as (height, width) after EXIF orientation, zeros where an image cannot be read; `problems` says why.
    `sized`: boxes depend on the sizes, having been clipped or relative. `table_sha256` identifies the table of the whole run
    as it was read, see `identity`.
    """

    table: BoxTable
    sizes: Integers
    problems: dict[int, str]
    unused_images: int
    outside_boxes: int
    empty_boxes: int
    boxes_depend_on_size: bool = False
    table_sha256: str = ""

    @property
    def images(self) -> int:
        """Number of images, M."""
        return len(self.table.names)

    @property
    def rows(self) -> int:
        """Number of boxes, N."""
        return len(self.table.boxes)


@dataclass(frozen=True)
class FileVersion:
    """Identify the content of a file: size in bytes, time of modification in nanoseconds since 1970, SHA-256."""

    size: int
    modified: int
    sha256: bytes


NO_VERSION = FileVersion(0, 0, bytes(32))  # of an image that was not read


@dataclass(frozen=True)
class Progress:
    """How far a run is: images and boxes done or failed, of how many, and bytes of features so far."""

    images: int
    total_images: int
    boxes: int
    total_boxes: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """The result of a run, as printed and as `--json`."""

    output: str
    images: int
    done: int
    failed: int
    pending: int
    boxes: int
    outside_boxes: int
    empty_boxes: int
    unused_images: int
    nonfinite_values: int
    saturated_values: int
    bytes: int
    seconds: float
    finished: bool
    interrupted: bool
    already_finished: bool
    features: dict[str, tuple[int, ...]]
    failures: dict[str, str]

    @classmethod
    def of(cls, plan: Plan, *, done: int, failed: int, **rest: Any) -> Summary:
        """The summary of a plan of which so many images are done and failed; the rest are the other fields, as they are."""
        pending = plan.images - done - failed
        return cls(
            images=plan.images,
            done=done,
            failed=failed,
            pending=pending,
            boxes=plan.rows,
            outside_boxes=plan.outside_boxes,
            empty_boxes=plan.empty_boxes,
            unused_images=plan.unused_images,
            finished=pending == 0,
            interrupted=pending > 0,
            **rest,
        )
