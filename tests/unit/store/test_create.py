"""Test `FeatureFile.create`: files of one's own features are as good as those of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import InputError, OutputError
from roialign_cli.store.check import check

BOXES = {"a.jpg": [[0, 0, 5, 5], [1, 2, 3, 4.5]], "b/c.jpg": [], "d.jpg": np.array([[2, 2, 9, 9]])}
SIZES = dict.fromkeys(BOXES, (20, 30))
ROWS = {"d.jpg": torch.ones(1, 8, 3, 3), "a.jpg": torch.arange(144.0).reshape(2, 8, 3, 3)}


def test_a_copy_of_a_file_equals_it(tmp_path: Path) -> None:
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", config_name="quickstart", output_size="3,2")
    with FeatureFile(tmp_path / "f.h5") as file:
        copy = FeatureFile.create(
            tmp_path / "g.h5",
            {name: regions.boxes for name, regions in file.items()},
            ((name, file[name].features) for name in reversed(file.names)),
            sizes={name: regions.size for name, regions in file.items()},
            labels={name: regions.labels for name, regions in file.items()},
        )
        with copy:
            assert copy.names == file.names
            assert copy.layers == file.layers == ["gabor_3x3", "gabor_2x2"]
            assert not check(copy).problems
            for name in ("boxes", "labels", "images/crc32", "images/size", *map("features/{}".format, file.layers)):
                assert np.array_equal(copy.dataset(name), file.dataset(name)), name


def test_a_file_of_one_s_own_is_read_by_all_commands(tmp_path: Path, roialign: Run) -> None:
    columns: dict[str, Any] = {
        "labels": {"a.jpg": ["x", "ü"], "d.jpg": ["z"]},
        "scores": {"a.jpg": [0.5, 1], "d.jpg": torch.zeros(1)},
        "ids": {"a.jpg": [1, 2], "d.jpg": [3]},
    }
    file = FeatureFile.create(
        tmp_path / "f.h5", BOXES, ROWS, sizes=SIZES, attributes={"backbone": "my model"}, **columns
    )
    with file:
        assert file["a.jpg"].labels.tolist() == ["x", "ü"]
        assert file["a.jpg"].ids.tolist() == [1, 2]
        assert file["a.jpg"].scores.tolist() == [0.5, 1]
        assert file["b/c.jpg"].features.shape == (0, 8, 3, 3)
        assert torch.equal(torch.from_numpy(file["a.jpg"].features), ROWS["a.jpg"])
        assert file.attributes["backbone"] == "my model"
    for arguments in (["verify", "f.h5"], ["inspect", "f.h5"], ["export", "f.h5", "--to", "npz", "-o", "out"]):
        done = roialign(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_features_are_copied_before_the_next_ones(tmp_path: Path) -> None:
    def own() -> Iterator[tuple[str, Any]]:
        rows = np.empty((1, 100_000), np.float16)
        for i in range(100):
            rows[:] = i
            yield f"{i}.jpg", rows

    names = [f"{i}.jpg" for i in range(100)]
    file = FeatureFile.create(
        tmp_path / "f.h5", {name: [[0, 0, 1, 1]] for name in names}, own(), sizes=dict.fromkeys(names, (1, 1))
    )
    with file:
        assert file.features()[:, -1].tolist() == list(range(100))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"features": {"d.jpg": ROWS["d.jpg"]}}, '"a.jpg": expected features of its 2 boxes, found none'),
        ({"features": {}}, "expected features of at least one image"),
        ({"features": {**ROWS, "e.jpg": ROWS["d.jpg"]}}, '"e.jpg": expected an image that has boxes, once'),
        ({"features": [*ROWS.items(), *ROWS.items()]}, '"d.jpg": expected an image that has boxes, once'),
        ({"features": {**ROWS, "a.jpg": ROWS["d.jpg"]}}, r'"a.jpg": expected features \[2, 8, 3, 3\] of float32'),
        ({"features": {**ROWS, "a.jpg": ROWS["a.jpg"].half()}}, "of float32, found .* of float16"),
        ({"features": {"d.jpg": torch.ones(1, 8)[:, :0]}}, r"found \[1, 0\] of float32"),
        ({"features": {"d.jpg": torch.ones(1, 8, requires_grad=True)}}, "without gradients"),
        ({"features": {"d.jpg": torch.ones(1, 8, dtype=torch.int32)}}, "of int32"),
        ({"features": {"d.jpg": "no"}}, "expected .* float32 or float16"),
        ({"features": {"d.jpg": {}}}, "expected layers with names"),
        ({"sizes": {}}, r'"a.jpg": expected its size \(height, width\), found none'),
        ({"sizes": {**SIZES, "a.jpg": (0, 5)}}, "expected its size"),
        ({"boxes": {**BOXES, "a.jpg": [[5, 5, 0, 0], [0, 0, 1, 1]]}}, '"a.jpg": expected finite boxes with x1 <= x2'),
        ({"boxes": {**BOXES, "a.jpg": [[5, 5, 0]]}}, r'"a.jpg": expected boxes \[L, 4\]'),
        ({"boxes": {"../a.jpg": []}}, "expected names of images relative to their folder"),
        ({"scores": {"a.jpg": [1]}}, '"a.jpg": expected 2 scores, found 1'),
        ({"labels": {"a.jpg": ["\ud800", "x"], "d.jpg": ["x"]}}, "labels: expected Unicode text"),
        ({"labels": {"a.jpg": ["c\0", "x"], "d.jpg": ["x"]}}, "labels: expected Unicode text"),
        ({"labels": {"a.jpg": [None, "x"], "d.jpg": ["x"]}}, "labels: expected numbers or text, found None"),
        ({"labels": {"a.jpg": [["x"], ["x"]], "d.jpg": ["x"]}}, "labels: expected numbers or text"),
        ({"scores": {"a.jpg": [1, float("nan")], "d.jpg": [1]}}, "scores: expected finite numbers, found nan"),
        ({"scores": {"a.jpg": [1, 1e40], "d.jpg": [1]}}, "scores: expected finite numbers, found 1e"),
        ({"scores": {"a.jpg": [1, "x"], "d.jpg": [1]}}, "scores: expected numbers"),
        ({"sizes": {**SIZES, "a.jpg": (5.5, 5)}}, "expected its size"),
        ({"sizes": {**SIZES, "a.jpg": (5, 2**40)}}, "expected its size"),
        ({"sizes": {**SIZES, "a.jpg": (5, float("nan"))}}, "expected its size"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    arguments = {"boxes": BOXES, "features": ROWS, "sizes": SIZES, **change}
    with pytest.raises(InputError, match=expected):
        FeatureFile.create(tmp_path / "f.h5", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "labels",
    [np.array([1, 2]), [np.int64(1), 2], torch.tensor([1, 2]), [torch.tensor(1), 2], np.array(["a", "b"]), ["a", "b"]],
)
def test_columns_of_any_kind(tmp_path: Path, labels: Any) -> None:
    FeatureFile.create(
        tmp_path / "f.h5", {"a.jpg": [[0, 0, 1, 1], [0, 0, 2, 2]]}, {"a.jpg": np.ones((2, 3), np.float32)},
        sizes={"a.jpg": (5, np.int64(6))}, labels={"a.jpg": labels}, scores={"a.jpg": [np.float32(0.5), 1]},
    ).close()  # fmt: skip
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file["a.jpg"].labels.tolist() == [
            getattr(label, "item", lambda label=label: label)() for label in labels
        ]
        assert file["a.jpg"].scores.tolist() == [0.5, 1]


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    FeatureFile.create(tmp_path / "f.h5", BOXES, ROWS, sizes=SIZES).close()
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(OutputError, match="found a file"):
        FeatureFile.create(tmp_path / "f.h5", BOXES, ROWS, sizes=SIZES)
    with pytest.raises(ZeroDivisionError):
        FeatureFile.create(tmp_path / "f.h5", BOXES, ((n, 1 / 0) for n in BOXES), sizes=SIZES, overwrite=True)
    assert (tmp_path / "f.h5").read_bytes() == before
    FeatureFile.create(
        tmp_path / "f.h5", BOXES, {"d.jpg": np.full((1, 4), np.nan, np.float32), "a.jpg": np.ones((2, 4), np.float32)},
        sizes=SIZES, overwrite=True,
    )  # fmt: skip
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.notes == {"d.jpg": "4 values not finite"}
