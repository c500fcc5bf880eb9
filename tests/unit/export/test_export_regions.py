"""Test that exports hold the tables of regions that are not boxes, as their consumers read them."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.region_files import KINDS, TABLES, Content, region_content, write_content

from roialign_cli import FeatureFile
from roialign_cli.export import export

CONTENTS = {
    **{kind: region_content(kind) for kind in KINDS},
    "one bin": region_content("mask", bins=(1, 1)),
    "points on two layers": region_content("points", layers=("one", "two")),
}


@pytest.fixture(params=CONTENTS)
def content(request: pytest.FixtureRequest) -> Content:
    return CONTENTS[request.param]


@pytest.fixture
def file(content: Content, tmp_path: Path) -> FeatureFile:
    """Make a file whose last image failed."""
    return FeatureFile(write_content(tmp_path / "f.h5", content, failed=[3]))


def assert_same(file: FeatureFile, kind: str, name: str, found: dict[str, object]) -> None:
    """Check all tables of regions of an image, and that there are no others."""
    assert {"rotated", "points", "coverage", "area"} & found.keys() == TABLES[kind]
    for table in TABLES[kind]:
        assert np.array_equal(np.asarray(found[table]), getattr(file[name], table))


def test_arrays(file: FeatureFile, content: Content, tmp_path: Path) -> None:
    export(file, tmp_path / "npz", "npz")
    export(file, tmp_path / "pt", "pt")
    assert file.done_names == ["0.png", "1.png", "2.png"]
    for name in file.done_names:
        assert_same(file, content.kind, name, dict(np.load(tmp_path / "npz" / f"{name}.npz")))
        assert_same(file, content.kind, name, torch.load(tmp_path / "pt" / f"{name}.pt", weights_only=True))


def test_lmdb(file: FeatureFile, content: Content, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    export(file, tmp_path / "out", "lmdb")
    with lmdb.open(str(tmp_path / "out"), readonly=True, lock=False) as environment, environment.begin() as transaction:
        for name in file.done_names:
            found = dict(np.load(io.BytesIO(transaction.get(name.encode()))))
            assert_same(file, content.kind, name, found)


def test_groups(file: FeatureFile, content: Content, tmp_path: Path) -> None:
    export(file, tmp_path / "out.h5", "h5-groups")
    with h5py.File(tmp_path / "out.h5") as found:
        for name in file.done_names:
            assert_same(file, content.kind, name, {key: values[()] for key, values in found[name].items()})


def test_chunks(file: FeatureFile, content: Content, tmp_path: Path) -> None:
    export(file, tmp_path / "out.h5", "h5", compression="gzip")
    with h5py.File(tmp_path / "out.h5") as found:
        assert {"rotated", "points", "coverage", "area"} & found.keys() == TABLES[content.kind]
        for table in TABLES[content.kind]:
            assert np.array_equal(found[table], file.dataset(table)[:5])  # without the region of the image that failed
        for layer, values in content.layers.items():
            assert np.array_equal(found["features" if len(content.layers) == 1 else f"features/{layer}"], values[:5])


def test_parquet(file: FeatureFile, content: Content, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(file, tmp_path / "out.parquet", "parquet")
    found = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert {"rotated", "points", "coverage", "area"} & found.keys() == TABLES[content.kind]
    for table in TABLES[content.kind]:
        values = file.dataset(table)[:5]
        assert np.array_equal(np.array(found[table], np.float32), values.reshape(5, -1) if values.ndim > 1 else values)
    for layer, values in content.layers.items():
        name = "features" if len(content.layers) == 1 else layer
        assert np.array_equal(np.array(found[name], np.float32), values[:5].reshape(5, -1))


def test_native_json_has_rotated_boxes_and_points(file: FeatureFile, content: Content, tmp_path: Path) -> None:
    export(file, tmp_path / "n.json", "native")
    found = json.loads((tmp_path / "n.json").read_text())
    for name in file.done_names:
        entry, regions = found[name], file[name]
        assert {"rotated", "points"} & entry.keys() == {"rotated", "points"} & TABLES[content.kind]
        for table in {"boxes", "rotated", "points"} & entry.keys():
            stored = getattr(regions, table)
            assert np.array_equal(np.array(entry[table], np.float32).reshape(stored.shape), stored)


def test_tsv_has_no_place_for_the_tables(tmp_path: Path) -> None:
    content = CONTENTS["points"]
    file = FeatureFile(write_content(tmp_path / "f.h5", content))
    export(file, tmp_path / "out.tsv", "tsv")
    csv.field_size_limit(sys.maxsize)
    with (tmp_path / "out.tsv").open() as opened:
        rows = list(csv.reader(opened, delimiter="\t"))
    assert {len(row) for row in rows} == {6}
    found = np.frombuffer(base64.b64decode(rows[2][5]), np.float32).reshape(3, 4, 8)
    assert np.array_equal(found, file["2.png"].features)
