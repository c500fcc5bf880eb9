"""Write an output to `<output>.partial` until it is complete, then rename it into place durably."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from roialign_cli.errors import OutputError

SUFFIX = ".partial"
MAX_NAME_BYTES = 255  # of most file systems


@contextmanager
def replace_atomically(output: Path, reference: str = "output-write") -> Iterator[Path]:
    """Yield the path of a file to write; then sync it and rename it to `output`. If anything fails, remove it.

    Raises OutputError with this reference if the file cannot be written, and what `partial_path` raises.
    """
    partial = partial_path(output)
    try:
        yield partial
        publish(partial, output)
    except OSError as error:
        raise OutputError(reference, f"{output}: cannot be written: {error.strerror or error}") from None
    finally:  # after a success the name is free already
        partial.unlink(missing_ok=True)


def partial_path(output: Path) -> Path:
    """Return the path to write to, and remove the partial file that an earlier run has left there.

    Raises OutputError if a link, a folder or anything else is there that this tool does not make.
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
        found = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise foreign_file_error(partial, found)
    try:
        partial.unlink()
    except OSError as error:
        raise OutputError("output-write", f"{partial}: cannot be removed: {error.strerror}") from None
    return partial


def publish(partial: Path, output: Path) -> None:
    """Rename a complete file into place durably: sync its content first, then its name. Raises OSError."""
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
    """Raise OutputError if a name is too long to append the suffix to it."""
    most, length = MAX_NAME_BYTES - len(SUFFIX), len(os.fsencode(output.name))
    if length > most:
        message = f"{output}: expected a name of at most {most} bytes, found {length}"
        raise OutputError("output-name", message, "choose a shorter -o")


def foreign_file_error(path: Path, found: str) -> OutputError:
    """Return the error of something in the way that this tool did not make and therefore does not remove."""
    message = f"{path}: expected nothing, or what an earlier run left, found {found}"
    return OutputError("output-in-the-way", message, "move it away, or choose another -o")
