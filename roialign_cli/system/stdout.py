"""A standard output that remembers whether writing to it has failed."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


class Output(io.TextIOWrapper):
    """Standard output that remembers its OSError, which a caller could not tell from the error of a file otherwise."""

    failure: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write text; characters that cannot be encoded are written as backslash escapes."""
        try:
            return super().write(text)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Flush the buffer."""
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise


def discard(stream: TextIO) -> None:
    """Redirect a broken stream to the null device: Python flushes it again at exit, and would report another failure."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def take_stdout() -> Output | None:
    """Replace sys.stdout by an `Output` and return it, or return None if sys.stdout is closed or not a text stream."""
    before = sys.stdout
    if not isinstance(before, io.TextIOWrapper):
        return None
    encoding, line_buffering, write_through = before.encoding, before.line_buffering, before.write_through
    before.flush()
    output = Output(
        before.detach(), encoding, "backslashreplace", line_buffering=line_buffering, write_through=write_through
    )
    sys.stdout = output
    return output
