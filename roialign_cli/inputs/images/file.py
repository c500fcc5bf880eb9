"""Open the file of an image, and tell whether it has changed since it was read."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from roialign_cli.inputs.images.errors import IMAGE_MISSING, ImageError
from roialign_cli.types import NO_VERSION, FileVersion


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own. Members of archives are subclasses."""

    path: Path

    def exists(self) -> bool:
        """Return whether there is such a file."""
        return self.path.is_file()

    def open(self) -> BinaryIO:
        """Open the image for reading. Raises ImageError if there is no file, OSError if it cannot be read."""
        if not self.path.is_file():
            exists = os.path.lexists(self.path)
            raise ImageError(
                "image-missing",
                "expected an image file, found something that is not a file" if exists else IMAGE_MISSING,
            )
        return self.path.open("rb")

    def state(self) -> tuple[int, int]:
        """Return (bytes, time of the last change in nanoseconds since 1970). Raises OSError."""
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns


def digest(file: BinaryIO) -> bytes:
    """Return the SHA-256 of the content of an open file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]  # BinaryIO has what it needs


def has_changed(file: ImageFile, version: FileVersion) -> bool:
    """Return whether the content of a file differs from a version; it is read only if size and time cannot decide.

    A file that cannot be read counts as unchanged.
    """
    if version == NO_VERSION:
        return False
    try:
        size, modified = file.state()
        if size != version.size:
            return True
        if modified == version.modified:
            return False
        with file.open() as opened:
            return digest(opened) != version.sha256
    except (OSError, ImageError):
        return False
