"""Compare feature files, and write checksums that agree with changed tables."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from roialign_cli import FeatureFile
from roialign_cli.store.check import check
from roialign_cli.store.checksum import BOX_TABLES, TABLES, table_crc32


def assert_same(found: Path, expected: Path) -> None:
    """Check that two files, or patterns of shards, hold the same: features to 1e-6 of the maximum, the rest exactly."""
    with FeatureFile(found) as file, FeatureFile(expected) as right:
        assert check(file).problems == []
        assert file.names == right.names
        assert file.errors == right.errors
        assert file.layers == right.layers
        tables = {name for name in right.extents if not name.startswith("features")}
        assert tables == {name for name in file.extents if not name.startswith("features")}
        for name in tables - {"images/crc32", "images/table_crc32", "images/offset"}:
            assert np.array_equal(file.dataset(name), right.dataset(name)), name
        assert np.array_equal(file.offset, right.offset)
        for layer in right.layers:
            for name in right.done_names:
                mine, theirs = (one[name].features for one in (file, right))
                mine, theirs = (mine, theirs) if len(right.layers) == 1 else (mine[layer], theirs[layer])
                assert np.abs(mine - theirs).max(initial=0) <= 1e-6 * np.abs(theirs).max(initial=0), name


def vouch(file: h5py.File, image: int) -> None:
    """Write the checksum of an image's tables anew."""
    extents = {name for name in BOX_TABLES if name in file}
    extents |= {f"images/{name}" for name in file["images"]}
    raw = {name: file[name][()] for name in extents}
    status = int(raw["images/status"][image])
    file[TABLES][image] = table_crc32(
        lambda name, first, count: raw[name][first : first + count], extents, image, status
    )
