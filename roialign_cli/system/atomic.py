"""Where an output is written until it is whole: `<output>.partial`, which is renamed into its place at the end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from roialign_cli.errors import OutputError

SUFFIX = ".partial"
NAME_BYTES = 255  # of most file systems


def partial_path(output: Path) -> Path:
    """Return the path to write to, with nothing there: the file that an earlier run left is removed.

    Raises OutputError if a link, a folder or something else stands there, which this tool does not make.
    """
    check_name(output)
    partial = output.with_name(output.name + SUFFIX)
    try:
        mode = partial.lstat().st_mode
    except FileNotFoundError:
        return partial
    except OSError as error:
        raise OutputError("output-write", f"{partial}: cannot be written: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise foreign_file_error(
            partial, "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no file"
        )
    try:
        partial.unlink()
    except OSError as error:
        raise OutputError("output-write", f"{partial}: cannot be removed: {error.strerror}") from None
    return partial


def publish(partial: Path, output: Path) -> None:
    """Rename a file that is whole into its place, durably: its content first, then its name. Raises OSError."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(output)
    if os.name == "posix":  # elsewhere folders cannot be synced
        descriptor = os.open(output.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_not_input(output: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError if an output is one of the files that it is made from."""
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            message = f"{output}: expected an output that is none of the inputs, found one of them"
            raise OutputError("output-is-input", message, "choose another output")


def check_name(output: Path) -> None:
    """Raise OutputError if a name is too long to have something added to it."""
    most, length = NAME_BYTES - len(SUFFIX), len(os.fsencode(output.name))
    if length > most:
        message = f"{output}: expected a name of at most {most} bytes, found {length}"
        raise OutputError("output-name", message, "choose a shorter -o")


def foreign_file_error(path: Path, found: str) -> OutputError:
    """Return the error of something in the way that this tool did not make, and so does not remove."""
    message = f"{path}: expected nothing, or what an earlier run left, found {found}"
    return OutputError("output-in-the-way", message, "move it away, or choose another -o")
