"""Read Parquet: the columns of CSV, in batches, so that tens of millions of rows take little more memory than their boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.column_shapes import enclosing_corners, table_shapes
from roialign_cli.inputs.boxes.columns import (
    SIZE_ROLES,
    ColumnMapping,
    RelativeEvidence,
    collect_sizes,
    known_scores,
    map_columns,
    number_column,
    resolve_images,
    text_column,
)
from roialign_cli.inputs.boxes.common import (
    MAX_EXPANDED_BYTES,
    Column,
    Grouping,
    Source,
    as_boxes,
    format_error,
    index_unique,
    unify_types,
)
from roialign_cli.inputs.boxes.units import Numbers
from roialign_cli.shapes import Shapes
from roialign_cli.types import BoxTable

ROWS_PER_BATCH = 1 << 18
BOX_BYTES = 16  # memory per row after reading: four float32
MAX_EXPANSION = 1000  # grids of 20 x 20 boxes on every image expand 470 times, other boxes far less (measured)
MAX_TEXT_BYTES_PER_ROW = 4096


def read(source: Source) -> BoxTable:
    """Read a row per box, in any order. Raises InputError, also if pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        expected = "expected pyarrow to be installed to read Parquet"
        raise format_error(source.path, f"{expected}, found no such package", "pip install pyarrow") from None
    pool = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the default pool keeps freed memory
    try:
        with parquet.ParquetFile(source.path if source.content is None else source.open(), pre_buffer=False) as file:
            return _table(source, file)
    except (pyarrow.ArrowException, OSError) as error:
        raise format_error(source.path, f"expected Parquet, found: {error}") from None
    finally:
        pyarrow.default_memory_pool().release_unused()
        pyarrow.set_memory_pool(pool)


def _table(source: Source, file: Any) -> BoxTable:
    mapping, count = map_columns(source, file.schema_arrow.names), file.metadata.num_rows
    column_names = mapping.names
    _check_expanded_size(source, file, set(column_names.values()))
    images, owner = resolve_images(source, *_read_images(source, file, column_names["image"]))
    sizes = collect_sizes(source, images, _iter_sizes(source, file, mapping, owner)) if mapping.states_sizes else None
    grouping = Grouping.by_image(owner, len(images))
    del owner  # frees memory before the boxes, by far the largest column, are read
    boxes, evidence = np.empty((count, 4), np.float32), RelativeEvidence()
    layout = mapping.units_of(False)
    with np.errstate(over="ignore"):  # values that overflow become infinite, which `check_values` reports
        for rows, batch in _iter_boxes(source, file, mapping):
            evidence.add(batch)
            boxes[rows] = layout.corners(batch)
    shapes = _read_shapes(source, file, mapping, boxes) if mapping.region_roles or source.region != "box" else None
    units, relative_boxes = mapping.units_of(evidence.looks_relative), None
    if units.relative:
        relative_boxes = np.empty((count, 4))
        for rows, batch in _iter_boxes(source, file, mapping):
            relative_boxes[rows] = units.corners(batch)
    scores, notes = None, mapping.notes
    if "score" in column_names:
        scores, notes = known_scores(_read_numbers(source, file, column_names["score"]), mapping)
    return grouping.table(
        images, boxes,
        labels=_read_text(file, column_names["label"]) if "label" in column_names else None,
        scores=scores,
        ids=_read_text(file, column_names["id"]) if "id" in column_names else None,
        sizes=sizes,
        relative_boxes=relative_boxes,
        shapes=shapes,
        units=str(units),
        notes=notes,
    )  # fmt: skip


def _check_expanded_size(source: Source, file: Any, names: set[str]) -> None:
    """Raise InputError if the columns of these names expand to more memory than those of real boxes do."""
    metadata = file.metadata
    size = source.path.stat().st_size if source.content is None else len(source.content)
    rows = metadata.num_rows
    if rows * BOX_BYTES > max(MAX_EXPANDED_BYTES, MAX_EXPANSION * size):
        expected = f"expected boxes of at most {MAX_EXPANSION} times the {size / 1e6:.3g} MB of the file"
        raise format_error(source.path, f"{expected}, found {rows} that expand to {rows * BOX_BYTES / 1e6:.0f} MB")
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    text = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)
    if text > max(MAX_EXPANDED_BYTES, MAX_TEXT_BYTES_PER_ROW * rows):
        expected = f"expected names and labels of at most {MAX_TEXT_BYTES_PER_ROW} bytes per row"
        raise format_error(source.path, f"{expected}, found {rows} rows that expand to {text / 1e6:.0f} MB")


def _batches(file: Any, names: list[str]) -> Iterator[tuple[slice, list[Any]]]:
    """Yield the columns of these names in batches, each with the rows of the table that it holds."""
    first = 0
    for batch in file.iter_batches(ROWS_PER_BATCH, columns=names, use_threads=False):
        rows = slice(first, first + batch.num_rows)
        yield rows, [batch.column(batch.schema.get_field_index(name)) for name in names]
        first = rows.stop


def _read_images(source: Source, file: Any, name: str) -> tuple[PackedNames, npt.NDArray[np.integer]]:
    """Return the distinct names in the order of their first occurrence, and the index of each row's name [N]."""
    import pyarrow

    total_rows = file.metadata.num_rows
    owner, parts, count = np.empty(total_rows, np.int32 if total_rows < 2**31 else np.int64), [], 0
    for rows, (values,) in _batches(file, [name]):
        if values.null_count:
            row = rows.start + values.is_null().index(True).as_py() + 1
            raise format_error(f"{source.path}: row {row}", f"{name}: expected the name of an image, found nothing")
        encoded = values.cast(pyarrow.large_string()).dictionary_encode()
        owner[rows] = encoded.indices.to_numpy() + count  # indexes the names of all batches, in which names may repeat
        _, ends_buffer, text = encoded.dictionary.buffers()
        ends = np.frombuffer(ends_buffer, np.int64, len(encoded.dictionary) + 1)
        parts.append(PackedNames(np.frombuffer(text or b"", np.uint8)[: ends[-1]], ends))
        count += len(encoded.dictionary)
    names = PackedNames.join(parts)
    parts.clear()
    names, index = index_unique(names)
    pyarrow.default_memory_pool().release_unused()
    for begin in range(0, len(owner), ROWS_PER_BATCH):
        owner[begin : begin + ROWS_PER_BATCH] = index[owner[begin : begin + ROWS_PER_BATCH]]
    return names, owner


def _number_batches(source: Source, file: Any, names: list[str]) -> Iterator[tuple[slice, list[Numbers]]]:
    """Yield columns in batches, as numbers. Raises InputError naming the row of a value that is not a number."""
    import pyarrow

    def as_numbers(name: str, first: int, values: Any) -> Numbers:
        if pyarrow.types.is_floating(values.type) or pyarrow.types.is_integer(values.type):
            found: Numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)  # missing values become NaN
            return found
        return number_column(source, name, values.to_pylist(), first)

    for rows, columns in _batches(file, names):
        yield rows, [as_numbers(name, rows.start + 1, values) for name, values in zip(names, columns, strict=True)]


def _iter_boxes(source: Source, file: Any, mapping: ColumnMapping) -> Iterator[tuple[slice, Numbers]]:
    for rows, numbers in _number_batches(source, file, [mapping.names[role] for role in mapping.layout]):
        yield rows, np.stack(numbers, axis=1)


def _read_shapes(source: Source, file: Any, mapping: ColumnMapping, boxes: npt.NDArray[np.float32]) -> Shapes | None:
    """Return the shapes of rows; boxes [N, 4] that have an angle become the boxes around them, in place."""
    roles = (*mapping.layout, *mapping.region_roles)
    parts = []
    for rows, columns in _number_batches(source, file, [mapping.names[role] for role in roles]):
        numbers, batch = dict(zip(roles, columns, strict=True)), np.stack(columns[:4], axis=1)
        if "angle" in numbers:
            boxes[rows] = as_boxes(enclosing_corners(mapping, batch, numbers["angle"]))
        parts.append(table_shapes(mapping, source.region, batch, numbers))
    return None if source.region == "box" else Shapes.join([part for part in parts if part is not None])


def _iter_sizes(
    source: Source, file: Any, mapping: ColumnMapping, owner: npt.NDArray[np.integer]
) -> Iterator[tuple[npt.NDArray[np.integer], dict[str, Numbers]]]:
    for rows, values in _number_batches(source, file, [mapping.names[role] for role in SIZE_ROLES]):
        yield owner[rows], dict(zip(SIZE_ROLES, values, strict=True))


def _read_numbers(source: Source, file: Any, name: str) -> Numbers:
    return np.concatenate([np.empty(0), *(values for _, (values,) in _number_batches(source, file, [name]))])


def _read_text(file: Any, name: str) -> Column:
    """Return a column of labels or ids, converting each distinct value once per batch."""
    import pyarrow

    parts = [np.empty(0, np.int64)]
    for _, (values,) in _batches(file, [name]):
        plain = values.dictionary_decode() if pyarrow.types.is_dictionary(values.type) else values
        encoded = plain.dictionary_encode("encode")
        parts.append(text_column(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()])
    return np.concatenate(unify_types(parts))
