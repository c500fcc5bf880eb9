"""Packed names, and the array types that the parts of the package exchange."""

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

NAMES_PER_BLOCK = 1 << 14  # names that are unpacked at a time

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PackedNames(Sequence[str]):
    """Image names as one run of UTF-8 bytes: name i is text[ends[i]:ends[i + 1]].

    10 million names take 0.2 GB instead of 0.7 GB as Python strings, and are pickled as two arrays.
    """

    text: npt.NDArray[np.uint8]
    ends: Integers  # [M + 1], starting at 0

    @classmethod
    def from_strings(cls, names: Iterable[str]) -> PackedNames:
        """Pack strings; bytes of file names that are not UTF-8, which Python holds as surrogates, are kept."""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.array(ends, np.int64))

    @classmethod
    def from_bytes(cls, names: Sequence[bytes]) -> PackedNames:
        """Pack names that are already encoded as UTF-8."""
        ends = np.zeros(len(names) + 1, np.int64)
        np.cumsum([len(name) for name in names], out=ends[1:])
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    @classmethod
    def join(cls, parts: Sequence[PackedNames]) -> PackedNames:
        """Concatenate the names of several parts."""
        counts = [np.diff(part.ends) for part in parts]
        ends = np.zeros(sum(map(len, counts)) + 1, np.int64)
        np.concatenate([*counts, np.empty(0, np.int64)], out=ends[1:])
        return cls(np.concatenate([*(part.text for part in parts), np.empty(0, np.uint8)]), ends.cumsum(out=ends))

    def where(self, mask: npt.NDArray[np.bool_]) -> PackedNames:
        """Return the names for which the mask [M] is true, in their order."""
        lengths = np.diff(self.ends)
        ends = np.zeros(int(mask.sum()) + 1, np.int64)
        np.cumsum(lengths[mask], out=ends[1:])
        return PackedNames(self.text[np.repeat(mask, lengths)], ends)

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
                raise ValueError(f"expected a slice of step 1, found step {step}")
            ends = self.ends[first : max(first, stop) + 1]
            return PackedNames(self.text[ends[0] : ends[-1]], ends - ends[0])
        index = range(len(self))[key]
        return self.text[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("utf-8", "surrogateescape") for name in self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """Yield each name as UTF-8 bytes."""
        for first in range(0, len(self), NAMES_PER_BLOCK):
            ends = self.ends[first : first + NAMES_PER_BLOCK + 1]
            text = self.text[ends[0] : ends[-1]].tobytes()
            for begin, end in pairwise((ends - ends[0]).tolist()):
                yield text[begin:end]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]


def decode_text(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return UTF-8 bytes as text; values that are no bytes are returned as they are.

    Bytes that are not UTF-8 become surrogates, as in file names, so that a merge copies them unchanged.
    """
    if values.dtype.kind != "S":
        return values
    return np.char.decode(values, "utf-8", "surrogateescape").astype(
        np.str_, copy=False
    )  # NumPy 1 decodes no values as no numbers


def is_text(name: str) -> bool:
    """Return whether a name is valid text, without the surrogates that stand for bytes that are not UTF-8."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def unsafe_name(names: PackedNames) -> str | None:
    """Return the first name that is empty, absolute or could lead out of the image folder, or None if all are safe."""
    text = names.text.tobytes()
    plain = not any(part in text for part in (b"..", b"\0", b"\\")) and bool(np.diff(names.ends).all())
    if plain and not (names.text[names.ends[:-1]] == ord("/")).any():
        return None  # the usual case, checked for millions of names without decoding them
    for name in names:
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or "\\" in name:
            return name
    return None
