"""Test that the shards of a run make up the whole, merged or not, and what a sharded run costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.commands import Run
from helpers.feature_files import assert_same
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import ConfigError, OutputError
from roialign_cli.store.check import check
from roialign_cli.store.merge import merge


def test_parts_together_are_the_whole(tmp_path: Path, roialign: Run) -> None:
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "whole.h5", config_name="quickstart")
    output = tmp_path / "f.h5"
    for number in (1, 2, 3):
        done = roialign(
            "extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-o", output, "-c", "quickstart", "--shard", f"{number}/3"
        )
        assert done.returncode == 0, done.stderr
        assert f"f-000{number}-of-0003.h5: finished" in done.stdout
        if number == 2:
            with pytest.raises(OutputError, match="expected 3 shards, found 2; missing: 3"):
                FeatureFile(tmp_path / "f-*-of-0003.h5")
    assert not output.exists()
    assert_same(tmp_path / "f-*-of-0003.h5", tmp_path / "whole.h5")
    with FeatureFile(tmp_path / "f-*-of-0003.h5") as parts:
        assert all(len(part.map("images/name")) for part in parts.parts)
    again = extract(SAMPLE_IMAGES, SAMPLE_BOXES, output, config_name="quickstart", shard="2/3")
    assert again.already_finished
    shards = sorted(tmp_path.glob("f-*-of-0003.h5"))
    merged = roialign("merge", *shards, "-o", tmp_path / "merged.h5", "--json")
    assert merged.returncode == 0, merged.stderr
    assert json.loads(merged.stdout)["finished"]
    linked = roialign("merge", *reversed(shards), "-o", tmp_path / "linked.h5", "--link")
    assert linked.returncode == 0, linked.stderr
    for path in (tmp_path / "merged.h5", tmp_path / "linked.h5"):
        assert_same(path, tmp_path / "whole.h5")
        with h5py.File(path) as file, h5py.File(tmp_path / "whole.h5") as right:  # without this package
            assert np.abs(file["features"][()] - right["features"][()]).max() <= 1e-6
            for name in ("boxes", "labels", "images/name", "images/offset", "images/size", "images/status"):
                assert np.array_equal(file[name][()], right[name][()]), name
    # The merged file is an ordinary one: the same command without --shard finds it finished.
    assert extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "merged.h5", config_name="quickstart").already_finished
    (tmp_path / "f-0002-of-0003.h5").rename(tmp_path / "f-0002-of-0004.h5")
    with pytest.raises(OutputError, match="shards was 3, is 4"):
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, output, config_name="quickstart", shard="2/4")
    with pytest.raises(ConfigError, match="expected at most 5, one per image, found 6"):
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, output, config_name="quickstart", shard="2/6")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Make three shards of two layers; one image of the second shard is missing."""
    folder = tmp_path_factory.mktemp("shards")
    boxes = json.loads(SAMPLE_BOXES.read_text())
    boxes = {
        "astronaut.jpg": boxes.pop("astronaut.jpg"),
        "missing.jpg": {"boxes": [[0, 0, 9, 9]], "labels": ["ü"]},
        **boxes,
    }
    (folder / "boxes.json").write_text(json.dumps(boxes))
    for number in (1, 2, 3):
        options = {"backbone": "resnet18", "weights": "random", "layers": "layer1,relu", "output_size": 2}
        extract(SAMPLE_IMAGES, folder / "boxes.json", folder / "f.h5", shard=f"{number}/3", **options)
    return sorted(folder.glob("f-*.h5"))


def test_a_merge_goes_on_where_it_ended(shards: list[Path], tmp_path: Path) -> None:
    asked = iter([False, False, True])
    first = merge(shards, tmp_path / "m.h5", should_stop=lambda: next(asked))
    assert not first.finished
    with FeatureFile(tmp_path / "m.h5") as file:
        assert check(file).problems == []
        assert 0 < len(file.done_names) < len(file)
    pieces = []
    assert merge(shards, tmp_path / "m.h5", on_bytes=lambda copied, total: pieces.append((copied, total))).finished
    assert len(pieces) == 4  # two layers of two shards
    assert pieces[-1][0] == pieces[-1][1] == first.bytes
    with FeatureFile(shards) as parts, FeatureFile(tmp_path / "m.h5") as file:
        assert check(file).problems == []
        assert file.errors == parts.errors
        assert list(file.errors) == ["missing.jpg"]
        for name in file.done_names:
            for layer in ("layer1", "relu"):
                assert np.array_equal(file[name].features[layer], parts[name].features[layer])
        assert "shard" not in file.attributes


def test_through_memory_where_the_system_cannot_copy(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(shards, tmp_path / "a.h5")
    monkeypatch.delattr("os.copy_file_range", raising=False)
    merge(shards, tmp_path / "b.h5")
    with FeatureFile(tmp_path / "a.h5") as file, FeatureFile(tmp_path / "b.h5") as again:
        assert check(again).problems == []
        assert file.attributes == again.attributes
        assert file.extents == again.extents  # the bytes between them hold the times at which HDF5 made them
        for name in file.extents:
            assert np.array_equal(file.dataset(name), again.dataset(name))


def test_what_does_not_belong_together(shards: list[Path], tmp_path: Path, roialign: Run) -> None:
    missing = roialign("merge", *shards[:2], "-o", tmp_path / "m.h5")
    assert missing.returncode == 6
    assert "expected 3 shards, found 2; missing: 3" in missing.stderr
    assert not (tmp_path / "m.h5").exists()
    twice = roialign("merge", *shards, shards[0], "-o", tmp_path / "m.h5")
    assert twice.returncode == 6
    assert "expected 3 shards of 6 images, found 4" in twice.stderr
    for shard in shards:
        shutil.copy(shard, tmp_path)
    with h5py.File(tmp_path / shards[1].name, "r+") as file:
        file["images/status"][0] = 0
    pending = roialign("merge", *sorted(tmp_path.glob("f-*.h5")), "-o", tmp_path / "m.h5")
    assert pending.returncode == 6
    assert f"images pending: 1 of {shards[1].name}" in pending.stderr
    with h5py.File(tmp_path / shards[1].name, "r+") as file:
        file.attrs["plan_sha256"] = "another"
    with pytest.raises(OutputError, match="expected plan_sha256 as in"):
        merge(sorted(tmp_path.glob("f-*.h5")), tmp_path / "m.h5")


def test_what_a_run_will_take(roialign: Run) -> None:
    options = ("--images-per-second", "2", "--nodes", "2", "--shards", "4")
    done = roialign("plan", SAMPLE_IMAGES, SAMPLE_BOXES, *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["boxes"], found["bytes"]) == (5, 19, 19 * 50176)
    assert found["node_hours"] == pytest.approx(2.5 / 3600)
    assert found["ideal_hours"] <= found["median_hours"] <= found["hours_95_percent"]
    told = roialign("plan", SAMPLE_IMAGES, SAMPLE_BOXES, *options)
    assert "node-hours" in told.stdout
    for wrong in ("0", "nan", "inf", "1e-320"):
        assert roialign("plan", SAMPLE_IMAGES, SAMPLE_BOXES, "--images-per-second", wrong).returncode == 2
    for wrong in ("--nodes", "--shards", "--repeat"):
        assert roialign("plan", SAMPLE_IMAGES, SAMPLE_BOXES, *options, wrong, 10**15).returncode == 2
    many = roialign("plan", SAMPLE_IMAGES, SAMPLE_BOXES, *options, "--repeat", "1000", "--json")
    assert many.returncode == 0, many.stderr
    again = json.loads(many.stdout)
    assert (again["images"], again["boxes"], again["bytes"]) == (5000, 19000, 1000 * found["bytes"])
    assert again["node_hours"] == pytest.approx(1000 * found["node_hours"])
    assert again["skew"] < 1.01


def test_the_speed_of_this_machine_is_measured(roialign: Run) -> None:
    done = roialign("plan", SAMPLE_IMAGES, SAMPLE_BOXES, "--backbone", "resnet18", "--resize", "64", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["node_hours"] == pytest.approx(5 / found["images_per_second"] / 3600)
    assert 1 < found["images_per_second"] < 1e5
