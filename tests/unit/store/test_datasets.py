"""Test feature files in a DataLoader: without workers, forked and spawned."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from torch.utils.data import DataLoader

from roialign_cli import FeatureFile, collate, extract
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("f") / "f.h5"
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, path, config_name="quickstart", output_size=2)
    return path


@pytest.mark.parametrize(
    ("workers", "context"),
    [(0, None), pytest.param(2, "fork", marks=pytest.mark.slow), pytest.param(2, "spawn", marks=pytest.mark.slow)],
)
def test_every_worker_reads_the_same(path: Path, workers: int, context: str | None) -> None:
    if context and context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    with FeatureFile(path) as file:
        dataset = file.as_dataset()
        _ = dataset[0]  # opened in the parent, too
        loader = DataLoader(dataset, 2, collate_fn=collate, num_workers=workers, multiprocessing_context=context)
        batches = list(loader)
        assert [name for batch in batches for name in batch["name"]] == file.names
        assert torch.equal(
            torch.cat([batch["features"] for batch in batches]), torch.from_numpy(np.array(file.features()))
        )
        assert batches[0]["count"].tolist() == [5, 4]
        assert batches[0]["image"].tolist() == [0] * 5 + [1] * 4
        assert batches[0]["size"].tolist() == [[512, 512], [512, 512]]
        assert batches[1]["labels"][:4] == ["cat", "eye", "eye", "nose"]


@pytest.fixture(scope="module")
def apart(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract the same images into three files, and return a pattern for them."""
    folder = tmp_path_factory.mktemp("apart")
    whole = json.loads(SAMPLE_BOXES.read_text())
    with FeatureFile(path) as file:
        names = file.names
    for i, part in enumerate((names[:2], names[2:3], names[3:])):
        (folder / "boxes.json").write_text(json.dumps({name: whole[name] for name in part}))
        output = folder / f"part-{i}.h5"
        extract(SAMPLE_IMAGES, folder / "boxes.json", output, config_name="quickstart", output_size=2)
    return folder / "part-*.h5"


def test_several_files_are_read_as_one(path: Path, apart: Path) -> None:
    with FeatureFile(path) as one, FeatureFile(apart) as many:
        assert many.names == one.names
        assert len(many.parts) == 3
        assert many.done_names == one.done_names
        assert np.array_equal(many.done_rows, one.done_rows)
        assert np.array_equal(many.offset, one.offset)
        for name in ("boxes", "images/size", "images/crc32"):
            assert np.array_equal(np.array(many.dataset(name)), one.dataset(name))
        features, together = many.features(), one.features()
        assert (features.shape, features.dtype, len(features)) == (together.shape, together.dtype, len(together))
        rows = np.array([0, 11, 3, -1, 3])
        for key in (0, -1, slice(2, 17), slice(None, None, 3), slice(5, 5), rows, together[:, 0, 0, 0] > 0.1):
            assert np.array_equal(features[key], together[key])
        assert np.array_equal(np.asarray(features), together)
        with pytest.raises(IndexError):
            features[len(features)]
        with pytest.raises(TypeError):
            features[0, 1]
        for name in one:
            assert many.rows(name) == one.rows(name)
            assert np.array_equal(many[name].features, one[name].features)
            assert np.array_equal(many[name].labels, one[name].labels)
        for mine, theirs in zip(many.as_row_dataset(), one.as_row_dataset(), strict=True):
            assert torch.equal(mine["features"], theirs["features"])
            assert mine["label"] == theirs["label"]
        again = pickle.loads(pickle.dumps(many.as_dataset()))
        assert torch.equal(again[3]["features"], one.as_dataset()[3]["features"])
        assert many.to_pandas().equals(one.to_pandas())
        assert check(many).problems == []


def test_files_that_are_not_of_one_kind(apart: Path, tmp_path: Path) -> None:
    for source in apart.parent.glob("*.h5"):
        shutil.copy(source, tmp_path)
    shutil.copy(tmp_path / "part-0.h5", tmp_path / "part-9.h5")
    with pytest.raises(OutputError, match="found one in two"):
        FeatureFile(tmp_path / "part-*.h5")
    with h5py.File(tmp_path / "part-9.h5", "r+") as file:
        file.attrs["weights_sha256"] = "another"
    with pytest.raises(OutputError, match="expected weights_sha256 as in part-0"):
        FeatureFile(tmp_path / "part-*.h5")
    with pytest.raises(OutputError, match="expected feature files with such names, found none"):
        FeatureFile(tmp_path / "nothing-*.h5")


def test_rows(path: Path) -> None:
    with FeatureFile(path) as file:
        dataset = file.as_row_dataset()
        assert len(dataset) == 19
        for i, item in enumerate(dataset[k] for k in range(19)):
            assert np.array_equal(item["features"], file.features()[i])
        assert (item["name"], item["label"]) == ("rocket.jpg", "mast")
        batch = next(iter(DataLoader(dataset, 19)))
        assert batch["features"].shape == (19, 32, 2, 2)
        assert batch["box"].shape == (19, 4)


def test_only_images_that_are_done(photos: tuple[Path, Path], tmp_path: Path) -> None:
    folder, boxes = photos
    (folder / "a" / "img 6.png").write_bytes(b"none")
    extract(
        folder, boxes, tmp_path / "f.h5", backbone="resnet18", weights="random", layers="layer1,layer2", output_size=2
    )
    with FeatureFile(tmp_path / "f.h5") as file:
        images, rows = file.as_dataset(), file.as_row_dataset()
        assert len(images) == 11
        assert "a/img 6.png" not in images.names
        assert len(rows) == len(file.dataset("boxes")) - 6
        batch = collate([images[i] for i in range(len(images))])
        assert batch["features"]["layer2"].shape[0] == len(rows)
        index = file.to_pandas()
        assert index["status"].value_counts().to_dict() == {"done": len(rows), "failed": 6}


def test_the_index_as_a_table(path: Path) -> None:
    pytest.importorskip("pandas")
    with FeatureFile(path) as file:
        index = file.to_pandas()
        assert list(index.columns) == ["image", "status", "x1", "y1", "x2", "y2", "label"]
        assert index[index.label == "eye"].image.tolist() == ["cat.jpg", "cat.jpg"]
        again = pickle.loads(pickle.dumps(file))
        assert again["cat.jpg"].labels.tolist() == ["cat", "eye", "eye", "nose"]
