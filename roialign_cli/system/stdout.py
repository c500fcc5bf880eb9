"""A standard output that remembers its failure."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


class Output(io.TextIOWrapper):
    """Standard output that remembers its failure: whoever meets it cannot tell it from one of a file."""

    failure: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write text; what is no text in the name of a file stands as an escape."""
        try:
            return super().write(text)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Hand over what was written."""
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise


def discard(stream: TextIO) -> None:
    """Let what is written to a stream go nowhere: Python tries again at its end, and says so if that fails."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def take_stdout() -> Output | None:
    """Put an `Output` in the place of sys.stdout; None if that is closed."""
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
