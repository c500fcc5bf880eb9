"""Test `roialign boxes`: what it counts, what it suspects, what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Run
from PIL import Image

from roialign_cli.config import Settings
from roialign_cli.extraction.plan import make_plan
from roialign_cli.inputs.boxes import read_boxes
from roialign_cli.inputs.images import open_images
from roialign_cli.inputs.survey import Survey, survey, write_native
from roialign_cli.types import Plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "im").mkdir()
    for name in ("a.png", "b.png", "unused.png"):
        Image.new("RGB", (200, 100)).save(tmp_path / "im" / name)
    return tmp_path / "im"


def planned(folder: Path, content: object, settings: Settings | None = None) -> Plan:
    path = folder.parent / "b.json"
    path.write_text(json.dumps(content))
    return make_plan(
        open_images(folder), read_boxes(path, folder, settings), replace(settings or Settings(), allow_outside=True)
    )


def test_counts(folder: Path) -> None:
    boxes = [[0, 0, 200, 100], [0, 0, 200, 100], [5, 5, 5, 9], [1, 1, 4, 9], [190, 90, 210, 101]]
    found = survey(planned(folder, {"a.png": {"boxes": boxes, "labels": list("xxyyz")}, "b.png": [], "none.png": []}))
    assert found == Survey(
        images=3, boxes=5, images_without_boxes=2, unused_images=1,
        problems={"none.png": "expected an image file, found nothing there"}, outside_boxes=1, empty_boxes=1, tiny_boxes=2,
        duplicate_boxes=1, labels={"x": 2, "y": 2, "z": 1},
        sizes={"0": 2, "8": 1, "16": 0, "32": 0, "64": 0, "96": 0, "128": 2, "256": 0, "512": 0}, suspicions=[],
    )  # fmt: skip


def test_suspicions(folder: Path) -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, [150, 70], (300, 2))
    size = rng.uniform(10, [200, 100] - corner)
    corners, xywh = np.hstack([corner, corner + size]), np.hstack([corner, size])
    assert survey(planned(folder, {"a.png": corners.tolist()})).suspicions == []
    ordered = xywh[(xywh[:, 2:] > xywh[:, :2]).all(axis=1)]  # what would be an error is told anyway
    assert "also fit its image as x, y, width" in survey(planned(folder, {"a.png": ordered.tolist()})).suspicions[0]
    assert "relative to the image" in survey(planned(folder, {"a.png": (corners / 200).tolist()})).suspicions[0]
    wrong = {
        "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
        "annotations": [{"image_id": 1, "bbox": box} for box in corners.tolist()],
    }
    assert "corners may have been read as x, y, width, height" in survey(planned(folder, wrong)).suspicions[0]
    assert survey(planned(folder, {"a.png": (corners / 200).tolist()[:5]})).suspicions == []  # too few to tell


def test_what_is_written_is_what_was_read(folder: Path, tmp_path: Path) -> None:
    boxes = np.random.default_rng(0).uniform(0, 50, (9, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    scores, ids = [i / 7 for i in range(9)], list("abcdefghi")
    content = {
        'a"\n.png': {"boxes": boxes.tolist(), "labels": list(range(9)), "scores": scores, "ids": ids},
        "b.png": {"boxes": [], "labels": []},
    }
    plan = planned(folder, content)
    write_native(plan, tmp_path / "n.json")
    again = read_boxes(tmp_path / "n.json")
    assert np.array_equal(again.boxes, boxes)
    assert again.names == plan.table.names
    for column in ("labels", "scores", "ids"):
        assert np.array_equal(getattr(again, column), getattr(plan.table, column))


def test_the_command(folder: Path, tmp_path: Path, roialign: Run) -> None:
    (tmp_path / "b.csv").write_text("image,x,y,w,h\na.png,1,2,3,4\n")
    done = roialign("boxes", folder, tmp_path / "b.csv", "--write", tmp_path / "n.json")
    assert done.returncode == 0, done.stderr
    assert "1 have a side under 4 pixels" in done.stdout
    assert json.loads((tmp_path / "n.json").read_text()) == {"a.png": {"boxes": [[1, 2, 4, 6]]}}
    (tmp_path / "b.csv").write_text("image,x,y,w,h\na.png,1,2,3,4\nc.png,1,1,1,1")
    missing = roialign("boxes", folder, tmp_path / "b.csv", "--json")
    assert missing.returncode == 7
    assert list(json.loads(missing.stdout)["problems"]) == ["c.png"]
    assert roialign("boxes", folder, tmp_path / "b.csv", "--write", "/proc/n.json").returncode == 6
