"""Write native JSON, as `formats/native.py` reads it: a line per image, numbers with the fewest digits that are exact."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import numpy.typing as npt


def write_entries(file: TextIO, entries: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Write the entry of each image under its name."""
    file.write("{")
    for i, (name, entry) in enumerate(entries):
        file.write(f"{',' if i else ''}\n {json.dumps(name)}: {json.dumps(entry)}")
    file.write("\n}\n")


def box_entry(boxes: npt.NDArray[Any], labels: list[Any] | None, ids: list[Any] | None, scores: Any) -> dict[str, Any]:
    """Return the entry of an image with boxes [L, 4]; columns that it does not have are None."""
    columns = {"labels": labels, "ids": ids, "scores": None if scores is None else exact(scores)}
    return {"boxes": exact(boxes), **{key: column for key, column in columns.items() if column is not None}}


def exact(values: npt.NDArray[Any]) -> Any:
    """Return float32 numbers as lists, with the fewest digits that are exact."""
    return [exact(value) if value.ndim else float(str(value)) for value in values]
