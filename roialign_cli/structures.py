"""The frozen dataclasses that travel between the parts; sizes are (height, width), boxes (x1, y1, x2, y2) in pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BoxTable:
    """What a box file says: rows offset[i]:offset[i+1] belong to image names[i].

    boxes [N, 4] float32. labels and ids are int64 or strings, scores float32; each [N], or None where the file has none.
    sizes [M, 2] (height, width) of the images, where the file states all of them. crowd [N]: COCO's iscrowd. Where
    boxes are relative to their image, shares [N, 4] float64 has them exactly, and boxes are pixels once sizes are known.
    """

    names: tuple[str, ...]
    offset: Integers
    boxes: Floats
    labels: npt.NDArray[np.generic] | None = None
    scores: Floats | None = None
    ids: npt.NDArray[np.generic] | None = None
    sizes: Integers | None = None
    crowd: npt.NDArray[np.bool_] | None = None
    shares: npt.NDArray[np.float64] | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything known before the first image is decoded: which images, which rows, how big.

    sizes [M, 2] int64 as (height, width) after EXIF orientation, zeros where an image cannot be read; `problems` says why.
    `sized`: boxes depend on the sizes, having been clipped or relative.
    """

    table: BoxTable
    sizes: Integers
    problems: dict[int, str]
    unused_images: int
    outside_boxes: int
    empty_boxes: int
    sized: bool = False

    @property
    def images(self) -> int:
        """Number of images, M."""
        return len(self.table.names)

    @property
    def rows(self) -> int:
        """Number of boxes, N."""
        return len(self.table.boxes)


@dataclass(frozen=True)
class Layer:
    """One tapped layer: a single map, or the levels of a pyramid, finest first."""

    name: str
    channels: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone wants its images: [0, 1] RGB resized, normalised, zero-padded to a multiple of `multiple` pixels.

    resize is (short side, longest side or None) or None for the image's own size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: tuple[int, int | None] | None = None
    antialias: bool = True
    multiple: int = 1


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
