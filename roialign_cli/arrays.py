"""Packed names and the array types that travel between the parts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import eq
from pathlib import PurePosixPath
from typing import overload

import numpy as np
import numpy.typing as npt

NAMES_AT_ONCE = 1 << 14  # unpacked at a time

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PackedNames(Sequence[str]):
    """Names of images as UTF-8 one after another: name i is text[ends[i]:ends[i + 1]].

    10 million of them take 0.2 GB, not the 0.7 of as many strings, and travel between processes as two arrays.
    """

    text: npt.NDArray[np.uint8]
    ends: Integers  # [M + 1], from 0

    @classmethod
    def from_strings(cls, names: Iterable[str]) -> PackedNames:
        """Pack strings; what is no text in a file name, Python's surrogates, is kept."""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.array(ends, np.int64))

    @classmethod
    def from_bytes(cls, names: Sequence[bytes]) -> PackedNames:
        """Pack names that are UTF-8 already."""
        ends = np.zeros(len(names) + 1, np.int64)
        np.cumsum([len(name) for name in names], out=ends[1:])
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    @classmethod
    def join(cls, parts: Sequence[PackedNames]) -> PackedNames:
        """All names of the parts, one after another."""
        counts = [np.diff(part.ends) for part in parts]
        ends = np.zeros(sum(map(len, counts)) + 1, np.int64)
        np.concatenate([*counts, np.empty(0, np.int64)], out=ends[1:])
        return cls(np.concatenate([*(part.text for part in parts), np.empty(0, np.uint8)]), ends.cumsum(out=ends))

    def where(self, chosen: npt.NDArray[np.bool_]) -> PackedNames:
        """Those that are chosen [M], in their order."""
        lengths = np.diff(self.ends)
        ends = np.zeros(int(chosen.sum()) + 1, np.int64)
        np.cumsum(lengths[chosen], out=ends[1:])
        return PackedNames(self.text[np.repeat(chosen, lengths)], ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> PackedNames: ...
    def __getitem__(self, key: int | slice) -> str | PackedNames:
        if isinstance(key, slice):
            first, stop, step = key.indices(len(self))
            if step != 1:
                raise ValueError(f"expected names in a row, found every {step}th")
            ends = self.ends[first : max(first, stop) + 1]
            return PackedNames(self.text[ends[0] : ends[-1]], ends - ends[0])
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


def unsafe_name(names: PackedNames) -> str | None:
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
