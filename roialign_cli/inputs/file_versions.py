"""Identify the version of a file that was read, so that a later run finds out which files have changed."""

from __future__ import annotations

import hashlib
import os
from io import BufferedReader
from pathlib import Path

from roialign_cli.types import NO_VERSION, FileVersion


def version_of(file: BufferedReader) -> FileVersion | None:
    """Return the version of an open file, reading its content once more, or None if the file changes meanwhile."""
    before = os.fstat(file.fileno())
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").digest()
    after = os.fstat(file.fileno())
    unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return FileVersion(before.st_size, before.st_mtime_ns, digest) if unchanged else None


def has_changed(path: Path, version: FileVersion) -> bool:
    """Return whether the content of a file differs from a version; it is read only if size and time cannot decide.

    A file that cannot be read counts as unchanged.
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
