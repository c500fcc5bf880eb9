"""The frozen dataclasses that the parts of the package exchange.

Sizes are (height, width), boxes are (x1, y1, x2, y2) in pixels of the original image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Floats, Integers, PackedNames
from roialign_cli.shapes import RUNS, Shapes


@dataclass(frozen=True)
class BoxTable:
    """The content of a box file, N boxes of M images: rows offset[i]:offset[i + 1] belong to image names[i].

    Columns that the file does not have are None. Where boxes are relative to their image, `relative_boxes` has the exact
    values from the file, and `boxes` is in pixels only after the plan has multiplied them by the sizes of the images.
    """

    names: PackedNames  # [M]
    offset: Integers  # [M + 1] int64
    boxes: Floats  # [N, 4] float32
    labels: npt.NDArray[np.generic] | None = None  # [N] int64 or strings
    scores: Floats | None = None  # [N] float32
    ids: npt.NDArray[np.generic] | None = None  # [N] int64 or strings
    sizes: Integers | None = None  # [M, 2] (height, width), where the file states the size of every image
    crowd: npt.NDArray[np.bool_] | None = None  # [N] COCO's iscrowd
    shapes: Shapes | None = None  # [N] of regions that are not boxes; in pixels as `boxes` are, or relative as they are
    rotated: Floats | None = None  # [N, 5] centre x, centre y, width, height, angle; of the region kind `rotated`
    points: Floats | None = None  # [N, P, 3] x, y, visibility; of the region kind `points`
    relative_boxes: npt.NDArray[np.float64] | None = None  # [N, 4] as shares of the image's width and height
    source: str = ""  # the file that the table was read from, for error messages
    sha256: str = ""  # of the files and options that the table was read from
    units: str = "xyxy"  # which four numbers the file has, as --box-units names them
    notes: tuple[str, ...] = ()  # for the user: what was left out or found under another name

    def rows_of(self, image: int) -> slice:
        """Return the rows of an image, given its index in `names`."""
        return slice(int(self.offset[image]), int(self.offset[image + 1]))

    def other_run_size(self, image: int, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the (height, width) of the first run lengths of an image that are not over this size, or None."""
        if self.shapes is None:
            return None
        rows = self.rows_of(image)
        wrong = (self.shapes.kind[rows] == RUNS) & (self.shapes.sizes[rows] != size).any(axis=1)
        if not wrong.any():
            return None
        height, width = self.shapes.sizes[rows][int(wrong.argmax())].tolist()
        return height, width


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first image is decoded: the images, their boxes and their sizes."""

    table: BoxTable  # boxes in pixels, clipped if the settings ask for it
    sizes: Integers  # [M, 2] int64 (height, width) after EXIF orientation; zeros where an image cannot be read
    problems: dict[int, str]  # by index of the image: why it cannot be read
    unused_images: int  # images in the folder that the box file does not name
    outside_boxes: int  # boxes that reach out of their image
    empty_boxes: int  # boxes of zero area
    boxes_depend_on_size: bool = False  # boxes were relative or have been clipped, so they depend on the sizes
    table_sha256: str = ""  # of the table of the whole run as it was read, before a shard was taken; see `identity`

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
    """The version of a file, which identifies its content."""

    size: int  # bytes
    modified: int  # nanoseconds since 1970
    sha256: bytes


NO_VERSION = FileVersion(0, 0, bytes(32))  # stands for an image that was not read


@dataclass(frozen=True)
class Progress:
    """The progress of a run: images and boxes that are done or failed, their totals, and bytes of features so far."""

    images: int
    total_images: int
    boxes: int
    total_boxes: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """The result of a run, which the command prints as text or as `--json`."""

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
    notes: tuple[str, ...]  # on the boxes: what was left out, or found under another name
    reused_images: int = 0  # taken over from earlier files
    reused_boxes: int = 0
    computed: dict[str, int] | None = None  # with earlier files: how many images were computed, by reason

    @classmethod
    def of(cls, plan: Plan, *, done: int, failed: int, **rest: Any) -> Summary:
        """Return the summary of a plan given its numbers of done and failed images; `rest` are the remaining fields."""
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
            notes=plan.table.notes,
            **rest,
        )
