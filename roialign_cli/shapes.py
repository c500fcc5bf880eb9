"""Packed shapes of annotations: polygons, run lengths, rotated boxes and points of millions of rows in a few arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers

NONE, POLYGONS, RUNS, ROTATED, POINTS = range(5)
KIND_NAMES = ("none", "polygons", "run lengths", "rotated box", "points")
ROWS_PER_BLOCK = 1 << 14  # whose coordinates are scaled at a time


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
        with np.errstate(over="ignore"):  # values that overflow become infinite, which the check of shapes reports
            parts = [np.asarray(part).astype(np.float32).reshape(-1) for row in rows for part in row.parts]
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
    def uniform(cls, kind: int, numbers: npt.NDArray[np.floating]) -> Shapes:
        """Return N shapes of one part each, given the numbers [N, n] of these parts."""
        rows, length = numbers.shape
        with np.errstate(over="ignore"):  # values that overflow become infinite, which the check of shapes reports
            coordinates = numbers.astype(np.float32).reshape(-1)
        none = np.empty(0, np.uint32)
        return cls(
            np.full(rows, kind, np.uint8), np.arange(rows + 1), np.arange(rows + 1) * length, coordinates,
            np.zeros(rows + 1, np.int64), none, np.zeros((rows, 2), np.int32),
        )  # fmt: skip

    @classmethod
    def join(cls, tables: Sequence[Shapes], row: npt.NDArray[np.integer] | None = None) -> Shapes:
        """Return the rows of several tables after each other; with `row` [N], the i-th of them moves to row[i].

        Tables are moved one by one, so that intermediate results are as small as they are.
        """
        total = sum(map(len, tables))
        row = np.arange(total) if row is None else row
        begins = _offsets([len(table) for table in tables])
        places = [row[begins[i] : begins[i + 1]] for i in range(len(tables))]  # of the rows of each table
        kind, sizes = np.empty(total, np.uint8), np.empty((total, 2), np.int32)
        parts, runs = np.empty(total, np.int64), np.empty(total, np.int64)
        for table, place in zip(tables, places, strict=True):
            kind[place], sizes[place] = table.kind, table.sizes
            parts[place], runs[place] = np.diff(table.first), np.diff(table.run)
        first, run = _offsets(parts), _offsets(runs)
        lengths = np.empty(int(first[-1]), np.int64)
        counts = np.empty(int(run[-1]), np.uint32)
        for table, place in zip(tables, places, strict=True):
            lengths[_ranges(first[place], np.diff(table.first))] = np.diff(table.part)
            counts[_ranges(run[place], np.diff(table.run))] = table.counts
        part = _offsets(lengths)
        coordinates = np.empty(int(part[-1]), np.float32)
        for table, place in zip(tables, places, strict=True):
            moved = _ranges(first[place], np.diff(table.first))
            coordinates[_ranges(part[moved], np.diff(table.part))] = table.coordinates
        return cls(kind, first, part, coordinates, run, counts, sizes)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Shapes:
        """Return some rows: of a mask [N], of indices in any order, or of a slice, whose values are not copied."""
        if isinstance(rows, slice):
            low, high, step = rows.indices(len(self))
            if step == 1:
                return self._between(low, max(low, high))
        index = np.arange(len(self))[rows]
        part_counts, run_counts = np.diff(self.first)[index], np.diff(self.run)[index]
        parts = _ranges(self.first[index], part_counts)
        lengths = np.diff(self.part)[parts]
        return Shapes(
            kind=self.kind[index],
            first=_offsets(part_counts),
            part=_offsets(lengths),
            coordinates=self.coordinates[_ranges(self.part[parts], lengths)],
            run=_offsets(run_counts),
            counts=self.counts[_ranges(self.run[index], run_counts)],
            sizes=self.sizes[index],
        )

    def _between(self, low: int, high: int) -> Shapes:
        first, run = self.first[low : high + 1], self.run[low : high + 1]
        part = self.part[first[0] : first[-1] + 1]
        return Shapes(
            self.kind[low:high], first - first[0], part - part[0], self.coordinates[part[0] : part[-1]],
            run - run[0], self.counts[run[0] : run[-1]], self.sizes[low:high],
        )  # fmt: skip

    def scaled(self, factors: npt.NDArray[np.floating]) -> Shapes:
        """Return shapes whose x and y are multiplied by a row's factors [N, 2]; run lengths and rotated boxes stay."""
        coordinates = self.coordinates.copy()
        widths = np.array([_columns(kind) for kind in range(len(KIND_NAMES))])
        for low in range(0, len(self), ROWS_PER_BLOCK):  # intermediate results are larger than the coordinates
            block = self.take(slice(low, low + ROWS_PER_BLOCK))
            lengths = np.diff(block.part)
            owner = np.repeat(np.repeat(np.arange(len(block)), np.diff(block.first)), lengths)
            kind = block.kind[owner]
            axis = (np.arange(len(owner)) - np.repeat(block.part[:-1], lengths)) % widths[kind]
            moves = (axis < 2) & (kind != ROTATED)
            begin = int(self.part[self.first[low]])
            coordinates[begin : begin + len(owner)][moves] *= factors[low + owner[moves], axis[moves]]
        return Shapes(self.kind, self.first, self.part, coordinates, self.run, self.counts, self.sizes)

    def row_of_part(self, part: int) -> int:
        """Return the row that a part belongs to."""
        return int(np.searchsorted(self.first, part, side="right")) - 1

    def part_of_coordinate(self, index: int) -> int:
        """Return the part that a coordinate belongs to."""
        return int(np.searchsorted(self.part, index, side="right")) - 1


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


def encode_crop(bitmap: npt.NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Return the run lengths over an image of `size` (height, width) of a mask [h, w] whose first pixel is (top, left)."""
    column, row = np.divmod(np.flatnonzero(bitmap.T), bitmap.shape[0])
    pixels = (column + left) * size[0] + row + top
    gaps = np.flatnonzero(np.diff(pixels) != 1)
    begins, last = pixels[np.concatenate([[0], gaps + 1])], pixels[np.append(gaps, len(pixels) - 1)]
    ends = np.stack([begins, last + 1], axis=1).reshape(-1)
    return np.diff(np.concatenate([[0], ends, [size[0] * size[1]]])).astype(np.uint32)


def bound_runs(counts: npt.NDArray[np.integer], height: int) -> tuple[int, int, int, int]:
    """Return the box (x1, y1, x2, y2) around the pixels that are set, of which there must be some."""
    ends = np.cumsum(counts, dtype=np.int64)
    begins = ends - counts
    filled = np.flatnonzero(counts[1::2]) * 2 + 1
    left, top = np.divmod(begins[filled], height)
    right, bottom = np.divmod(ends[filled] - 1, height)
    if (left < right).any():  # a run over the end of a column covers its last row, and the first one of the next
        return int(left.min()), 0, int(right.max()) + 1, height
    return int(left.min()), int(top.min()), int(right.max()) + 1, int(bottom.max()) + 1


def rotated_corners(boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the corners [N, 4, 2] of rotated boxes [N, 5]: top left, top right, bottom right, bottom left before turning."""
    x, y, w, h, degrees = np.asarray(boxes, np.float64).T[..., None]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along, down = w / 2 * np.array([-1, 1, 1, -1]), h / 2 * np.array([-1, -1, 1, 1])
    return np.stack([x + down * sin + along * cos, y + down * cos - along * sin], axis=2)


def _columns(kind: int) -> int:
    """Return the numbers of one row of a part."""
    return {ROTATED: 5, POINTS: 3}.get(kind, 2)


def _offsets(counts: npt.ArrayLike) -> Integers:
    result = np.zeros(np.size(counts) + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def _ranges(begins: Integers, counts: Integers) -> Integers:
    """Return the indices of ranges begins[i]:begins[i] + counts[i] after each other."""
    offsets = _offsets(counts)
    return np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], counts)
