"""CSV and TSV: a header, then a row per box."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from roialign_cli.arrays import Names
from roialign_cli.inputs.boxes.columns import SIZES, choose, corners, inside, meant, numbers, sizes_of, words
from roialign_cli.inputs.boxes.common import Grouping, Source, as_boxes, bad, numbered
from roialign_cli.types import BoxTable


def read(source: Source) -> BoxTable:
    """A header, then a row per box; fields separated by comma, semicolon or tab, whichever the header has most of."""
    rows = _rows(source.path)
    if not rows:
        raise bad(source.path, "expected a header and a row per box, found an empty file")
    names, body = [name.strip() for name in rows[0]], rows[1:]
    for number, row in enumerate(body, 2):
        if len(row) != len(names):
            raise bad(f"{source.path}: row {number}", f"expected {len(names)} fields, found {len(row)}")
    chosen = choose(source, names)
    columns: dict[str, Sequence[str]] = dict(zip(names, zip(*body, strict=True), strict=True)) if body else {}
    values = {what: columns.get(name, ()) for what, name in chosen.names.items()}
    images, owner = meant(source, *numbered(Names.of(values["image"])))
    given = {
        what: numbers(source, chosen.names[what], values[what]) for what in (*chosen.form, *SIZES) if what in values
    }
    exact = corners(chosen.form, *(given[what] for what in chosen.form))
    boxes = as_boxes(exact)
    return Grouping.by(owner, len(images)).table(
        images, boxes,
        labels=words(values["label"]) if "label" in values else None,
        scores=numbers(source, chosen.names["score"], values["score"]) if "score" in values else None,
        ids=words(values["id"]) if "id" in values else None,
        sizes=sizes_of(source, images, [(owner, given)]) if chosen.sized else None,
        shares=exact if chosen.relative(inside(boxes)) else None,
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
        raise bad(
            f"{path}: line {begin}", f"expected fields, quoted as a whole or not at all, found: {error}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise bad(path, f"expected a table of text, found: {error}") from None
    return rows


def _check_lines(where: str, row: list[str], separator: str) -> None:
    """A field over several lines may be a text; it may also be rows that a lost quote has swallowed: those have numbers."""
    for field in row:
        for line in field.splitlines() if "\n" in field or "\r" in field else ():
            if sum(map(_is_number, line.split(separator))) >= 4:
                raise bad(where, f"expected a quote that ends with its field, found a field with the row {line[:80]!r}")


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
