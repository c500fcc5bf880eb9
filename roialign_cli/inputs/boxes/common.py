"""What the readers of box files share: where they read, errors, columns, and tables from what they found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers, PackedNames
from roialign_cli.config import Settings
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.types import BoxTable

Column = npt.NDArray[np.generic]
MAX_EXPANDED_BYTES = 1 << 28  # that a compressed file may always expand to; above, it may be an attack


@dataclass(frozen=True)
class Source:
    """A box file, or a folder of them, with the images it is about and how to read it."""

    path: Path
    images: ImageNames
    settings: Settings

    def files(self, suffix: str) -> Iterator[Path]:
        """The file itself, or all files of a suffix below the folder, in order."""
        if self.path.is_dir():
            yield from sorted(path for path in self.path.rglob(f"*{suffix}") if path.is_file())
        else:
            yield self.path


@dataclass(frozen=True)
class Entry:
    """The boxes [n, 4] of one image, x1, y1, x2, y2 in float64, and what is known of each."""

    image: str
    boxes: npt.NDArray[np.float64]
    labels: Sequence[int | str] | None = None
    scores: Sequence[float] | None = None


def format_error(where: str | Path, found: str, hint: str = "") -> InputError:
    """The error of a box file that cannot be read as its format."""
    return InputError("boxes-format", f"{where}: {found}", hint)


def column(values: Sequence[int | str]) -> Column:
    """Labels or ids as int64 where all are integers that fit, as strings otherwise."""
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    return np.array([str(value) for value in values], np.str_)


def unify_types(parts: Sequence[Column]) -> list[Column]:
    """Parts of one column that are not empty, or one; as strings where they are strings and numbers."""
    filled = [part for part in parts if len(part)] or list(parts[:1])
    return [part.astype(np.str_) for part in filled] if len({part.dtype.kind for part in filled}) > 1 else filled


def offsets(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """[0, c0, c0 + c1, ...]."""
    found = np.zeros(np.size(counts) + 1, np.int64)
    np.cumsum(counts, out=found[1:])
    return found


def as_boxes(rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Rows of four numbers as [N, 4] float32."""
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is named by the check that follows
        return (
            np.asarray(rows, None if isinstance(rows, np.ndarray) else np.float64)
            .reshape(-1, 4)
            .astype(np.float32, copy=False)
        )


def as_scores(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Scores [N] as float32."""
    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype(np.float32)


def table_from_entries(source: Source, entries: Sequence[Entry], *, relative: bool = False) -> BoxTable:
    """The entries as they come, one per image; InputError if an image comes twice. Columns that some lack are left out."""
    names = [entry.image for entry in entries]
    if len(set(names)) < len(names):
        duplicate_key_error = next(name for i, name in enumerate(names) if name in names[:i])
        raise format_error(source.path, f'"{duplicate_key_error}": expected each image once, found it twice')
    boxes = np.concatenate([np.empty((0, 4)), *(entry.boxes.reshape(-1, 4) for entry in entries)])
    labels = [label for entry in entries if entry.labels is not None for label in entry.labels]
    scores = [score for entry in entries if entry.scores is not None for score in entry.scores]
    return BoxTable(
        names=PackedNames.from_strings(names),
        offset=offsets([len(entry.boxes) for entry in entries]),
        boxes=as_boxes(boxes),
        labels=column(labels) if len(labels) == len(boxes) and labels else None,
        scores=as_scores(scores) if len(scores) == len(boxes) and scores else None,
        relative_boxes=boxes if relative else None,
    )


def index_unique(names: PackedNames) -> tuple[PackedNames, Integers]:
    """The different names in the order in which they first come, and which of them each is.

    By hashes, as a dict of millions takes a gigabyte; where two names share one, by a dict.
    """
    hashes = np.fromiter(map(hash, names.encoded()), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    begins = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(names)])
    first = np.empty(len(names), np.int64)  # that is the same as each
    first[order] = np.repeat(order[begins], np.diff(begins, append=len(names)))
    new = first == np.arange(len(names))
    if any(names[i] != names[first[i]] for i in np.flatnonzero(~new).tolist()):
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return PackedNames.from_strings(place), np.array([place[name] for name in names], np.int64)
    return names if new.all() else names.where(new), (np.cumsum(new) - 1)[first]


@dataclass(frozen=True)
class Grouping:
    """Rows of boxes [N] sorted by their image: where each image's begin [M + 1], and which row comes when, if not as it is."""

    offset: Integers
    order: npt.NDArray[np.int64] | None

    @classmethod
    def by(cls, owner: npt.NDArray[np.integer], images: int) -> Grouping:
        """Of rows that belong to image owner[row]; those of an image stay in their order."""
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
    ) -> BoxTable:
        """The table of columns that stand as the rows did."""

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
        )
