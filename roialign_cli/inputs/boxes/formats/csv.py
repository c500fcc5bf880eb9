"""Read CSV, TSV and text tables: a row per box, under a header or in the columns that --columns names."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.column_shapes import enclosing_corners, table_shapes
from roialign_cli.inputs.boxes.columns import (
    IGNORED,
    SIZE_ROLES,
    ColumnMapping,
    RelativeEvidence,
    collect_sizes,
    known_scores,
    map_columns,
    number_column,
    positional_columns,
    resolve_images,
    text_column,
)
from roialign_cli.inputs.boxes.common import Grouping, Source, as_boxes, box_columns, format_error, index_unique
from roialign_cli.types import BoxTable

MAX_FIELD_CHARACTERS = 1 << 20
SEPARATORS = ",;\t"
NOT_NUMBERS = frozenset({"image", "label", "id", IGNORED})  # roles of columns that need not be numbers


def read(source: Source) -> BoxTable:
    """Read a table whose fields are separated by comma, semicolon, tab or spaces, whichever the first line has most of.

    Without a header, --columns names the columns in their order; without a column of images among them, all rows belong to
    the image with the stem of the file.
    """
    roles = positional_columns(source)
    rows = read_rows(str(source.path), source.read())
    if roles is None:
        if not rows:
            raise format_error(source.path, "expected a header and a row per box, found an empty file")
        names, body, first = [name.strip() for name in rows[0]], rows[1:], 2
    else:
        names, first = roles, 1
        body = without_header(rows, roles)
    columns = split_columns(str(source.path), names, body, first)
    if roles is not None and "image" not in roles:
        image = source.images.find_by_stem(source.path.stem) or f"{source.path.stem}.jpg"
        mapping = map_columns(source, [*names, "image"])
        return make_table(source, mapping, columns, PackedNames.from_strings([image]), np.zeros(len(body), np.int64))
    mapping = map_columns(source, names)
    images, owner = resolve_images(source, *index_unique(PackedNames.from_strings(columns[mapping.names["image"]])))
    return make_table(source, mapping, columns, images, owner)


def make_table(
    source: Source,
    mapping: ColumnMapping,
    columns: Mapping[str, Sequence[str]],
    images: PackedNames,
    owner: npt.NDArray[np.integer],
) -> BoxTable:
    """Return the table of N rows from their columns by name, given the image of each row [N]."""
    values = {role: columns[name] for role, name in mapping.names.items() if name in columns}
    numbers = {
        role: number_column(source, mapping.names[role], values[role])
        for role in (*mapping.layout, *mapping.region_roles, *SIZE_ROLES)
        if role in values
    }
    boxes = np.stack([numbers[role] for role in mapping.layout], axis=1)
    evidence = RelativeEvidence()
    evidence.add(boxes)
    fields = box_columns(boxes, mapping.units_of(evidence.looks_relative))
    if "angle" in numbers:
        fields["boxes"] = as_boxes(enclosing_corners(mapping, boxes, numbers["angle"]))
    scores, notes = None, mapping.notes
    if "score" in values:
        scores, notes = known_scores(
            number_column(source, mapping.names["score"], values["score"], optional=True), mapping
        )
    return Grouping.by_image(owner, len(images)).table(
        images,
        labels=text_column(values["label"]) if "label" in values else None,
        scores=scores,
        ids=text_column(values["id"]) if "id" in values else None,
        sizes=collect_sizes(source, images, [(owner, numbers)]) if mapping.states_sizes else None,
        shapes=table_shapes(mapping, source.region, boxes, numbers),
        notes=notes,
        **fields,
    )


def split_columns(
    where: str, names: Sequence[str], rows: Sequence[Sequence[str]], first: int
) -> dict[str, Sequence[str]]:
    """Return the columns by name. Raises InputError naming the first row, counted from `first`, of another length."""
    for number, row in enumerate(rows, first):
        if len(row) != len(names):
            raise format_error(f"{where}: row {number}", f"expected {len(names)} fields, found {len(row)}")
    if not rows:
        return dict.fromkeys(names, ())
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def without_header(rows: list[list[str]], roles: Sequence[str]) -> list[list[str]]:
    """Return rows without the first one if it names the columns: no field that should be a number is one."""
    if not rows or len(rows[0]) != len(roles):
        return rows
    fields = [field for role, field in zip(roles, rows[0], strict=True) if role not in NOT_NUMBERS]
    return rows if any(map(_is_number, fields)) else rows[1:]


def read_rows(where: str, content: bytes) -> list[list[str]]:
    """Return the fields of all lines that are not empty. Raises InputError naming the line of a wrong quote."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    rows: list[list[str]] = []
    begin = 1  # the line at which the next row begins
    try:
        text = content.decode("utf-8-sig")
        head = text.partition("\n")[0]
        separator = max(SEPARATORS, key=head.count)
        if separator not in head:
            return [fields for line in text.splitlines() if (fields := line.split())]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row in reader:
            if reader.line_num > begin:
                _check_multiline_fields(f"{where}: line {begin}", row, separator)
            begin = reader.line_num + 1
            if row:
                rows.append(row)
    except csv.Error as error:
        raise format_error(
            f"{where}: line {begin}", f"expected fields that are quoted completely or not at all, found: {error}"
        ) from None
    except UnicodeDecodeError as error:
        raise format_error(where, f"expected a table of text, found: {error.reason} at byte {error.start}") from None
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
