"""Read CSV and TSV: a header, then a row per box."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.columns import (
    SIZE_ROLES,
    collect_sizes,
    looks_relative,
    map_columns,
    number_column,
    resolve_images,
    text_column,
    to_corners,
)
from roialign_cli.inputs.boxes.common import Grouping, Source, as_boxes, format_error, index_unique
from roialign_cli.types import BoxTable

MAX_FIELD_CHARACTERS = 1 << 20


def read(source: Source) -> BoxTable:
    """Read a table whose fields are separated by comma, semicolon or tab, whichever is most frequent in the header."""
    rows = _rows(source.path)
    if not rows:
        raise format_error(source.path, "expected a header and a row per box, found an empty file")
    names, body = [name.strip() for name in rows[0]], rows[1:]
    for number, row in enumerate(body, 2):
        if len(row) != len(names):
            raise format_error(f"{source.path}: row {number}", f"expected {len(names)} fields, found {len(row)}")
    mapping = map_columns(source, names)
    columns: dict[str, Sequence[str]] = dict(zip(names, zip(*body, strict=True), strict=True)) if body else {}
    values = {role: columns.get(name, ()) for role, name in mapping.names.items()}
    images, owner = resolve_images(source, *index_unique(PackedNames.from_strings(values["image"])))
    numbers = {
        role: number_column(source, mapping.names[role], values[role])
        for role in (*mapping.layout, *SIZE_ROLES)
        if role in values
    }
    exact_boxes = to_corners(mapping.layout, *(numbers[role] for role in mapping.layout))
    boxes = as_boxes(exact_boxes)
    return Grouping.by_image(owner, len(images)).table(
        images, boxes,
        labels=text_column(values["label"]) if "label" in values else None,
        scores=number_column(source, mapping.names["score"], values["score"]) if "score" in values else None,
        ids=text_column(values["id"]) if "id" in values else None,
        sizes=collect_sizes(source, images, [(owner, numbers)]) if mapping.states_sizes else None,
        relative_boxes=exact_boxes if mapping.is_relative(looks_relative(boxes)) else None,
    )  # fmt: skip


def _rows(path: Path) -> list[list[str]]:
    """Return the fields of all lines that are not empty. Raises InputError naming the line of a wrong quote."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    rows: list[list[str]] = []
    begin = 1  # the line at which the next row begins
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for row in reader:
                if reader.line_num > begin:
                    _check_multiline_fields(f"{path}: line {begin}", row, separator)
                begin = reader.line_num + 1
                if row:
                    rows.append(row)
    except csv.Error as error:
        raise format_error(
            f"{path}: line {begin}", f"expected fields that are quoted completely or not at all, found: {error}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise format_error(path, f"expected a table of text, found: {error}") from None
    return rows


def _check_multiline_fields(where: str, row: list[str], separator: str) -> None:
    """Raise InputError if a field of several lines contains rows that a missing quote has merged into it.

    Such rows have four numbers or more; other fields of several lines are taken for text.
    """
    for field in row:
        for line in field.splitlines() if "\n" in field or "\r" in field else ():
            if sum(map(_is_number, line.split(separator))) >= 4:
                raise format_error(
                    where, f"expected a closing quote at the end of a field, found a field with the row {line[:80]!r}"
                )


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
