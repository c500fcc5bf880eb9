"""Read exports the way their consumers do, and test that an export is whole or absent."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers.commands import Run
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import RoialignError
from roialign_cli.export import FORMS, export


@pytest.fixture
def file(photos: tuple[Path, Path], tmp_path: Path) -> FeatureFile:
    """Extract twelve images, in folders and with spaces and umlauts in their names, with labels, scores and ids."""
    folder, boxes = photos
    content = json.loads(boxes.read_text())
    table = {}
    for name, rows in content.items():
        numbers = list(range(len(rows)))
        labels = [f"Büro {i}" for i in numbers]
        table[name] = {"boxes": rows, "labels": labels, "scores": [0.5] * len(rows), "ids": numbers}
    boxes.write_text(json.dumps(table))
    extract(folder, boxes, tmp_path / "f.h5", config_name="quickstart", output_size=2)
    return FeatureFile(tmp_path / "f.h5")


def same(file: FeatureFile, name: str, found: dict[str, Any], features: str, boxes: str) -> None:
    regions = file[name]
    assert np.array_equal(np.asarray(found[features]).reshape(regions.features.shape), regions.features)
    assert np.array_equal(np.asarray(found[boxes]).reshape(-1, 4), regions.boxes)
    for column in ("labels", "scores", "ids"):
        if column in found:
            assert np.asarray(found[column]).tolist() == getattr(regions, column).tolist()


def test_npz(file: FeatureFile, tmp_path: Path) -> None:
    result = export(file, tmp_path / "out", "npz", compression="gzip")
    assert (result.images, result.boxes, result.left_out) == (12, len(file.features()), 0)
    for name in file:
        found = dict(np.load(tmp_path / "out" / f"{name}.npz"))
        same(file, name, found, "x", "bbox")
        assert (int(found["image_h"]), int(found["image_w"])) == file[name].size
        assert int(found["num_bbox"]) == len(file[name])


def test_torch_files(file: FeatureFile, tmp_path: Path) -> None:
    export(file, tmp_path / "out", "pt")
    for name in file:
        found = torch.load(tmp_path / "out" / f"{name}.pt", weights_only=True)
        same(file, name, found, "x", "bbox")


def test_lmdb(file: FeatureFile, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    export(file, tmp_path / "out", "lmdb")
    with lmdb.open(str(tmp_path / "out"), readonly=True, lock=False) as environment, environment.begin() as transaction:
        assert json.loads(transaction.get(b"keys")) == file.names
        for name in file:
            same(file, name, dict(np.load(io.BytesIO(transaction.get(name.encode())))), "x", "bbox")


def test_tsv_as_bottom_up_attention_reads_it(file: FeatureFile, tmp_path: Path) -> None:
    export(file, tmp_path / "out.tsv", "tsv")
    csv.field_size_limit(sys.maxsize)
    fields = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    seen = []
    with (tmp_path / "out.tsv").open() as opened:
        for item in csv.DictReader(opened, delimiter="\t", fieldnames=fields):
            count = int(item["num_boxes"])
            shape = (count, -1) if count else (0, 4)
            found = {
                field: np.frombuffer(base64.decodebytes(item[field].encode()), np.float32).reshape(shape)
                for field in ("boxes", "features")
            }
            if count:
                same(file, item["image_id"], found, "features", "boxes")
            seen.append(item["image_id"])
    assert seen == file.names


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_parquet(file: FeatureFile, tmp_path: Path, compression: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(file, tmp_path / "out.parquet", "parquet", compression=compression)
    table = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert np.array_equal(np.array(table["features"], np.float32), file.features().reshape(len(file.features()), -1))
    assert np.array_equal(
        np.stack([table[c] for c in ("x1", "y1", "x2", "y2")], 1).astype(np.float32), file.dataset("boxes")
    )
    owners = [name for name in file for _ in range(len(file[name]))]
    assert table["image"] == owners
    assert table["label"] == [label for name in file for label in file[name].labels]
    assert table["id"] == file.dataset("ids").tolist()


def test_groups(file: FeatureFile, tmp_path: Path) -> None:
    export(file, tmp_path / "out.h5", "h5-groups")
    with h5py.File(tmp_path / "out.h5") as found:
        for name in file:
            group = found[name]
            arrays = {key: group[key][:] for key in ("features", "boxes", "scores", "ids")}
            if len(file[name]):
                arrays["labels"] = group["labels"].asstr()[:]
            same(file, name, arrays, "features", "boxes")
            assert tuple(group.attrs["size"]) == file[name].size


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "blosc2"])
def test_compressed(file: FeatureFile, tmp_path: Path, compression: str) -> None:
    if compression in ("zstd", "blosc2"):
        pytest.importorskip("hdf5plugin")
    export(file, tmp_path / "out.h5", "h5", compression=compression)
    with h5py.File(tmp_path / "out.h5") as found:
        assert np.array_equal(found["features"][:], file.features())
        assert np.array_equal(found["boxes"][:], file.dataset("boxes"))
        assert np.array_equal(found["images/offset"][:], file.offset)
        assert [name.decode() for name in found["images/name"][:]] == file.names
        assert found["features"].chunks is not None


def test_several_layers_and_what_is_not_there(photos: tuple[Path, Path], tmp_path: Path, roialign: Run) -> None:
    folder, boxes = photos
    (folder / "a" / "img 6.png").write_bytes(b"none")
    options = {
        "backbone": "resnet18",
        "weights": "random",
        "layers": "layer1,layer2",
        "output_size": 2,
        "dtype": "float16",
    }
    extract(folder, boxes, tmp_path / "f.h5", **options)
    with FeatureFile(tmp_path / "f.h5") as file:
        left = [name for name in file if name != "a/img 6.png"]
        result = export(file, tmp_path / "npz", "npz")
        assert (result.images, result.left_out) == (11, 1)
        written = {path.relative_to(tmp_path / "npz").as_posix() for path in (tmp_path / "npz").rglob("*.npz")}
        assert written == {f"{name}.npz" for name in left}
        found = np.load(tmp_path / "npz" / "b" / "img 5.png.npz")
        assert np.array_equal(found["x_layer2"], file["b/img 5.png"].features["layer2"])
        export(file, tmp_path / "c.h5", "h5", compression="gzip")
        with h5py.File(tmp_path / "c.h5") as chunked:
            counts = np.diff(chunked["images/offset"][:])
            rows = np.repeat(np.array([name != "a/img 6.png" for name in file]), np.diff(file.offset))
            assert np.array_equal(chunked["features/layer1"][:], file.features("layer1")[rows])
            assert counts.tolist() == [len(file[name]) for name in left]
        with pytest.raises(RoialignError, match="one layer for tsv"):
            export(file, tmp_path / "x.tsv", "tsv")
    done = roialign("export", tmp_path / "f.h5", "--to", "pt", "-o", tmp_path / "pt", "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["left_out"] == 1
    assert "1 image failed or pending" in done.stderr


def test_whole_or_not_at_all(file: FeatureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    for form in FORMS:
        output = tmp_path / f"out-{form}"
        with pytest.raises(KeyboardInterrupt):
            export(file, output, form, on_image=stop)
        assert not output.exists()
        assert not output.with_name(output.name + ".partial").exists()
        assert export(file, output, form).images == 12
        with pytest.raises(RoialignError, match="expected nothing there"):
            export(file, output, form)
        export(file, output, form, overwrite=True)
    assert not list(tmp_path.glob("*.partial"))
    for form, compression in (("zip", "none"), ("pt", "gzip"), ("h5", "lz9")):
        with pytest.raises(RoialignError, match="expected one of"):
            export(file, tmp_path / "x", form, compression=compression)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(RoialignError, match="expected the package lmdb"):
        export(file, tmp_path / "x", "lmdb")
    with pytest.raises(RoialignError, match="cannot be written"):
        export(file, Path("/proc/out"), "npz")


@pytest.mark.parametrize(("kind", "expected"), [("name", "a/COCO_7.jpg"), ("stem", "COCO_7"), ("int", "7")])
def test_ids_of_images(tmp_path: Path, roialign: Run, kind: str, expected: str) -> None:
    (tmp_path / "im" / "a").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "im" / "a" / "COCO_7.jpg")
    extract(tmp_path / "im", None, tmp_path / "f.h5", config="quickstart", grid="1x1")
    for form, output in (("tsv", "f.tsv"), ("npz", "npz")):
        done = roialign("export", tmp_path / "f.h5", "--to", form, "-o", tmp_path / output, "--image-id", kind)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.tsv").read_text().split("\t")[0] == expected
    assert (tmp_path / "npz" / f"{expected}.npz").exists()


def test_ids_that_collide_or_are_none(tmp_path: Path) -> None:
    (tmp_path / "im" / "a").mkdir(parents=True)
    for name in ("a/1.jpg", "x_01.jpg", "b.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / "im" / name)
    extract(tmp_path / "im", None, tmp_path / "f.h5", config="quickstart", grid="1x1")
    file = FeatureFile(tmp_path / "f.h5")
    with pytest.raises(RoialignError, match=r'"b.jpg": expected a stem that ends with a number'):
        export(file, tmp_path / "out", "npz", image_id="int")
    (tmp_path / "im" / "b.jpg").unlink()
    extract(tmp_path / "im", None, tmp_path / "g.h5", config="quickstart", grid="1x1")
    with pytest.raises(RoialignError, match="found '1' for"):
        export(FeatureFile(tmp_path / "g.h5"), tmp_path / "out", "npz", image_id="int")
    with pytest.raises(RoialignError, match="image_id: expected name for h5"):
        export(file, tmp_path / "out.h5", "h5", image_id="stem")
