"""Print results on stdout and everything else on stderr; rich handles NO_COLOR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.table import Table

from roialign_cli.json_output import to_json


class _Notes(Console):
    """Print messages beside the result, and ignore a full disk: a log that cannot be written must not end a run."""

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)


MAX_LISTED_FAILURES = 10
PIPE_WIDTH = 10_000  # characters: tables that are not for a terminal are not wrapped

# Without markup: names of files and images may contain "[red]".
stdout = Console(soft_wrap=True, markup=False)
if not stdout.is_terminal:
    stdout.width = PIPE_WIDTH
stderr = _Notes(stderr=True, soft_wrap=True, markup=False)


def print_json(result: Any) -> None:
    """Print one JSON document on stdout, for scripts."""
    print(to_json(result))  # noqa: T201


def human_bytes(pluralise: float) -> str:
    """Format a number of bytes: 1536 -> 1.5 KB."""
    for unit in ("B", "KB", "MB", "GB"):
        if pluralise < 1000:
            return f"{pluralise:.0f} {unit}" if unit == "B" else f"{pluralise:.1f} {unit}"
        pluralise /= 1000
    return f"{pluralise:.1f} TB"


def pluralise(number: int, noun: str) -> str:
    """Format a count: 1 image, 2 images, 2 boxes."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('x') else 's'}"


def key_value_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, show_header=False, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on the input on stderr."""
    for note in notes:
        stderr.print(f"note: {note}", highlight=False)


def print_failures(failures: Mapping[str, str], where: str) -> None:
    """Print the first failed images and their reasons on stderr; `where` says where all of them are listed."""
    for name, reason in list(failures.items())[:MAX_LISTED_FAILURES]:
        stderr.print(f'failed: "{name}": {reason}', highlight=False)
    if len(failures) > MAX_LISTED_FAILURES:
        stderr.print(f"... and {len(failures) - MAX_LISTED_FAILURES} more; {where}", highlight=False)
