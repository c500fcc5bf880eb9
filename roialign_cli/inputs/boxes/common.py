"""Shared parts of the box file readers: their input, their errors, columns, and building tables from entries or rows."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers, PackedNames
from roialign_cli.config import Settings
from roialign_cli.errors import InputError, quoted
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.inputs.boxes.units import Units
from roialign_cli.shapes import NO_SHAPE, Shape, Shapes
from roialign_cli.types import BoxTable

Column = npt.NDArray[np.generic]
GZIP = ".gz"
MAX_EXPANDED_BYTES = 1 << 28  # a compressed file may always expand to this size; larger ones may be attacks


@dataclass(frozen=True)
class Source:
    """A box file or a folder of box files, with the images that it refers to and the settings for reading it."""

    path: Path
    images: ImageNames
    settings: Settings
    content: bytes | None = None  # of a pipe or a compressed file, which is read once

    @property
    def suffix(self) -> str:
        """Return the suffix of the file in lower case, without that of compression: .json of a.json.gz."""
        return Path(self.path.stem if self.path.suffix.lower() == GZIP else self.path.name).suffix.lower()

    @property
    def is_folder(self) -> bool:
        """Return whether the boxes are in a folder of files."""
        return self.content is None and self.path.is_dir()

    def open(self) -> BinaryIO:
        """Open the file for reading. Raises OSError."""
        return self.path.open("rb") if self.content is None else io.BytesIO(self.content)

    def read(self) -> bytes:
        """Return the content of the file. Raises OSError."""
        return self.path.read_bytes() if self.content is None else self.content

    @property
    def region(self) -> str:
        """Return what is pooled of each annotation; shapes are read for all kinds but `box`."""
        return self.settings.region

    def units(self, default: str) -> Units:
        """Return the units of boxes: those that the user states, or else those of the format."""
        return Units.parse(self.settings.box_units or default)

    def files(self, suffix: str) -> Iterator[Path]:
        """Yield the file itself, or all files with a suffix below the folder, sorted by path."""
        if self.path.is_dir():
            yield from sorted(path for path in self.path.rglob(f"*{suffix}") if path.is_file())
        else:
            yield self.path


@dataclass(frozen=True)
class Entry:
    """The n boxes of one image, with their labels, scores and shapes where the file has them."""

    image: str
    boxes: npt.NDArray[np.float64]  # [n, 4] in the units of the table
    labels: Sequence[int | str] | None = None  # [n]
    scores: Sequence[float] | None = None  # [n]
    size: tuple[int, int] | None = None  # (height, width) of the image, where the file states it
    shapes: Sequence[Shape] | None = None  # [n], in pixels or relative as the boxes are


def format_error(where: str | Path, found: str, hint: str = "") -> InputError:
    """Return the error of a box file that cannot be read in its format."""
    return InputError("boxes-format", f"{where}: {found}", hint)


def parse_number(where: str | Path, what: str, text: str) -> float:
    """Return the finite number that a text states. Raises InputError naming the place."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise format_error(where, f"{what}: expected a number, found {quoted(text)}")
    return value


def as_column(values: Sequence[int | str]) -> Column:
    """Return labels or ids [n] as int64 if all are integers that fit, otherwise as strings."""
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    return np.array([str(value) for value in values], np.str_)


def note_missing(what: str, given: int, boxes: int) -> tuple[str, ...]:
    """Return a note if some boxes have a value of a column, such as "labels", and others have none: it is not read then."""
    return (f"{what} are not read: {boxes - given} of {boxes} boxes have none",) if 0 < given < boxes else ()


def unify_types(parts: Sequence[Column]) -> list[Column]:
    """Return the nonempty parts of one column, or one empty part, as strings if some are strings and others numbers."""
    filled = [part for part in parts if len(part)] or list(parts[:1])
    return [part.astype(np.str_) for part in filled] if len({part.dtype.kind for part in filled}) > 1 else filled


def offsets(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the offsets [0, c0, c0 + c1, ...] of groups from their counts [c0, c1, ...]."""
    result = np.zeros(np.size(counts) + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def as_boxes(rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return rows of four numbers as [N, 4] float32."""
    with np.errstate(over="ignore"):  # values that overflow become infinite, which `check_values` reports
        return (
            np.asarray(rows, None if isinstance(rows, np.ndarray) else np.float64)
            .reshape(-1, 4)
            .astype(np.float32, copy=False)
        )


def as_scores(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return scores [N] as float32."""
    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype(np.float32)


def box_columns(numbers: npt.NDArray[np.float64], units: Units) -> dict[str, Any]:
    """Return the fields of a BoxTable that hold boxes [N, 4] in these units."""
    exact = units.corners(numbers)
    return {"boxes": as_boxes(exact), "relative_boxes": exact if units.relative else None, "units": str(units)}


def table_from_entries(source: Source, entries: Sequence[Entry], units: Units) -> BoxTable:
    """Return the table of entries in their order, without columns that some entries lack; shapes if they are asked for.

    Raises InputError if an image occurs twice.
    """
    names = [entry.image for entry in entries]
    if len(set(names)) < len(names):
        duplicate = next(name for i, name in enumerate(names) if name in names[:i])
        raise format_error(source.path, f'"{duplicate}": expected each image once, found it twice')
    boxes = np.concatenate([np.empty((0, 4)), *(entry.boxes.reshape(-1, 4) for entry in entries)])
    labels = [label for entry in entries if entry.labels is not None for label in entry.labels]
    scores = [score for entry in entries if entry.scores is not None for score in entry.scores]
    sizes = [
        entry.size for entry in entries if entry.size is not None and 0 < min(entry.size) <= max(entry.size) < 2**31
    ]
    return BoxTable(
        names=PackedNames.from_strings(names),
        offset=offsets([len(entry.boxes) for entry in entries]),
        **box_columns(boxes, units),
        labels=as_column(labels) if len(labels) == len(boxes) and labels else None,
        scores=as_scores(scores) if len(scores) == len(boxes) and scores else None,
        sizes=np.array(sizes, np.int64) if sizes and len(sizes) == len(entries) else None,
        notes=(*note_missing("labels", len(labels), len(boxes)), *note_missing("scores", len(scores), len(boxes))),
        shapes=None
        if source.region == "box"
        else Shapes.pack(
            shape for entry in entries for shape in (entry.shapes or [NO_SHAPE] * len(entry.boxes.reshape(-1, 4)))
        ),
    )


def index_unique(names: PackedNames) -> tuple[PackedNames, Integers]:
    """Return the distinct names in the order of their first occurrence, and the index of each name among them.

    Names are compared by hash, because a dict of millions of names takes a gigabyte; if hashes collide, a dict is used.
    """
    hashes = np.fromiter(map(hash, names.encoded()), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    begins = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(names)])
    first = np.empty(len(names), np.int64)  # index of the first occurrence of each name
    first[order] = np.repeat(order[begins], np.diff(begins, append=len(names)))
    new = first == np.arange(len(names))
    if any(names[i] != names[first[i]] for i in np.flatnonzero(~new).tolist()):
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return PackedNames.from_strings(place), np.array([place[name] for name in names], np.int64)
    return names if new.all() else names.where(new), (np.cumsum(new) - 1)[first]


@dataclass(frozen=True)
class Grouping:
    """The order that sorts N rows of boxes by the M images that they belong to."""

    offset: Integers  # [M + 1], rows of each image after sorting
    order: npt.NDArray[np.int64] | None  # [N], index of the row at each place; None if the rows are sorted already

    @classmethod
    def by_image(cls, owner: npt.NDArray[np.integer], images: int) -> Grouping:
        """Group rows by their image owner[row], of `images` images; rows of the same image keep their order."""
        in_order = bool((owner[1:] >= owner[:-1]).all())
        offset = offsets(np.bincount(owner, minlength=images))
        return cls(offset, None if in_order else np.argsort(owner, kind="stable"))

    def table(
        self,
        names: PackedNames,
        boxes: npt.NDArray[np.floating],
        *,
        labels: Column | None = None,
        scores: Column | None = None,
        ids: Column | None = None,
        sizes: Integers | None = None,
        relative_boxes: npt.NDArray[np.float64] | None = None,
        shapes: Shapes | None = None,
        units: str = "xyxy",
        notes: tuple[str, ...] = (),
    ) -> BoxTable:
        """Return the table of columns [N] that are in the original order of the rows."""

        def ordered(column: Any) -> Any:
            return column if column is None or self.order is None else column[self.order]

        return BoxTable(
            names=names,
            offset=self.offset,
            boxes=ordered(as_boxes(boxes)),
            labels=ordered(labels),
            scores=None if scores is None else as_scores(ordered(scores)),
            ids=ordered(ids),
            sizes=sizes,
            relative_boxes=ordered(relative_boxes),
            shapes=shapes if shapes is None or self.order is None else shapes.take(self.order),
            units=units,
            notes=notes,
        )
