"""Take everything from a feature file that Python can take, as a command beside those of the tool: `read FILE OTHER`."""

from __future__ import annotations

import sys
from pathlib import Path

from roialign_cli import FeatureFile
from roialign_cli.__main__ import main as roialign
from roialign_cli.errors import RoialignError
from roialign_cli.store.check import check


def main() -> None:
    """Run the command of sys.argv: `read`, or a command of the tool."""
    if sys.argv[1] != "read":
        roialign()
        return
    file, other = map(Path, sys.argv[2:])
    codes = [_told(source) for source in (file, [file, other], str(file.with_name("*.h5")))]
    sys.exit(codes[0])


def _told(source: Path | str | list[Path]) -> int:
    """Return the exit code that the tool would have; only its errors are caught."""
    try:
        with FeatureFile(source) as file:
            read(file)
    except RoialignError as error:
        print(f"error[{error.reference}]: {error.message}")
        return error.exit_code
    return 0


def read(file: FeatureFile) -> None:
    """Take everything that a file holds, and raise what that raises."""
    check(file)
    facts = (file.settings, file.errors, file.notes, file.done_rows, file.sizes, file.offset, len(file))
    assert len(facts) == 7
    for name in file.done_names:
        assert name in file
        assert len(file[name].boxes) == len(file[name])
    assert sum(len(item["boxes"]) for item in file.as_dataset()) == len(file.as_row_dataset())
    for item in file.as_row_dataset():
        assert item["box"].shape == (4,)
