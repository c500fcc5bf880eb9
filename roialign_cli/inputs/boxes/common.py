"""What the readers of box files share: where they read, errors, columns, and tables from what they found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roialign_cli.config import Settings
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.structures import BoxTable

Column = npt.NDArray[np.generic]


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


def bad(where: str | Path, found: str, hint: str = "") -> InputError:
    """The error of a box file that cannot be read as its format."""
    return InputError("boxes-format", f"{where}: {found}", hint)


def column(values: Sequence[int | str]) -> Column:
    """Labels or ids as int64 where all are integers that fit, as strings otherwise."""
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    return np.array([str(value) for value in values], np.str_)


def offsets(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """[0, c0, c0 + c1, ...]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def as_boxes(rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Rows of four numbers as [N, 4] float32."""
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is named by the check that follows
        return np.array(rows, np.float64).reshape(-1, 4).astype(np.float32)


def as_scores(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Scores [N] as float32."""
    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype(np.float32)


def table_of(source: Source, entries: Sequence[Entry], *, relative: bool = False) -> BoxTable:
    """The entries as they come, one per image; InputError if an image comes twice. Columns that some lack are left out."""
    names = [entry.image for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise bad(source.path, f'"{twice}": expected each image once, found it twice')
    boxes = np.concatenate([np.empty((0, 4)), *(entry.boxes.reshape(-1, 4) for entry in entries)])
    labels = [label for entry in entries if entry.labels is not None for label in entry.labels]
    scores = [score for entry in entries if entry.scores is not None for score in entry.scores]
    return BoxTable(
        names=tuple(names),
        offset=offsets([len(entry.boxes) for entry in entries]),
        boxes=as_boxes(boxes),
        labels=column(labels) if len(labels) == len(boxes) and labels else None,
        scores=as_scores(scores) if len(scores) == len(boxes) and scores else None,
        shares=boxes if relative else None,
    )


def table_of_rows(
    images: Sequence[str],
    boxes: npt.NDArray[np.float64],
    labels: Sequence[int | str] | None,
    scores: Sequence[float] | None,
    ids: Sequence[int | str] | None,
    *,
    relative: bool = False,
) -> BoxTable:
    """A row per box, in any order: images in the order of their first box, boxes of an image in that of the rows."""
    place = {name: i for i, name in enumerate(dict.fromkeys(images))}
    owner = np.array([place[name] for name in images], np.int64)
    order = np.argsort(owner, kind="stable")
    ordered = boxes.reshape(-1, 4)[order]
    return BoxTable(
        names=tuple(place),
        offset=offsets(np.bincount(owner, minlength=len(place)).tolist()),
        boxes=as_boxes(ordered),
        labels=None if labels is None else column(labels)[order],
        scores=None if scores is None else as_scores(scores)[order],
        ids=None if ids is None else column(ids)[order],
        shares=ordered if relative else None,
    )
