"""The frozen dataclasses that travel between the parts; sizes are (height, width), boxes (x1, y1, x2, y2) in pixels."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import eq
from pathlib import PurePosixPath
from typing import Any, overload

import numpy as np
import numpy.typing as npt

NAMES_AT_ONCE = 1 << 14  # unpacked at a time

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Names(Sequence[str]):
    """Names of images as UTF-8 one after another: name i is text[ends[i]:ends[i + 1]].

    10 million of them take 0.2 GB, not the 0.7 of as many strings, and travel between processes as two arrays.
    """

    text: npt.NDArray[np.uint8]
    ends: Integers  # [M + 1], from 0

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Pack strings; what is no text in a file name, Python's surrogates, is kept."""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.array(ends, np.int64))

    @classmethod
    def of_bytes(cls, names: Sequence[bytes]) -> Names:
        """Pack names that are UTF-8 already."""
        ends = np.zeros(len(names) + 1, np.int64)
        np.cumsum([len(name) for name in names], out=ends[1:])
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    @classmethod
    def join(cls, parts: Sequence[Names]) -> Names:
        """All names of the parts, one after another."""
        counts = [np.diff(part.ends) for part in parts]
        ends = np.zeros(sum(map(len, counts)) + 1, np.int64)
        np.concatenate([*counts, np.empty(0, np.int64)], out=ends[1:])
        return cls(np.concatenate([*(part.text for part in parts), np.empty(0, np.uint8)]), ends.cumsum(out=ends))

    def where(self, chosen: npt.NDArray[np.bool_]) -> Names:
        """Those that are chosen [M], in their order."""
        lengths = np.diff(self.ends)
        ends = np.zeros(int(chosen.sum()) + 1, np.int64)
        np.cumsum(lengths[chosen], out=ends[1:])
        return Names(self.text[np.repeat(chosen, lengths)], ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> Names: ...
    def __getitem__(self, key: int | slice) -> str | Names:
        if isinstance(key, slice):
            first, stop, step = key.indices(len(self))
            if step != 1:
                raise ValueError(f"expected names in a row, found every {step}th")
            ends = self.ends[first : max(first, stop) + 1]
            return Names(self.text[ends[0] : ends[-1]], ends - ends[0])
        index = range(len(self))[key]
        return self.text[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("utf-8", "surrogateescape") for name in self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """Each as UTF-8."""
        for first in range(0, len(self), NAMES_AT_ONCE):
            ends = self.ends[first : first + NAMES_AT_ONCE + 1]
            text = self.text[ends[0] : ends[-1]].tobytes()
            for begin, end in pairwise((ends - ends[0]).tolist()):
                yield text[begin:end]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]


def is_text(name: str) -> bool:
    """Return whether a name is text, and not the bytes of a file name that are no UTF-8."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def unsafe_name(names: Names) -> str | None:
    """Return the first name that is empty, absolute, or could lead out of the image folder; None if all are safe."""
    text = names.text.tobytes()
    plain = not any(part in text for part in (b"..", b"\0", b"\\")) and bool(np.diff(names.ends).all())
    if plain and not (names.text[names.ends[:-1]] == ord("/")).any():
        return None  # as nearly always, which of millions is known at once
    for name in names:
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or "\\" in name:
            return name
    return None


@dataclass(frozen=True)
class BoxTable:
    """What a box file says: rows offset[i]:offset[i+1] belong to image names[i].

    boxes [N, 4] float32. labels and ids are int64 or strings, scores float32; each [N], or None where the file has none.
    sizes [M, 2] (height, width) of the images, where the file states all of them. crowd [N]: COCO's iscrowd. Where
    boxes are relative to their image, shares [N, 4] float64 has them exactly, and boxes are pixels once sizes are known.
    """

    names: Names
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
    `sized`: boxes depend on the sizes, having been clipped or relative. `table_sha256` identifies the table of the whole run
    as it was read, see `identity`.
    """

    table: BoxTable
    sizes: Integers
    problems: dict[int, str]
    unused_images: int
    outside_boxes: int
    empty_boxes: int
    sized: bool = False
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
