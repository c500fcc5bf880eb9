"""CSV and TSV: a header, then a row per box."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.columns import (
    SIZES,
    looks_relative,
    map_columns,
    number_column,
    resolve_images,
    sizes_of,
    text_column,
    to_corners,
)
from roialign_cli.inputs.boxes.common import Grouping, Source, as_boxes, format_error, index_unique
from roialign_cli.types import BoxTable


def read(source: Source) -> BoxTable:
    """A header, then a row per box; fields separated by comma, semicolon or tab, whichever the header has most of."""
    rows = _rows(source.path)
    if not rows:
        raise format_error(source.path, "expected a header and a row per box, found an empty file")
    names, body = [name.strip() for name in rows[0]], rows[1:]
    for number, row in enumerate(body, 2):
        if len(row) != len(names):
            raise format_error(f"{source.path}: row {number}", f"expected {len(names)} fields, found {len(row)}")
    mapping = map_columns(source, names)
    columns: dict[str, Sequence[str]] = dict(zip(names, zip(*body, strict=True), strict=True)) if body else {}
    values = {what: columns.get(name, ()) for what, name in mapping.names.items()}
    images, owner = resolve_images(source, *index_unique(PackedNames.from_strings(values["image"])))
    given = {
        what: number_column(source, mapping.names[what], values[what])
        for what in (*mapping.form, *SIZES)
        if what in values
    }
    exact = to_corners(mapping.form, *(given[what] for what in mapping.form))
    boxes = as_boxes(exact)
    return Grouping.by(owner, len(images)).table(
        images, boxes,
        labels=text_column(values["label"]) if "label" in values else None,
        scores=number_column(source, mapping.names["score"], values["score"]) if "score" in values else None,
        ids=text_column(values["id"]) if "id" in values else None,
        sizes=sizes_of(source, images, [(owner, given)]) if mapping.states_sizes else None,
        relative_boxes=exact if mapping.relative(looks_relative(boxes)) else None,
    )  # fmt: skip


def _rows(path: Path) -> list[list[str]]:
    """The fields of all lines that are not empty; InputError naming the line where quotes are wrong."""
    csv.field_size_limit(1 << 20)
    rows: list[list[str]] = []
    begin = 1  # the line at which a row begins
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for row in reader:
                if reader.line_num > begin:
                    _check_lines(f"{path}: line {begin}", row, separator)
                begin = reader.line_num + 1
                if row:
                    rows.append(row)
    except csv.Error as error:
        raise format_error(
            f"{path}: line {begin}", f"expected fields, quoted as a whole or not at all, found: {error}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise format_error(path, f"expected a table of text, found: {error}") from None
    return rows


def _check_lines(where: str, row: list[str], separator: str) -> None:
    """A field over several lines may be a text; it may also be rows that a lost quote has swallowed: those have numbers."""
    for field in row:
        for line in field.splitlines() if "\n" in field or "\r" in field else ():
            if sum(map(_is_number, line.split(separator))) >= 4:
                raise format_error(
                    where, f"expected a quote that ends with its field, found a field with the row {line[:80]!r}"
                )


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
