"""Export a set of arrays per image: npz with bottom-up-attention's keys, torch files, and LMDB.

The arrays are `x` [n, ...] features (`x_<layer>` if several layers are tapped), `bbox` [n, 4], `num_bbox`, `image_h`,
`image_w`, and `labels`, `scores`, `ids`, `rotated`, `points`, `coverage`, `area` if the file has them. A file has the name of
its image including the suffix, so that no two collide.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from roialign_cli.errors import OutputError
from roialign_cli.export.folder import ExportFolder
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.regions import Regions
from roialign_cli.store.schema import REGION_TABLES

LMDB_FILES = ("data.mdb", "lock.mdb")
KEYS = "keys"  # the key of the list of names in LMDB
MAP_BYTES = 1 << 40  # address space, not disk space, that LMDB may use


def arrays_of(regions: Regions) -> dict[str, Any]:
    """Return everything stored about an image as arrays and numbers."""
    features = regions.features if isinstance(regions.features, Mapping) else {"": regions.features}
    found: dict[str, Any] = {f"x_{layer}" if layer else "x": np.array(values) for layer, values in features.items()}
    height, width = regions.size
    found |= {"bbox": np.array(regions.boxes), "num_bbox": len(regions), "image_h": height, "image_w": width}
    for name in ("labels", "scores", "ids", *REGION_TABLES):
        column = getattr(regions, name)
        if column is not None:
            found[name] = np.array(column)
    return found


def write_npz(_: FeatureFile, __: Sequence[str], images: Iterator[Regions], folder: Path, compression: str) -> None:
    """Write <folder>/<image>.npz."""
    save = np.savez if compression == "none" else np.savez_compressed
    with closing(ExportFolder(folder)) as output:
        for regions in images:
            save(output.file(f"{regions.name}.npz"), **arrays_of(regions))


def write_pt(_: FeatureFile, __: Sequence[str], images: Iterator[Regions], folder: Path, ___: str) -> None:
    """Write <folder>/<image>.pt with tensors, numbers and lists of strings, which `torch.load(weights_only=True)` reads."""
    import torch

    with closing(ExportFolder(folder)) as output:
        for regions in images:
            found = arrays_of(regions)
            for name, value in found.items():
                if isinstance(value, np.ndarray):
                    found[name] = value.tolist() if value.dtype.kind == "U" else torch.from_numpy(value)
            with output.file(f"{regions.name}.pt").open("wb") as target:
                torch.save(found, target)


def write_lmdb(_: FeatureFile, names: Sequence[str], images: Iterator[Regions], folder: Path, __: str) -> None:
    """Write an environment with the bytes of an npz file per image name, and the names as JSON under `keys`."""
    try:
        import lmdb
    except ImportError:
        raise OutputError("export-extra", "lmdb: expected the package lmdb, found none", "pip install lmdb") from None
    environment = None
    try:
        with closing(ExportFolder(folder)) as output:
            for name in LMDB_FILES:
                output.file(name)
        environment = lmdb.open(str(folder), map_size=MAP_BYTES)
        for regions in images:
            if regions.name == KEYS:
                message = f'{folder}: expected no image called "{KEYS}", which in LMDB is the list of names, found one'
                raise OutputError("export-name", message, "choose another --to")
            buffer = io.BytesIO()
            np.savez(buffer, **arrays_of(regions))
            with environment.begin(write=True) as transaction:
                transaction.put(regions.name.encode("utf-8", "surrogateescape"), buffer.getvalue())
        with environment.begin(write=True) as transaction:
            transaction.put(KEYS.encode(), json.dumps(list(names)).encode())
    except lmdb.Error as error:
        raise OutputError("output-write", f"{folder}: cannot be written: {error}") from None
    finally:
        if environment is not None:
            environment.close()
