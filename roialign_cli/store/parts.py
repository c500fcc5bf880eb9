"""Memory-map the arrays of a feature file, or of several files that are read as one, such as all shards of a run."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError
from roialign_cli.store.schema import LINKED, DatasetExtent, extents, features_path, open_file, read_attributes
from roialign_cli.store.structure import DATASETS, check_attributes, check_datasets, check_links, check_rows

Array = npt.NDArray[Any]
# Attributes that files which are read as one must share; shards must share the second tuple, too.
SHARED_ATTRIBUTES = ("config", "weights_sha256", "layers")
SHARD_RUN_ATTRIBUTES = ("shards", "plan_sha256")


class Part:
    """Hold one file: its attributes and layers, where its datasets lie, and their memory maps.

    The structure of the file is checked here, once, see `structure`; OutputError is raised if it is not as promised. For a
    file that links others, `linked` are their paths, and there are no datasets.
    """

    def __init__(self, path: Path, *, allow_links: bool = False) -> None:
        self.path = path
        self.extents: Mapping[str, DatasetExtent] = {}
        self.linked: list[Path] = []
        self._maps: dict[str, Array] = {}
        try:
            with open_file(path) as file:
                self.attributes = read_attributes(file)
                links = LINKED in file.attrs
                self.layers = check_attributes(path, self.attributes, set(file.attrs), linked=links)
                if links:
                    self.linked = check_links(path, self.attributes, allowed=allow_links)
                    return
                self.extents = _extents(file, self.layers)
        except OutputError:
            raise
        except Exception as error:  # h5py raises many kinds of errors on damaged files
            reason = str(error).split("\n", maxsplit=1)[0]
            raise OutputError("file-damaged", f"{path}: expected a whole feature file, found: {reason}") from None
        check_datasets(path, self.extents, self.layers, self.attributes)
        check_rows(path, self.map("images/name"), self.map("images/offset"), self.extents["boxes"].shape[0])

    @property
    def images(self) -> int:
        """Number of images."""
        return self.extents["images/name"].shape[0]

    @property
    def rows(self) -> int:
        """Number of boxes."""
        return self.extents["boxes"].shape[0]

    def map(self, name: str) -> Array:
        """Return a dataset, memory-mapped and read-only."""
        if name not in self._maps:
            if name not in self.extents:
                raise OutputError("file-layout", f"{self.path}: expected a dataset {name}, found none")
            self._maps[name] = _memory_map(self.path, self.extents[name])
        return self._maps[name]

    def close(self) -> None:
        """Release the maps; arrays taken from them stay valid."""
        self._maps.clear()


class StackedArray:
    """Read arrays [n_i, ...] of several files as one [sum n_i, ...]: by row, by slice, or by an array of rows.

    A slice within one file is a view; everything else is a copy.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = arrays
        self.offset = np.cumsum([0, *map(len, arrays)])
        self.dtype = np.result_type(*arrays)
        self.shape = (int(self.offset[-1]), *arrays[0].shape[1:])

    def __len__(self) -> int:
        return int(self.offset[-1])

    def __getitem__(self, key: Any) -> Array:
        if isinstance(key, slice):
            low, high, step = key.indices(len(self))
            if step == 1:
                return self._range(low, high)
            key = np.arange(low, high, step)
        if isinstance(key, tuple):
            raise TypeError("expected a row, a slice or an array of rows of several files, found several indices")
        index = np.asarray(key)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        index = np.where(index < 0, index + len(self), index)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"row {key} of {len(self)}")
        owner = np.searchsorted(self.offset, index, side="right") - 1
        if index.ndim == 0:
            row: Array = self.arrays[int(owner)][int(index - self.offset[owner])]
            return row
        found = np.empty((*index.shape, *self.shape[1:]), self.dtype)
        for i in np.unique(owner).tolist():
            found[owner == i] = self.arrays[i][index[owner == i] - self.offset[i]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        del copy
        return self._range(0, len(self)).astype(dtype or self.dtype)

    def _range(self, low: int, high: int) -> Array:
        pieces = [
            array[max(low - begin, 0) : high - begin]
            for array, begin in zip(self.arrays, self.offset.tolist(), strict=False)
            if low < begin + len(array) and begin < high
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.arrays[0][:0]])


def read_extents(path: Path) -> Mapping[str, DatasetExtent]:
    """Return where the datasets of a file lie, by their path in the file.

    Unlike `Part` this reads no names and checks no rows, for a file that this run has made or opened before.
    """
    with open_file(path) as file:
        return _extents(file, json.loads(file.attrs["layers"]))


def open_parts(path: Path | Sequence[Path], *, allow_links: bool = False) -> list[Part]:
    """Open a file, all files of a pattern such as `features-*-of-0016.h5`, those of a list, or those that a file links.

    Raises OutputError if there is none, one is not a feature file, they do not belong together, or a shard is missing.
    """
    if not isinstance(path, Path):
        return _join(path[0].parent, [Part(one) for one in path])
    if path.exists() or not glob.has_magic(str(path)):
        part = Part(path, allow_links=allow_links)
        return _join(path, [Part(one) for one in part.linked]) if part.linked else [part]
    root = Path(path.anchor)
    found = [Part(name) for name in sorted(root.glob(str(path.relative_to(root))))]
    if not found:
        raise OutputError("file-missing", f"{path}: expected feature files with such names, found none")
    return _join(path, found)


def _extents(file: h5py.File, layers: Sequence[str]) -> Mapping[str, DatasetExtent]:
    """Return where the datasets of the format lie in an open file."""
    return extents(file, [*DATASETS, *(features_path(layer, len(layers)) for layer in layers)])


def _join(path: Path, found: list[Part]) -> list[Part]:
    """Return files that belong together, shards in their order. Raises OutputError if they do not."""
    first = found[0]
    if linked := [part.path for part in found if part.linked]:
        message = f"{path}: expected files that hold features, found one that links others: {linked[0]}"
        raise OutputError("file-links", message, "name the files that it links")
    shards = "shard" in first.attributes
    for part in found[1:]:
        if _kinds(part) != _kinds(first):
            expected = f"expected datasets of the types and shapes that {first.path.name} has, found others"
            raise OutputError("shards-differ", f"{part.path}: {expected}", "they belong to different runs")
        for key in (*SHARED_ATTRIBUTES, *(SHARD_RUN_ATTRIBUTES if shards else ())):
            mine, theirs = (one.attributes.get(key) for one in (part, first))
            if mine != theirs:
                expected = f"expected {key} as in {first.path.name}, {theirs}, found {mine}"
                raise OutputError("shards-differ", f"{part.path}: {expected}", "they belong to different runs")
    if not shards:
        return found
    found = sorted(found, key=lambda part: part.attributes.get("shard", 0))
    numbers = [part.attributes.get("shard", 0) for part in found]
    total = first.attributes["shards"]
    present = set(numbers)
    if missing := list(islice((number for number in range(1, total + 1) if number not in present), 11)):
        listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        message = f"{path}: expected {total} shards, found {len(numbers)}; missing: {listed}"
        raise OutputError("shards-missing", message, f"extract with --shard {missing[0]}/{total}")
    images = sum(part.images for part in found)
    if len(numbers) > total or images != first.attributes["plan_images"]:
        expected = f"expected {total} shards of {first.attributes['plan_images']:,} images"
        raise OutputError("shards-differ", f"{path}: {expected}, found {len(numbers)} of {images:,}")
    return found


def _kinds(part: Part) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and the row shape of each dataset; strings may have any length."""
    return {
        name: ("string" if extent.dtype.kind == "S" else str(extent.dtype), extent.shape[1:])
        for name, extent in part.extents.items()
    }


def _memory_map(path: Path, extent: DatasetExtent) -> Array:
    """Return a dataset as a memory map."""
    if 0 in extent.shape:
        return np.empty(extent.shape, extent.raw_dtype)
    try:
        return np.memmap(path, extent.raw_dtype, "r", extent.offset, extent.shape)
    except (OSError, ValueError) as error:
        raise OutputError("file-truncated", f"{path}: expected more bytes than are there: {error}") from None
