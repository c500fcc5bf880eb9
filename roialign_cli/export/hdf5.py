"""Export to other arrangements of HDF5: a group per image, or the datasets of a feature file chunked and compressed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from roialign_cli.errors import OutputError
from roialign_cli.store.checksum import ATTRIBUTES
from roialign_cli.store.disk import DeferredErrorFile
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.regions import Regions
from roialign_cli.store.schema import COLUMNS, REGION_TABLES, encode, features_path

CHUNK_BYTES = 1 << 20


def write_groups(file: FeatureFile, _: Sequence[str], images: Iterator[Regions], path: Path, __: str) -> None:
    """Write /<image>/features, boxes, labels, ...; a folder in an image's name becomes a group, too."""
    with DeferredErrorFile(path) as target, h5py.File(target, "w", track_order=True) as output:
        output.attrs.update(_attributes(file))
        for regions in images:
            group = output.create_group(encoded(regions.name))
            layers = regions.features if isinstance(regions.features, Mapping) else {"features": regions.features}
            names = ("boxes", "labels", "scores", "ids", *REGION_TABLES)
            columns = {name: getattr(regions, name) for name in names}
            for name, values in {**layers, **columns}.items():
                if values is not None:
                    stored = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else np.array(values)
                    group.create_dataset(name, data=stored)
            group.attrs["size"] = regions.size


def write_chunked(
    file: FeatureFile, names: Sequence[str], images: Iterator[Regions], path: Path, compression: str
) -> None:
    """Write /features, /boxes, /images/name, /images/offset, ... as in a feature file, with images that are done only."""
    filters = _filters(compression)
    counts = [file.rows(name).stop - file.rows(name).start for name in names]
    layers = {features_path(layer, len(file.layers)): file.features(layer) for layer in file.layers}
    columns = {name: file.dataset(name) for name in ("boxes", *COLUMNS) if name in file.extents}
    with DeferredErrorFile(path) as target, h5py.File(target, "w") as output:
        output.attrs.update({**_attributes(file), "format": "roialign-features-compressed"})
        output["images/name"] = encode(list(names))
        output["images/offset"] = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        output["images/size"] = np.array([file[name].size for name in names], np.int64).reshape(-1, 2)
        made: dict[str, Any] = {}
        for name, values in {**layers, **columns}.items():
            shape = (sum(counts), *values.shape[1:])
            row = max(1, math.prod(values.shape[1:]) * values.dtype.itemsize)
            chunk = (min(max(1, CHUNK_BYTES // row), max(1, shape[0])), *values.shape[1:])
            options = {"chunks": chunk, **filters} if name in layers and shape[0] else {}
            made[name] = output.create_dataset(name, shape, values.dtype, **options)
        first = 0
        for regions in images:
            rows = file.rows(regions.name)
            for name, values in {**layers, **columns}.items():
                if len(regions):
                    made[name][first : first + len(regions)] = values[rows]
            first += len(regions)


def encoded(name: str) -> bytes:
    """Encode a name as UTF-8; bytes of a file name that are not UTF-8 stay as they are."""
    return name.encode("utf-8", "surrogateescape")


def _attributes(file: FeatureFile) -> dict[str, Any]:
    """Return the attributes of a file without their checksum."""
    return {name: value for name, value in file.attributes.items() if name != ATTRIBUTES}


def _filters(compression: str) -> dict[str, Any]:
    """Return h5py's options for a compression."""
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    try:
        import hdf5plugin
    except ImportError:
        hint = "pip install 'roialign[compress]'"
        message = f"{compression}: expected the package hdf5plugin, found none"
        raise OutputError("export-extra", message, hint) from None
    made = hdf5plugin.Zstd() if compression == "zstd" else hdf5plugin.Blosc2(cname="zstd")
    return dict(made)
