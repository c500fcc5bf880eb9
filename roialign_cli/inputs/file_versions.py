"""Which version of a file was read: its size, when it was modified, and its content. So a later run finds what has changed."""

from __future__ import annotations

import hashlib
import os
from io import BufferedReader
from pathlib import Path

from roialign_cli.types import NO_VERSION, FileVersion


def version_of(file: BufferedReader) -> FileVersion | None:
    """Return the version of an open file, whose content is read once more; None if it changes meanwhile."""
    before = os.fstat(file.fileno())
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").digest()
    after = os.fstat(file.fileno())
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return FileVersion(before.st_size, before.st_mtime_ns, digest) if same else None


def has_changed(path: Path, version: FileVersion) -> bool:
    """Return whether a file holds something else than it did; its content is read only where its time alone differs.

    A file that cannot be read has not changed as far as we know.
    """
    if version == NO_VERSION:
        return False
    try:
        found = path.stat()
        if found.st_size != version.size:
            return True
        if found.st_mtime_ns == version.modified:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() != version.sha256
    except OSError:
        return False
