"""Images inside zip and tar archives, which are read in place: the places of members are indexed once."""

from __future__ import annotations

import io
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from roialign_cli.arrays import Integers, PackedNames
from roialign_cli.errors import InputError
from roialign_cli.inputs.images.errors import IMAGE_MISSING, ImageError
from roialign_cli.inputs.images.file import ImageFile
from roialign_cli.inputs.images.image_set import ImageSet, has_image_suffix

LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip: signature, lengths of its name and its extra field
LOCAL_SIGNATURE = b"PK\3\4"
MACOS_METADATA = "__MACOSX/"  # in a zip made by macOS, a file of metadata for each image, with the suffix of an image
MEMBERS_PER_CLEANUP = 4096  # members of a tar after which the list that `tarfile` keeps of them is emptied
MAX_MEMBER_BYTES = 1 << 31  # of a deflated member when expanded; more may be an attack
UNREADABLE = -1  # full size of a zip's member in a compression that is not read


class _Place(NamedTuple):
    """Where a member is: first byte of its content (tar) or header (zip), bytes there, bytes when expanded (0: stored)."""

    begin: int
    size: int
    expanded: int


@dataclass(frozen=True)
class Member(ImageFile):
    """A member of an archive that had the state `archive_state` when it was indexed."""

    place: _Place
    archive_state: tuple[int, int]

    def open(self) -> BinaryIO:
        """Open the member for reading. Raises ImageError if the archive has changed, or the member cannot be expanded."""
        if super().state() != self.archive_state:
            expected = f"expected {self.path.name} as it was at the start, found that it has changed"
            raise ImageError("image-changed", expected, "run again")
        file = self.path.open("rb")
        try:
            return self._open_content(file)
        except BaseException:
            file.close()
            raise

    def state(self) -> tuple[int, int]:
        """Return the bytes of the member, and the time of the last change of the archive."""
        return self.place.size, super().state()[1]

    def _open_content(self, file: BinaryIO) -> BinaryIO:
        return io.BufferedReader(_Window(file, self.place.begin, self.place.size))


class ZipMember(Member):
    """A member of a zip archive, stored or deflated."""

    def _open_content(self, file: BinaryIO) -> BinaryIO:
        file.seek(self.place.begin)
        header = file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or not header.startswith(LOCAL_SIGNATURE):
            raise ImageError("image-unreadable", f"expected a member of {self.path.name}, found no header there")
        _, name, extra = LOCAL_HEADER.unpack(header)
        begin = file.tell() + name + extra
        if self.place.expanded == UNREADABLE:
            expected = "expected a member that is stored or deflated, found another compression, or encryption"
            raise ImageError("image-unreadable", expected, "make the archive with `zip -0`")
        if self.place.expanded > MAX_MEMBER_BYTES:
            found = f"found {self.place.expanded}"
            raise ImageError("image-too-large", f"expected a member of at most {MAX_MEMBER_BYTES} bytes, {found}")
        if not self.place.expanded:
            return io.BufferedReader(_Window(file, begin, self.place.size))
        with file:
            file.seek(begin)
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
                    file.read(self.place.size), self.place.expanded
                )
            except zlib.error as error:
                raise ImageError("image-unreadable", f"cannot be decompressed: {error}") from None
        return io.BytesIO(content)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own, which closes the other one."""

    def __init__(self, file: BinaryIO, begin: int, size: int) -> None:
        self._file = file
        self._begin = begin
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer is what it is given
        self._file.seek(self._begin + self._position)
        content = self._file.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


class ImageArchives(ImageSet):
    """The images in one or several zip and tar archives.

    A million members take 40 MB and their names. Raises InputError if an archive cannot be read, or if two have an image of
    the same name.
    """

    def __init__(self, where: str, paths: Sequence[Path]) -> None:
        self.where = where
        self._paths = tuple(path.absolute() for path in paths)
        self._states: list[tuple[int, int]] = []
        names, places, counts = [], [], [0]
        for path in self._paths:
            self._states.append(ImageFile(path).state())
            found = _index(path)
            names.append(PackedNames.from_strings(found))
            places.append(np.array(list(found.values()), np.int64).reshape(-1, 3))
            counts.append(counts[-1] + len(found))
        self._names = PackedNames.join(names)
        self._places: Integers = np.concatenate([np.empty((0, 3), np.int64), *places])
        self._firsts = np.array(counts, np.int64)  # [archives + 1]: the first member of each archive
        hashes, order = self._by_hash
        for i in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            first, second = sorted(order[i : i + 2].tolist())
            if self._names[first] == self._names[second]:
                archives = " and ".join(str(self._paths[self._archive_of(member)]) for member in (first, second))
                message = f'{where}: "{self._names[first]}": expected each name in one archive, found it in {archives}'
                raise InputError("images-archive", message, "extract the features of these archives separately")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The archives."""
        return self._paths

    def encoded_names(self) -> Iterator[bytes]:
        """Yield the names in the order of the archives and their members."""
        return self._names.encoded()

    def file(self, name: str) -> ImageFile:
        """Return the member of a name, or a file that does not exist."""
        hashes, order = self._by_hash
        wanted = hash(name.encode("utf-8", "surrogateescape"))
        for i in range(int(np.searchsorted(hashes, wanted)), len(hashes)):
            if hashes[i] != wanted:
                break
            member = int(order[i])
            if self._names[member] == name:
                archive = self._archive_of(member)
                path, place = self._paths[archive], _Place(*self._places[member].tolist())
                return (ZipMember if _is_zip(path) else Member)(path, place, self._states[archive])
        return _NoMember(self._paths[0])

    def _archive_of(self, member: int) -> int:
        return int(np.searchsorted(self._firsts, member, side="right")) - 1

    @cached_property
    def _by_hash(self) -> tuple[Integers, Integers]:
        """The hashes of the names in order, and the members that they belong to."""
        hashes = np.fromiter(map(hash, self._names.encoded()), np.int64, len(self._names))
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in super().__getstate__().items() if key != "_by_hash"}


class _NoMember(ImageFile):
    """An image that no archive has."""

    def exists(self) -> bool:
        return False

    def open(self) -> BinaryIO:
        raise ImageError("image-missing", IMAGE_MISSING)


def _index(path: Path) -> dict[str, _Place]:
    """Return the places of the images in an archive by name; of two members of one name the last, as archives define it."""
    try:
        found = _index_zip(path) if _is_zip(path) else _index_tar(path)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        kind = "zip" if _is_zip(path) else "plain tar"
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError("images-archive", f"{path}: expected a {kind} archive, found: {reason}") from None
    names = {posixpath.normpath(name).lstrip("/"): place for name, place in found.items()}
    return {name: place for name, place in names.items() if has_image_suffix(os.fsencode(posixpath.basename(name)))}


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _index_zip(path: Path) -> dict[str, _Place]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir() or info.filename.startswith(MACOS_METADATA):
                continue
            readable = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 1
            expanded = info.file_size if info.compress_type == zipfile.ZIP_DEFLATED else 0
            found[info.filename] = _Place(info.header_offset, info.compress_size, expanded if readable else UNREADABLE)
    return found


def _index_tar(path: Path) -> dict[str, _Place]:
    """Index regular members; links get the place of what they name."""
    found: dict[str, _Place] = {}
    links: dict[str, str] = {}
    with tarfile.open(path, "r:") as archive:
        for number, member in enumerate(archive, 1):
            if member.isreg() and not member.issparse():
                found[member.name] = _Place(member.offset_data, member.size, 0)
            elif member.islnk():
                links[member.name] = member.linkname
            elif member.issym():
                links[member.name] = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
            if number % MEMBERS_PER_CLEANUP == 0:
                archive.members = []  # type: ignore[attr-defined]  # a list that would grow by a kilobyte per member
    for name, target in links.items():
        if target in found:
            found[name] = found[target]
    return found
