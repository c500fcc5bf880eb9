"""Where an export is written, and what may be removed there: only what this tool made.

A folder that it makes holds MARKER, which lists every file that belongs to the export. A folder that holds anything else
is left alone.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TextIO

from roialign_cli.errors import OutputError
from roialign_cli.system.atomic import SUFFIX, check_name, foreign_file_error, partial_path, publish

MARKER = ".roialign-export"
HEADER = "files made by roialign export"


class ExportFolder:
    """A folder of an export as it is being written; each file is listed before it is made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._marker: TextIO = (path / MARKER).open("x", encoding="utf-8")
        self._list(HEADER)

    def file(self, name: str) -> Path:
        """Return the path of a new file, whose folders are made. OutputError if it is there already, or lies outside."""
        path = self.path / name
        if self.path not in Path(os.path.normpath(path)).parents:
            raise OutputError("output-name", f"{path}: expected a file inside {self.path}, found one outside")
        if os.path.lexists(path):  # such as a.jpg and ./a.jpg, or A.jpg where case does not count
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


def prepare(output: Path, sources: list[Path], *, folder: bool, overwrite: bool) -> Path:
    """Check that an export may be written, and return the path to write to until it is whole, with nothing there.

    Raises OutputError: something is there without `overwrite`, or with it something that no export made; or the output is one
    of the source files, or holds one.
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


def replace(partial: Path, output: Path) -> None:
    """Put a whole export into its place, and remove the earlier one that `prepare` has found there."""
    if output.is_dir() and not output.is_symlink():
        _check_folder(output)
        shutil.rmtree(output)
    if partial.is_dir():
        partial.replace(output)
    else:
        publish(partial, output)


def remove(partial: Path) -> None:
    """Remove an export that was not finished."""
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def _check_replaceable(output: Path, sources: list[Path]) -> None:
    place = output.resolve()
    for source in sources:
        if place == source.resolve() or place in source.resolve().parents:
            message = f"{output}: expected an output that does not hold the source, found {source} there"
            raise OutputError("output-is-input", message, "choose another -o")
    if output.is_dir() and not output.is_symlink():
        _check_folder(output)
    elif not output.is_file():
        raise foreign_file_error(output, "no file")


def _check_folder(folder: Path) -> None:
    """Raise OutputError if a folder is neither empty nor an export, or holds something that does not belong to it."""
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
