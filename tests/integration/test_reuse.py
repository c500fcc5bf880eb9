"""Test runs that take over what earlier files hold: exactly the right images, the same bits, kills at any instant, errors."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.commands import Run, start
from helpers.feature_files import assert_same
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import OutputError
from roialign_cli.store.merge import link, merge

IMAGES = 28
SETTINGS = {"config_name": "quickstart", "output_size": 2}


def make_image(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 56, 3), np.uint8)).save(path)


def make_boxes(seed: int, count: int = 3) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 30, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(2, 20, (count, 2))], 1).round(1).tolist()


def write(path: Path, boxes: dict[str, Any], label: str = "a") -> Path:
    path.write_text(json.dumps({name: {"boxes": rows, "labels": [label] * len(rows)} for name, rows in boxes.items()}))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with images, boxes and a finished file of them."""
    (tmp_path / "im").mkdir()
    boxes = {}
    for i in range(IMAGES):
        make_image(tmp_path / "im" / f"{i:02}.png", i)
        boxes[f"{i:02}.png"] = make_boxes(i)
    extract(tmp_path / "im", write(tmp_path / "old.json", boxes), tmp_path / "old.h5", **SETTINGS)
    return tmp_path


def change(data: Path) -> Path:
    """Add three images, change two, remove one, move four boxes in four others; return the new box file."""
    boxes = {name: entry["boxes"] for name, entry in json.loads((data / "old.json").read_text()).items()}
    for i in range(IMAGES, IMAGES + 3):
        make_image(data / "im" / f"{i:02}.png", i)
        boxes[f"{i:02}.png"] = make_boxes(i)
    for i in (4, 5):
        make_image(data / "im" / f"{i:02}.png", 100 + i)
    del boxes["07.png"]
    for i in (10, 11, 12, 13):
        boxes[f"{i:02}.png"][1][0] += 0.5
    boxes["20.png"] = [boxes["20.png"][2], boxes["20.png"][0]]  # one less, in another order
    return write(data / "new.json", boxes, label="b")


def test_exactly_what_has_changed_is_computed(data: Path, roialign: Run) -> None:
    boxes = change(data)
    fresh = extract(data / "im", boxes, data / "fresh.h5", **SETTINGS)
    command = ("extract", data / "im", boxes, "-c", "quickstart", "--output-size", "2", "-o", data / "new.h5")
    planned = roialign(*command, "--reuse", data / "old.h5", "--dry-run", "--json")
    counts = {"new": 3, "with another image file": 2, "with other boxes": 4}
    facts = json.loads(planned.stdout)
    assert (facts["reused_images"], facts["reused_boxes"], facts["computed"]) == (21, 62, counts)
    done = roialign(*command, "--reuse", data / "old.h5")
    assert done.returncode == 0, done.stderr
    assert "21 images with 62 boxes; computed: " in done.stdout
    assert "4 with other boxes" in done.stdout
    assert_same(data / "new.h5", data / "fresh.h5")
    with FeatureFile(data / "new.h5") as found, FeatureFile(data / "fresh.h5") as expected:
        assert np.array_equal(found.features(), expected.features())  # to the bit
        assert set(np.array(found.dataset("labels"))) == {b"b"}
    assert fresh.computed is None
    assert "was finished already" in roialign(*command, "--reuse", data / "old.h5").stdout


def test_an_update_replaces_the_file(data: Path, roialign: Run) -> None:
    boxes = change(data)
    extract(data / "im", boxes, data / "fresh.h5", **SETTINGS)
    command = ("extract", data / "im", boxes, "-c", "quickstart", "--output-size", "2", "--update", data / "old.h5")
    planned = roialign(*command, "--dry-run")
    assert "21 images with 62 boxes" in planned.stdout
    done = roialign(*command, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["reused_images"], summary["reused_boxes"]) == (21, 62)
    assert summary["output"] == str(data / "old.h5")
    assert_same(data / "old.h5", data / "fresh.h5")
    assert {path.name for path in data.glob("old.h5*")} == {"old.h5"}
    again = json.loads(roialign(*command, "--json").stdout)
    assert (again["reused_images"], again["computed"]) == (30, {})


@pytest.mark.slow
def test_several_files_shards_and_links(data: Path, tmp_path: Path) -> None:
    boxes = data / "old.json"
    for number in (1, 2):
        extract(data / "im", boxes, data / "part.h5", shard=f"{number}/2", **SETTINGS)
    shards = sorted(data.glob("part-*.h5"))
    merge(shards, data / "merged.h5")
    link(shards, data / "linked.h5")
    for i, source in enumerate([[data / "part-*.h5"], [data / "merged.h5"], [data / "linked.h5"], shards]):
        summary = extract(data / "im", boxes, data / f"new{i}.h5", reuse=source, **SETTINGS)
        assert (summary.reused_images, summary.computed) == (IMAGES, {})
        assert_same(data / f"new{i}.h5", data / "old.h5")
    first = extract(data / "im", boxes, data / "sharded.h5", shard="1/2", reuse=[data / "old.h5"], **SETTINGS)
    assert first.reused_images == first.images < IMAGES
    assert_same(data / "sharded-0001-of-0002.h5", shards[0])


def test_what_is_damaged_or_unknown_is_computed(data: Path) -> None:
    boxes = data / "old.json"
    with h5py.File(data / "old.h5", "r+") as file:
        file["features"][4, 0] += 1  # of the second image
        file["images/sha256"][5] = 0
        file["images/status"][8] = 2
    summary = extract(data / "im", boxes, data / "new.h5", reuse=[data / "old.h5"], **SETTINGS)
    assert summary.computed is not None
    assert summary.reused_images == IMAGES - 3 - summary.computed.get("damaged in the earlier file", 0) + 1
    assert summary.computed["damaged in the earlier file"] >= 1
    assert summary.computed["that had failed or were pending"] == 1
    extract(data / "im", boxes, data / "fresh.h5", **SETTINGS)
    assert_same(data / "new.h5", data / "fresh.h5")


def test_regions_are_part_of_a_box(data: Path) -> None:
    content = {
        f"{i:02}.png": {
            "rotated": [[20, 20, 16, 8, 30 + i]],
            "points": [[[5, 5], [9, 9]]],
            "polygons": [[[1, 1, 9, 1, 9, 9]]],
        }
        for i in range(4)
    }
    old = data / "regions.json"
    old.write_text(json.dumps(content))
    content["01.png"]["rotated"][0][4] = 90
    content["02.png"]["points"][0][0][0] = 6
    new = data / "changed.json"
    new.write_text(json.dumps(content))
    for region, reused in (("rotated", 3), ("points", 3), ("mask", 0)):
        given = {**SETTINGS, "region": region}
        extract(data / "im", old, data / f"{region}.h5", **given)
        summary = extract(data / "im", new, data / f"{region}2.h5", reuse=[data / f"{region}.h5"], **given)
        assert summary.reused_images == reused
        assert summary.computed is not None
        assert (summary.computed.get("with masks, which files do not hold") == 4) == (region == "mask")
        extract(data / "im", new, data / f"{region}3.h5", **given)
        assert_same(data / f"{region}2.h5", data / f"{region}3.h5")


def test_settings_that_choose_boxes_may_differ(data: Path) -> None:
    summary = extract(
        data / "im", data / "old.json", data / "few.h5", reuse=[data / "old.h5"], max_boxes=2, **SETTINGS
    )  # fmt: skip
    assert (summary.reused_images, summary.reused_boxes) == (IMAGES, 2 * IMAGES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_size": 3}, r"output_size was \[2, 2\], is \[3, 3\]"),
        ({"sampling_ratio": 2}, "sampling_ratio was 0, is 2"),
        ({"dtype": "float16"}, "dtype was float32, is float16"),
        ({"resize": "64"}, "resize was backbone, is 64"),
    ],
)
def test_another_computation_is_refused(change: dict[str, Any], message: str, data: Path) -> None:
    with pytest.raises(OutputError, match=message):
        extract(data / "im", data / "old.json", data / "new.h5", reuse=[data / "old.h5"], **{**SETTINGS, **change})


@pytest.mark.slow
def test_mistakes(data: Path, roialign: Run) -> None:
    boxes, common = data / "old.json", ("-c", "quickstart", "--output-size", "2")
    for arguments, code, expected in (
        (("-o", data / "x.h5", "--reuse", data / "none.h5"), 6, "expected a feature file, found nothing there"),
        (("-o", data / "x.h5", "--update", data / "old.h5"), 2, "expected none of -o, --reuse"),
        (("--update", data / "none.h5"), 6, "expected a feature file to update, found none"),
        (("-o", data / "old.h5", "--reuse", data / "old.h5"), 6, "expected an output that is none of the inputs"),
        (("-o", data / "x.h5", "--reuse", boxes), 6, "expected an HDF5 file"),
    ):
        done = roialign("extract", data / "im", boxes, *common, *arguments)
        assert done.returncode == code, done.stderr
        assert expected in done.stderr
    for number in (1, 2):
        extract(data / "im", boxes, data / "part.h5", shard=f"{number}/2", **SETTINGS)
    link(sorted(data.glob("part-*.h5")), data / "linked.h5")
    done = roialign("extract", data / "im", boxes, *common, "--update", data / "linked.h5")
    assert done.returncode == 6
    assert "expected one file to update, found 2 that are linked" in done.stderr


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_the_old_file_or_the_new_one(data: Path) -> None:
    boxes = change(data)
    extract(data / "im", boxes, data / "fresh.h5", **SETTINGS)
    shutil.copy(data / "old.h5", data / "kept.h5")
    command = ["extract", str(data / "im"), str(boxes), "--update", str(data / "old.h5")]
    command += ["-c", "quickstart", "--output-size", "2", "--batch-size", "1"]
    for _ in range(2):  # the first one also starts the process that others are forked from
        shutil.copy(data / "kept.h5", data / "old.h5")
        begin = time.monotonic()
        whole = start(command, data)
        whole.join()
        assert whole.exitcode == 0, (data / "err").read_text()
        seconds = time.monotonic() - begin
    rng, killed = random.Random(0), 0
    for _ in range(30):
        shutil.copy(data / "kept.h5", data / "old.h5")
        process = start(command, data)
        time.sleep(rng.uniform(0.2, 0.95) * seconds)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        with FeatureFile(data / "old.h5") as file:
            is_new = "30.png" in file.names
        assert_same(data / "old.h5", data / ("fresh.h5" if is_new else "kept.h5"))
        after = start(command, data)
        after.join()
        assert after.exitcode == 0, (data / "err").read_text()
        assert_same(data / "old.h5", data / "fresh.h5")
    assert killed > 10
