"""Export tables: bottom-up-attention's TSV with an image per row, and Parquet with a box per row."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import is_text
from roialign_cli.errors import ConfigError, OutputError
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.regions import Regions
from roialign_cli.store.schema import REGION_TABLES

FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


def write_tsv(file: FeatureFile, _: Sequence[str], images: Iterator[Regions], path: Path, __: str) -> None:
    """Write FIELDS without a header, as bottom-up-attention's readers expect; arrays are float32 in base64."""
    if len(file.layers) > 1:
        raise ConfigError("config-value", f"to: expected a file with one layer for tsv, found {', '.join(file.layers)}")
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as output:
        writer = csv.DictWriter(output, FIELDS, delimiter="\t", lineterminator="\n")
        for regions in images:
            height, width = regions.size
            assert not isinstance(regions.features, Mapping)
            writer.writerow({
                "image_id": regions.name, "image_w": width, "image_h": height, "num_boxes": len(regions),
                "boxes": _base64(regions.boxes), "features": _base64(regions.features),
            })  # fmt: skip


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, np.float32).tobytes()).decode()


def write_parquet(
    file: FeatureFile, names: Sequence[str], images: Iterator[Regions], path: Path, compression: str
) -> None:
    """Write image, x1, y1, x2, y2, label, score, id, and the features of each layer as a fixed-length list in C order.

    Of regions that are not boxes also rotated, points, coverage and area; those of several numbers are such lists, too.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        hint = "pip install 'roialign[parquet]'"
        raise OutputError("export-extra", "parquet: expected the package pyarrow, found none", hint) from None
    # Text in Parquet must be UTF-8. File names need not be, and are then stored as bytes.
    name_type = pyarrow.string() if all(map(is_text, names)) else pyarrow.binary()
    writer = None
    try:
        for regions in images:
            table = _table(file, regions, name_type, pyarrow)
            if writer is None:
                writer = parquet.ParquetWriter(path, table.schema, compression=compression)
            writer.write_table(table)
        if writer is None:
            parquet.write_table(pyarrow.table({"image": pyarrow.array([], name_type)}), path)
    finally:
        if writer is not None:
            writer.close()


def _table(file: FeatureFile, regions: Regions, name_type: Any, pyarrow: Any) -> Any:
    """Return the boxes of one image as a table."""
    encoded = regions.name.encode("utf-8", "surrogateescape")
    columns: dict[str, Any] = {"image": pyarrow.array([encoded] * len(regions), pyarrow.binary()).cast(name_type)}
    for i, name in enumerate(("x1", "y1", "x2", "y2")):
        columns[name] = pyarrow.array(np.ascontiguousarray(regions.boxes[:, i]))
    for name, values in (("label", regions.labels), ("score", regions.scores), ("id", regions.ids)):
        if values is not None:
            text = values.dtype.kind == "U"  # the type is given, since it cannot be inferred without labels
            columns[name] = (
                pyarrow.array(values.tolist(), pyarrow.string()) if text else pyarrow.array(np.array(values))
            )
    layers = regions.features if isinstance(regions.features, Mapping) else {"features": regions.features}
    tables = {name: values for name in REGION_TABLES if (values := getattr(regions, name)) is not None}
    for name, rows in {**tables, **layers}.items():
        flat = pyarrow.array(np.ascontiguousarray(rows).reshape(-1))
        length = int(np.prod(rows.shape[1:]))
        columns[name] = flat if rows.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, length)
    return pyarrow.table(columns, metadata={"config": str(file.attributes["config"])})
