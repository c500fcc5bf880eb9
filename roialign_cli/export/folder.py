"""Prepare the output of an export, and remove only what this tool made.

A folder that it makes contains MARKER, which lists every file of the export. A folder that contains anything else is left
alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from roialign_cli.errors import OutputError
from roialign_cli.system.atomic import SUFFIX, check_name, foreign_file_error, partial_path, publish

MARKER = ".roialign-export"
HEADER = "files made by roialign export"


class ExportFolder:
    """Write the folder of an export; each file is listed before it is made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._marker: TextIO = (path / MARKER).open("x", encoding="utf-8")
        self._list(HEADER)

    def file(self, name: str) -> Path:
        """Return the path of a new file, and make its folders. Raises OutputError if it exists, or lies outside."""
        path = self.path / name
        if self.path not in Path(os.path.normpath(path)).parents:
            raise OutputError("output-name", f"{path}: expected a file inside {self.path}, found one outside")
        if os.path.lexists(path):  # such as a.jpg and ./a.jpg, or A.jpg on a file system that ignores case
            message = f"{path}: expected a file for each image, found two images that would share it"
            raise OutputError("export-name", message, "choose another --to")
        self._list(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _list(self, line: str) -> None:
        print(json.dumps(line), file=self._marker, flush=True)

    def close(self) -> None:
        """Close the list of files."""
        self._marker.close()


@contextmanager
def replace_export(output: Path, sources: list[Path], *, folder: bool, overwrite: bool) -> Iterator[Path]:
    """Yield the path to write an export to; then put it in place of an earlier export. If anything fails, remove it.

    Raises OutputError as `_prepare` does, and OSError if the export cannot be put into place.
    """
    partial = _prepare(output, sources, folder=folder, overwrite=overwrite)
    try:
        yield partial
        _put_in_place(partial, output)
    finally:  # after a success the name is free already
        with suppress(OSError):
            _remove(partial)


def _prepare(output: Path, sources: list[Path], *, folder: bool, overwrite: bool) -> Path:
    """Check that an export may be written, and return the free path to write to until it is complete.

    Raises OutputError if the output exists and `overwrite` is not set, if an export did not make it, or if it is or contains
    one of the source files.
    """
    check_name(output)
    if os.path.lexists(output):
        if not overwrite:
            raise OutputError("output-exists", f"{output}: expected nothing there", "choose another -o, or --overwrite")
        _check_replaceable(output, sources)
    if not folder:
        return partial_path(output)
    partial = output.with_name(output.name + SUFFIX)
    if os.path.lexists(partial):
        if partial.is_symlink() or not partial.is_dir():
            raise foreign_file_error(partial, "a link" if partial.is_symlink() else "a file")
        _check_folder(partial)
        shutil.rmtree(partial)
    return partial


def _put_in_place(partial: Path, output: Path) -> None:
    """Rename a complete export into place, and remove the earlier export that `_prepare` found there."""
    if output.is_dir() and not output.is_symlink():
        _check_folder(output)
        shutil.rmtree(output)
    if partial.is_dir():
        partial.replace(output)
    else:
        publish(partial, output)


def _remove(partial: Path) -> None:
    """Remove an unfinished export."""
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def _check_replaceable(output: Path, sources: list[Path]) -> None:
    """Raise OutputError if an output is or contains a source file, or is something that no export made."""
    place = output.resolve()
    for source in sources:
        if place == source.resolve() or place in source.resolve().parents:
            message = f"{output}: expected an output that does not contain the source, found {source} in it"
            raise OutputError("output-is-input", message, "choose another -o")
    if output.is_dir() and not output.is_symlink():
        _check_folder(output)
    elif not output.is_file():
        raise foreign_file_error(output, "no file")


def _check_folder(folder: Path) -> None:
    """Raise OutputError if a folder is neither empty nor an export, or contains something else besides one."""
    if not any(folder.iterdir()):
        return
    try:
        with (folder / MARKER).open(encoding="utf-8") as marker:
            header, *listed = map(json.loads, marker)
    except (OSError, ValueError):
        header, listed = "", []
    if header != HEADER:
        raise foreign_file_error(folder, "a folder that no export made")
    known = {MARKER, *listed}
    for parent, folders, files in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            if (inside / name).as_posix() not in known:
                raise foreign_file_error(
                    folder, f"a folder that holds {(inside / name).as_posix()}, which no export made"
                )
