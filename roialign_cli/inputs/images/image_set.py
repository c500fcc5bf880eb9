"""The images that a run may read: their names, and the file of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import NAMES_PER_BLOCK, PackedNames
from roialign_cli.inputs.images.file import ImageFile

EXTENSIONS = frozenset({b"jpg", b"jpeg", b"png", b"webp", b"bmp", b"tif", b"tiff", b"gif", b"avif", b"mpo"})


class ImageSet(ABC):
    """A folder, a selection of files, or archives: images by name.

    Names are relative paths with forward slashes. `where` is what the user named, for messages. `selected`: the user chose
    these images, so boxes of other images are left out; otherwise images of the box file that are not here are missing.
    """

    where: str
    selected = False

    @abstractmethod
    def encoded_names(self) -> Iterator[bytes]:
        """Yield the names as UTF-8 bytes, which is faster for millions of files. Raises InputError if nothing is there."""

    @abstractmethod
    def file(self, name: str) -> ImageFile:
        """Return the file of an image, which may be missing."""

    @property
    @abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """The folder or the files that must be there for the images to be read."""

    @cached_property
    def listing(self) -> ImageListing:
        """The names, to look up millions of them."""
        return ImageListing(self.encoded_names())

    def names(self) -> Iterator[str]:
        """Yield the names of all images."""
        return (name.decode("utf-8", "surrogateescape") for name in self.encoded_names())

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "listing"}  # hashes differ between processes


class ImageListing:
    """The names of images as hashes: 10 million of them take 0.1 GB instead of 1 GB.

    A missing name is mistaken for an image, by a collision of hashes, about once in 10^12 listings; that image then
    fails when it is read.
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        self._hashes = np.fromiter(map(hash, names), np.int64)
        self._hashes.sort()

    def __len__(self) -> int:
        return len(self._hashes)

    def has(self, names: PackedNames) -> npt.NDArray[np.bool_]:
        """Return a mask [M] of the names that are among the images."""
        found = np.zeros(len(names), np.bool_)
        for begin in range(0, len(names) if len(self) else 0, NAMES_PER_BLOCK):
            wanted = np.fromiter(map(hash, names[begin : begin + NAMES_PER_BLOCK].encoded()), np.int64)
            place = np.minimum(np.searchsorted(self._hashes, wanted), len(self) - 1)
            found[begin : begin + len(wanted)] = self._hashes[place] == wanted
        return found


def has_image_suffix(name: bytes) -> bool:
    """Return whether a file name ends like that of an image."""
    stem, _, extension = name.rpartition(b".")
    return bool(stem) and extension.lower() in EXTENSIONS
