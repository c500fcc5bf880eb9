"""Everything that Python can take from a feature file, as a command beside those of the tool: `read FILE OTHER`."""

from __future__ import annotations

import sys
from pathlib import Path

from roialign_cli import FeatureFile
from roialign_cli.__main__ import main as roialign
from roialign_cli.errors import RoialignError
from roialign_cli.store.check import check


def main() -> None:
    """Run the command of sys.argv: our own, or the tool's."""
    if sys.argv[1] != "read":
        roialign()
        return
    file, other = map(Path, sys.argv[2:])
    codes = [_told(source) for source in (file, [file, other], str(file.with_name("*.h5")))]
    sys.exit(codes[0])


def _told(source: Path | str | list[Path]) -> int:
    """The exit code that the tool would have, whose errors are the only ones that are caught."""
    try:
        with FeatureFile(source) as file:
            read(file)
    except RoialignError as error:
        print(f"error[{error.reference}]: {error.message}")
        return error.exit_code
    return 0


def read(file: FeatureFile) -> None:
    """Take all that a file holds; raises what it raises."""
    check(file)
    facts = (file.settings, file.errors, file.notes, file.done_rows, file.sizes, file.offset, len(file))
    assert len(facts) == 7
    for name in file.done_names:
        assert name in file
        assert len(file[name].boxes) == len(file[name])
    assert sum(len(item["boxes"]) for item in file.as_dataset()) == len(file.as_row_dataset())
    for item in file.as_row_dataset():
        assert item["box"].shape == (4,)
