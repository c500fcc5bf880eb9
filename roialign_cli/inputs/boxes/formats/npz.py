"""Read npz, a file per image with `bbox` [n, 4] as x1, y1, x2, y2 in pixels, as bottom-up-attention's tools write it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.common import MAX_EXPANDED_BYTES, Entry, Source, format_error, table_from_entries
from roialign_cli.types import BoxTable

BOX_ARRAYS, SCORE_ARRAYS, LABEL_ARRAYS = ("bbox", "boxes"), ("scores", "conf"), ("labels", "classes")


def read(source: Source) -> BoxTable:
    """Read files sorted by path: a.npz or a.jpg.npz for a.jpg, also with scores or conf and labels or classes.

    Raises InputError. Pickled objects are not loaded.
    """
    entries = []
    for path in source.files(".npz"):
        relative = path.relative_to(source.path) if source.is_folder else Path(path.name)
        stem = relative.with_suffix("").as_posix()
        image = stem if stem in source.images.all else source.images.find_by_stem(stem) or f"{stem}.jpg"
        with path.open("rb") if source.is_folder else source.open() as file:
            entries.append(_read_file(path, file, image))
    return table_from_entries(source, entries, source.units("xyxy"))


def _read_file(path: Path, file: BinaryIO, image: str) -> Entry:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            boxes, scores, labels = (
                _read_array(path, arrays, names) for names in (BOX_ARRAYS, SCORE_ARRAYS, LABEL_ARRAYS)
            )
            found = ", ".join(arrays.files)
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and the header parser raise errors of many types
        raise format_error(
            path, f"expected an npz file of plain arrays, found: {type(error).__name__}: {error}"
        ) from None
    if boxes is None:
        raise format_error(path, f"expected an array bbox, found {found or 'none'}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        raise format_error(path, f"bbox: expected numbers [n, 4], found {boxes.dtype} {list(boxes.shape)}")
    for name, values, kinds in (("scores", scores, "fiu"), ("labels", labels, "iuUS")):
        if values is not None and (values.shape != (len(boxes),) or values.dtype.kind not in kinds):
            raise format_error(path, f"{name}: expected [{len(boxes)}], found {values.dtype} {list(values.shape)}")
    if labels is not None and labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    return Entry(
        image,
        boxes.astype(np.float64),
        None if labels is None else labels.tolist(),
        None if scores is None else scores.astype(np.float64).tolist(),
    )


def _read_array(path: Path, arrays: Any, names: tuple[str, ...]) -> npt.NDArray[Any] | None:
    """Return the first array that exists among these names, or None. Raises InputError before allocating a huge one."""
    name = next((name for name in names if name in arrays.files), None)
    if name is None:
        return None
    member = f"{name}.npy" if f"{name}.npy" in arrays.zip.namelist() else name
    if arrays.zip.namelist().count(member) > 1:
        raise format_error(path, f"{name}: expected one array, found several of this name")
    size = arrays.zip.getinfo(member).file_size
    if size <= MAX_EXPANDED_BYTES:  # otherwise not even the header is safe to read
        with arrays.zip.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        size = max(size, math.prod(shape) * max(dtype.itemsize, 1))
    if size > MAX_EXPANDED_BYTES:
        expected = f"expected at most {MAX_EXPANDED_BYTES / 1e6:.0f} MB, or eight million boxes of one image"
        raise format_error(path, f"{name}: {expected}, found an array that expands to {size / 1e6:.0f} MB")
    array: npt.NDArray[Any] = arrays[name]
    return array
