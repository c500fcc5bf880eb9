"""Parquet: the same columns as in CSV, read some rows at a time, so that tens of millions take little more than their boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.columns import (
    SIZES,
    ColumnMapping,
    Numbers,
    looks_relative,
    map_columns,
    number_column,
    resolve_images,
    sizes_of,
    text_column,
    to_corners,
)
from roialign_cli.inputs.boxes.common import (
    MAX_EXPANDED_BYTES,
    Column,
    Grouping,
    Source,
    format_error,
    index_unique,
    unify_types,
)
from roialign_cli.types import BoxTable

ROWS_AT_ONCE = 1 << 18
BOX_BYTES = 16  # of a row, once it is read
MAX_EXPANSION = 1000  # grids of 20 x 20 boxes on every image expand 470 times, others far less (measured)
MAX_TEXT_BYTES_PER_ROW = 4096


def read(source: Source) -> BoxTable:
    """A row per box, in any order; needs pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise format_error(source.path, "expected pyarrow to read Parquet, found none", "pip install pyarrow") from None
    pool = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the usual one keeps what it has had
    try:
        with parquet.ParquetFile(source.path, pre_buffer=False) as file:
            return _table(source, file)
    except (pyarrow.ArrowException, OSError) as error:
        raise format_error(source.path, f"expected Parquet, found: {error}") from None
    finally:
        pyarrow.default_memory_pool().release_unused()
        pyarrow.set_memory_pool(pool)


def _table(source: Source, file: Any) -> BoxTable:
    mapping, count = map_columns(source, file.schema_arrow.names), file.metadata.num_rows
    named = mapping.names
    _check_size(source, file, set(named.values()))
    images, owner = resolve_images(source, *_images(source, file, named["image"]))
    sizes = sizes_of(source, images, _sizes(source, file, mapping, owner)) if mapping.states_sizes else None
    grouping = Grouping.by(owner, len(images))
    del owner  # before the boxes, the largest by far
    boxes = np.empty((count, 4), np.float32)
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is named by the check that follows
        for rows, some in _boxes(source, file, mapping):
            boxes[rows] = some
    relative_boxes = None
    if mapping.relative(looks_relative(boxes)):
        relative_boxes = np.empty((count, 4))
        for rows, some in _boxes(source, file, mapping):
            relative_boxes[rows] = some
    return grouping.table(
        images, boxes,
        labels=_text_column(file, named["label"]) if "label" in named else None,
        scores=_scores(source, file, named["score"]) if "score" in named else None,
        ids=_text_column(file, named["id"]) if "id" in named else None,
        sizes=sizes,
        relative_boxes=relative_boxes,
    )  # fmt: skip


def _check_size(source: Source, file: Any, names: set[str]) -> None:
    """InputError if the columns of these names expand to more than those of any boxes do."""
    described, size = file.metadata, source.path.stat().st_size
    rows = described.num_rows
    if rows * BOX_BYTES > max(MAX_EXPANDED_BYTES, MAX_EXPANSION * size):
        expected = f"expected boxes of at most {MAX_EXPANSION} times the {size / 1e6:.3g} MB of the file"
        raise format_error(source.path, f"{expected}, found {rows} that expand to {rows * BOX_BYTES / 1e6:.0f} MB")
    groups = (described.row_group(i) for i in range(described.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    text = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)
    if text > max(MAX_EXPANDED_BYTES, MAX_TEXT_BYTES_PER_ROW * rows):
        expected = f"expected names and labels of at most {MAX_TEXT_BYTES_PER_ROW} bytes a row"
        raise format_error(source.path, f"{expected}, found {rows} rows that expand to {text / 1e6:.0f} MB")


def _batches(file: Any, names: list[str]) -> Iterator[tuple[slice, list[Any]]]:
    """Some rows at a time: which they are, and their columns."""
    first = 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
        rows = slice(first, first + batch.num_rows)
        yield rows, [batch.column(batch.schema.get_field_index(name)) for name in names]
        first = rows.stop


def _images(source: Source, file: Any, name: str) -> tuple[PackedNames, npt.NDArray[np.integer]]:
    """The different names in the order in which they first come, and which of them each row has [N]."""
    import pyarrow

    rows_in_all = file.metadata.num_rows
    owner, parts, count = np.empty(rows_in_all, np.int32 if rows_in_all < 2**31 else np.int64), [], 0
    for rows, (values,) in _batches(file, [name]):
        if values.null_count:
            row = rows.start + values.is_null().index(True).as_py() + 1
            raise format_error(f"{source.path}: row {row}", f"{name}: expected the name of an image, found nothing")
        coded = values.cast(pyarrow.large_string()).dictionary_encode()
        owner[rows] = coded.indices.to_numpy() + count  # of the names of all batches, which may repeat
        _, ends, text = coded.dictionary.buffers()
        own = np.frombuffer(ends, np.int64, len(coded.dictionary) + 1)
        parts.append(PackedNames(np.frombuffer(text or b"", np.uint8)[: own[-1]], own))
        count += len(coded.dictionary)
    names = PackedNames.join(parts)
    parts.clear()
    names, which = index_unique(names)
    pyarrow.default_memory_pool().release_unused()
    for begin in range(0, len(owner), ROWS_AT_ONCE):
        owner[begin : begin + ROWS_AT_ONCE] = which[owner[begin : begin + ROWS_AT_ONCE]]
    return names, owner


def _number_columns(source: Source, file: Any, names: list[str]) -> Iterator[tuple[slice, list[Numbers]]]:
    """The same of numbers; InputError naming the row of what is none."""
    import pyarrow

    def converted(name: str, first: int, values: Any) -> Numbers:
        if pyarrow.types.is_floating(values.type) or pyarrow.types.is_integer(values.type):
            found: Numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)  # of what is missing, NaN
            return found
        return number_column(source, name, values.to_pylist(), first)

    for rows, columns in _batches(file, names):
        yield rows, [converted(name, rows.start + 1, values) for name, values in zip(names, columns, strict=True)]


def _boxes(source: Source, file: Any, mapping: ColumnMapping) -> Iterator[tuple[slice, Numbers]]:
    for rows, (a, b, c, d) in _number_columns(source, file, [mapping.names[what] for what in mapping.form]):
        yield rows, to_corners(mapping.form, a, b, c, d)


def _sizes(
    source: Source, file: Any, mapping: ColumnMapping, owner: npt.NDArray[np.integer]
) -> Iterator[tuple[npt.NDArray[np.integer], dict[str, Numbers]]]:
    for rows, values in _number_columns(source, file, [mapping.names[what] for what in SIZES]):
        yield owner[rows], dict(zip(SIZES, values, strict=True))


def _scores(source: Source, file: Any, name: str) -> Numbers:
    return np.concatenate([np.empty(0), *(values for _, (values,) in _number_columns(source, file, [name]))])


def _text_column(file: Any, name: str) -> Column:
    """Labels or ids; each different one is looked at once per batch."""
    import pyarrow

    parts = [np.empty(0, np.int64)]
    for _, (values,) in _batches(file, [name]):
        plain = values.dictionary_decode() if pyarrow.types.is_dictionary(values.type) else values
        coded = plain.dictionary_encode("encode")
        parts.append(text_column(coded.dictionary.to_pylist())[coded.indices.to_numpy()])
    return np.concatenate(unify_types(parts))
