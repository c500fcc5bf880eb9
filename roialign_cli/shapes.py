"""Packed shapes of annotations: polygons, run lengths, rotated boxes and points of millions of rows in a few arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers

NONE, POLYGONS, RUNS, ROTATED, POINTS = range(5)
KIND_NAMES = ("none", "polygons", "run lengths", "rotated box", "points")


@dataclass(frozen=True)
class Shape:
    """The shape of one annotation.

    parts: of POLYGONS one [n, 2] (x, y) per ring; of ROTATED one [1, 5] (centre x, centre y, width, height, angle in degrees,
    counter-clockwise as seen on the screen); of POINTS one [n, 3] (x, y, visibility); of RUNS none. Coordinates are
    continuous: pixel (row r, column c) is the square [c, c + 1] x [r, r + 1].
    counts: of RUNS, COCO's: lengths of alternating runs of 0 and 1, column after column, over an image of `size`.
    """

    kind: int
    parts: Sequence[npt.ArrayLike] = ()
    counts: npt.ArrayLike = ()
    size: tuple[int, int] = (0, 0)


NO_SHAPE = Shape(NONE)


@dataclass(frozen=True)
class Shapes:
    """The shapes of N rows, packed.

    Row i has the parts first[i]:first[i + 1], part j the coordinates coordinates[part[j]:part[j + 1]], and row i the run
    lengths counts[run[i]:run[i + 1]].
    """

    kind: npt.NDArray[np.uint8]  # [N]
    first: Integers  # [N + 1]
    part: Integers  # [parts + 1]
    coordinates: npt.NDArray[np.float32]
    run: Integers  # [N + 1]
    counts: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int32]  # [N, 2] (height, width) of the image that run lengths are over, otherwise zeros

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, row: int) -> Shape:
        """Return the shape of a row."""
        kind, width = int(self.kind[row]), _columns(int(self.kind[row]))
        parts = [
            self.coordinates[self.part[j] : self.part[j + 1]].reshape(-1, width)
            for j in range(int(self.first[row]), int(self.first[row + 1]))
        ]
        height, length = self.sizes[row].tolist()
        return Shape(kind, parts, self.counts[self.run[row] : self.run[row + 1]], (height, length))

    @classmethod
    def pack(cls, shapes: Iterable[Shape]) -> Shapes:
        """Pack shapes."""
        rows = list(shapes)
        parts = [np.asarray(part, np.float32).reshape(-1) for row in rows for part in row.parts]
        counts = [np.asarray(row.counts, np.uint32) for row in rows]
        return cls(
            kind=np.array([row.kind for row in rows], np.uint8),
            first=_offsets([len(row.parts) for row in rows]),
            part=_offsets([len(part) for part in parts]),
            coordinates=np.concatenate([*parts, np.empty(0, np.float32)]),
            run=_offsets([len(values) for values in counts]),
            counts=np.concatenate([*counts, np.empty(0, np.uint32)]),
            sizes=np.array([row.size for row in rows], np.int32).reshape(-1, 2),
        )

    @classmethod
    def join(cls, tables: Sequence[Shapes]) -> Shapes:
        """Return the rows of several tables after each other."""

        def joined(offsets: list[Integers]) -> Integers:
            return _offsets(np.concatenate([*map(np.diff, offsets), np.empty(0, np.int64)]))

        return cls(
            kind=np.concatenate([*(table.kind for table in tables), np.empty(0, np.uint8)]),
            first=joined([table.first for table in tables]),
            part=joined([table.part for table in tables]),
            coordinates=np.concatenate([*(table.coordinates for table in tables), np.empty(0, np.float32)]),
            run=joined([table.run for table in tables]),
            counts=np.concatenate([*(table.counts for table in tables), np.empty(0, np.uint32)]),
            sizes=np.concatenate([*(table.sizes for table in tables), np.empty((0, 2), np.int32)]),
        )

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Shapes:
        """Return some rows: of a mask [N], of indices in any order, or of a slice."""
        index = np.arange(len(self))[rows]
        parts, first = _take_ranges(self.first, index)
        coordinates, part = _take_ranges(self.part, parts)
        runs, run = _take_ranges(self.run, index)
        return Shapes(
            self.kind[index], first, part, self.coordinates[coordinates], run, self.counts[runs], self.sizes[index]
        )

    def scaled(self, factors: npt.NDArray[np.floating]) -> Shapes:
        """Return shapes whose x and y are multiplied by a row's factors [N, 2]; run lengths and rotated boxes stay."""
        counts = np.diff(self.part)
        owner = np.repeat(np.repeat(np.arange(len(self)), np.diff(self.first)), counts)
        place = np.arange(len(self.coordinates)) - np.repeat(self.part[:-1], counts)
        width = np.array([_columns(kind) for kind in range(len(KIND_NAMES))])[self.kind[owner]]
        axis = place % width
        moves = (axis < 2) & (self.kind[owner] != ROTATED)
        coordinates = self.coordinates.copy()
        coordinates[moves] *= factors[owner[moves], axis[moves]]
        return Shapes(self.kind, self.first, self.part, coordinates, self.run, self.counts, self.sizes)


def decode_counts(text: bytes) -> npt.NDArray[np.int64]:
    """Return the run lengths of COCO's compressed form; they may be wrong (negative) if the text is.

    A number is a little-endian run of 5-bit groups in characters from "0" on, whose sixth bit says that another follows; from
    the fourth on, numbers are differences from the one two places before (pycocotools, maskApi.c, rleFrString).
    Raises ValueError for characters out of range and a number that does not end.
    """
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(groups) == 0:
        return groups
    last = (groups & 32) == 0
    if groups.min() < 0 or groups.max() > 63 or not last[-1]:
        raise ValueError("run lengths are cut off or have characters out of range")
    ends = np.flatnonzero(last)
    begins = np.concatenate([[0], ends[:-1] + 1])
    if (ends - begins).max() > 11:
        raise ValueError("a run length has too many digits")
    place = np.arange(len(groups)) - np.repeat(begins, ends - begins + 1)
    values = np.add.reduceat((groups & 31) << (5 * place), begins)
    values -= np.where(groups[ends] & 16, np.int64(1) << (5 * (ends - begins + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def encode_bitmap(bitmap: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Return the run lengths of a mask [H, W], as `Shape` has them."""
    flat = bitmap.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], changes, [flat.size]])).astype(np.uint32)


def _columns(kind: int) -> int:
    """Return the numbers of one row of a part."""
    return {ROTATED: 5, POINTS: 3}.get(kind, 2)


def _offsets(counts: npt.ArrayLike) -> Integers:
    result = np.zeros(np.size(counts) + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def _take_ranges(ends: Integers, rows: Integers) -> tuple[Integers, Integers]:
    """Return the indices of ranges ends[row]:ends[row + 1] after each other, and the offsets of the ranges among these."""
    counts = np.diff(ends)[rows]
    offsets = _offsets(counts)
    return np.arange(offsets[-1]) + np.repeat(ends[rows] - offsets[:-1], counts), offsets
