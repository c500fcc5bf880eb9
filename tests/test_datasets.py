"""Feature files in a DataLoader: without workers, forked and spawned."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLE_BOXES, SAMPLE_IMAGES
from torch.utils.data import DataLoader

from roialign_cli import FeatureFile, collate, extract


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
