"""Test what regions become before they are pooled: rectangles of least area, lacking ones, selection, shards, identity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from roialign_cli.config import Region, Settings
from roialign_cli.errors import InputError
from roialign_cli.extraction.plan import make_plan
from roialign_cli.extraction.shards import shard_plan, split_plan
from roialign_cli.inputs.boxes import read_boxes
from roialign_cli.inputs.boxes.regions import resolve, smallest_rectangles
from roialign_cli.inputs.images import open_images
from roialign_cli.inputs.survey import survey, write_native
from roialign_cli.shapes import (
    NO_SHAPE,
    POINTS,
    POLYGONS,
    ROTATED,
    RUNS,
    Shape,
    Shapes,
    rotated_corners,
)
from roialign_cli.store.identity import table_sha256
from roialign_cli.types import Plan

TRIANGLE = [4.0, 5.0, 20.0, 5.0, 4.0, 25.0]
MASK = {"size": [50, 100], "counts": [60, 5, 45, 5, 4885]}  # two runs, in the columns 1 and 2
EXAMPLES = [
    NO_SHAPE,
    Shape(POLYGONS, [np.arange(6.0).reshape(3, 2), np.arange(8.0).reshape(4, 2)]),
    Shape(RUNS, (), [60, 5, 4935], (50, 100)),
    Shape(ROTATED, [np.array([[1, 2, 3, 4, 5.0]])]),
    Shape(POINTS, [np.arange(9.0).reshape(3, 3)]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "im").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (100, 50)).save(tmp_path / "im" / name)
    return tmp_path / "im"


def planned(folder: Path, content: object, region: Region, **options: Any) -> Plan:
    path = folder.parent / "n.json"
    path.write_text(json.dumps(content))
    chosen = Settings(region=region, **options)
    return make_plan(open_images(folder), read_boxes(path, folder, chosen), chosen)


def same(one: Shape, other: Shape) -> bool:
    parts = len(one.parts) == len(other.parts) and all(map(np.array_equal, one.parts, other.parts))
    return (one.kind, one.size) == (other.kind, other.size) and parts and np.array_equal(one.counts, other.counts)


@given(st.lists(st.sampled_from(range(5)), max_size=12), st.randoms(), st.data())
@settings(max_examples=80, deadline=None)
def test_rows_of_packed_shapes(kinds: list[int], random: Any, data: st.DataObject) -> None:
    rows = [EXAMPLES[kind] for kind in kinds]
    packed = Shapes.pack(rows)
    order = random.sample(range(len(rows)), len(rows))
    assert all(same(packed.take(np.array(order, np.int64))[i], rows[j]) for i, j in enumerate(order))
    keep = np.array([kind % 2 == 0 for kind in kinds], np.bool_)
    assert all(map(same, packed.take(keep), [row for row, kept in zip(rows, keep, strict=True) if kept]))
    low = data.draw(st.integers(0, len(rows)))
    part = packed.take(slice(low, low + 5))
    assert len(part) == len(rows[low : low + 5])
    assert all(same(part[i], row) for i, row in enumerate(rows[low : low + 5]))
    joined = Shapes.join([packed.take(slice(0, low)), packed.take(slice(low, None))], np.array(order, np.int64))
    assert all(same(joined[place], row) for place, row in zip(order, rows, strict=True))


def test_scaling_moves_x_and_y_only() -> None:
    shapes = Shapes.pack(EXAMPLES).scaled(np.tile([2.0, 10.0], (5, 1)))
    assert np.asarray(shapes[1].parts[1]).tolist() == [[0, 10], [4, 30], [8, 50], [12, 70]]
    assert np.asarray(shapes[3].parts[0]).tolist() == [[1, 2, 3, 4, 5]]
    assert np.asarray(shapes[4].parts[0]).tolist() == [[0, 10, 2], [6, 40, 5], [12, 70, 8]]


@given(
    st.tuples(st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 300), st.floats(1, 300), st.floats(-179, 179)),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_corners_of_a_rectangle_give_it_back(box: tuple[float, ...], mirrored: bool) -> None:
    corners = rotated_corners(np.array([box]))
    if mirrored:  # the other winding: the first two points are those of the lower side, from left to right
        corners = corners[:, [3, 2, 1, 0]]
    found = smallest_rectangles(corners)[0]
    np.testing.assert_allclose(found[:4], box[:4], atol=1e-7)
    assert abs((found[4] - box[4] + 180) % 360 - 180) < 1e-6


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_no_turn_gives_a_smaller_rectangle(points: list[tuple[int, int]]) -> None:
    corners = np.array(points, np.float64)
    x, y, w, h, angle = smallest_rectangles(corners[None])[0]
    along = np.array([np.cos(np.radians(angle)), -np.sin(np.radians(angle))])
    down = np.array([-along[1], along[0]])
    offset = corners - [x, y]
    assert (abs(offset @ along) <= w / 2 + 1e-9).all()
    assert (abs(offset @ down) <= h / 2 + 1e-9).all()
    for degrees in np.arange(0, 90, 1.5):
        turned = corners @ np.array(
            [
                [np.cos(np.radians(degrees)), -np.sin(np.radians(degrees))],
                [np.sin(np.radians(degrees)), np.cos(np.radians(degrees))],
            ]
        )
        assert w * h <= np.prod(np.ptp(turned, axis=0)) + 1e-7
    first = corners[1] - corners[0]
    if first.any():
        assert first @ along >= abs(first @ down) - 1e-9  # the side that is nearest to the way from first to second


def test_lacking_regions_are_errors_that_name_them(folder: Path) -> None:
    content = {
        "a.png": {"boxes": [[4, 5, 20, 25]], "polygons": [[TRIANGLE]], "ids": ["q"]},
        "b.png": {"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "polygons": [[TRIANGLE], None], "ids": ["r", "s"]},
    }
    with pytest.raises(InputError) as found:
        planned(folder, content, "mask")
    assert found.value.reference == "region-missing"
    assert '"b.png", box 1 (id s): expected a mask, found only a box; 1 of 3 annotations have no mask' in str(
        found.value
    )
    assert str(folder.parent / "n.json") in str(found.value)
    assert "--region-missing box" in found.value.hint
    with pytest.raises(InputError, match=r'"a.png", box 0 .*found a polygon of 3 points; 3 of 3 annotations'):
        planned(folder, content, "rotated")
    with pytest.raises(InputError, match="expected points, found only a box") as found:
        planned(folder, content, "points")
    assert found.value.hint == ""


def test_boxes_stand_for_lacking_regions(folder: Path) -> None:
    content = {
        "a.png": {
            "boxes": [[4, 5, 20, 25], [1, 2, 11, 6]],
            "polygons": [[TRIANGLE], None],
            "rotated": [None, [9, 9, 4, 2, 0]],
        }
    }
    plan = planned(folder, {**content, "b.png": [[1, 2, 11, 6]]}, "mask", region_missing="box")
    assert plan.table.notes[:1] == ("1 of 3 annotations have no mask: pooled by their box",)
    assert plan.table.shapes is not None
    assert plan.table.shapes.kind.tolist() == [POLYGONS] * 3
    assert [np.ravel(plan.table.shapes[row].parts).tolist() for row in range(3)] == [
        TRIANGLE, [7, 8, 11, 8, 11, 10, 7, 10], [1, 2, 11, 2, 11, 6, 1, 6],
    ]  # fmt: skip
    plan = planned(folder, {"a.png": content["a.png"]}, "rotated", region_missing="box")
    assert plan.table.rotated is not None
    assert plan.table.rotated.tolist() == [[12, 15, 16, 20, 0], [9, 9, 4, 2, 0]]
    assert plan.table.boxes.tolist() == [[4, 5, 20, 25], [7, 8, 11, 10]]
    assert plan.table.notes == ("1 of 2 annotations have no rotated box: pooled by their box",)


def test_rotated_boxes_are_not_clipped(folder: Path) -> None:
    plan = planned(folder, {"a.png": {"rotated": [[0, 25, 40, 10, 0]]}}, "rotated", clip=True, allow_outside=True)
    assert plan.table.boxes.tolist() == [[-20, 20, 20, 30]]
    assert plan.outside_boxes == 1
    mask = planned(folder, {"a.png": {"polygons": [[[-5, 0, 5, 0, 5, 9]]]}}, "mask", clip=True)
    assert mask.table.boxes.tolist() == [[0, 0, 5, 9]]


def test_selection_moves_shapes(folder: Path) -> None:
    content = {
        "a.png": {"boxes": [[0, 0, 9, 9], [4, 5, 20, 25]], "polygons": [None, [TRIANGLE]], "labels": ["x", "y"]},
        "b.png": {"boxes": [[1, 0, 3, 10]], "rle": [MASK], "labels": ["y"]},
    }
    plan = planned(folder, content, "mask", labels=("y",))
    assert plan.table.shapes is not None
    assert plan.table.shapes.kind.tolist() == [POLYGONS, RUNS]
    assert np.asarray(plan.table.shapes[1].counts).tolist() == MASK["counts"]
    for number, kind in ((1, POLYGONS), (2, RUNS)):
        part, _ = shard_plan(split_plan(plan, 2, None), number)
        assert part.table.shapes is not None
        assert part.table.shapes.kind.tolist() == [kind]
        assert same(part.table.shapes[0], plan.table.shapes[number - 1])


def test_shards_have_their_rotated_boxes_and_points(folder: Path) -> None:
    content = {
        name: {"rotated": [[9, 9, 4, i, 5]], "points": [[[i, 2]]]} for i, name in enumerate(("a.png", "b.png"), 1)
    }
    part, _ = shard_plan(split_plan(planned(folder, content, "rotated"), 2, None), 2)
    assert part.table.rotated is not None
    assert part.table.rotated.tolist() == [[9, 9, 4, 2, 5]]
    part, _ = shard_plan(split_plan(planned(folder, content, "points"), 2, None), 2)
    assert part.table.points is not None
    assert part.table.points.tolist() == [[[2, 2, 2]]]


def test_other_shapes_are_another_table(folder: Path) -> None:
    def hashes(polygon: list[float], region: Region) -> tuple[str, str]:
        plan = planned(folder, {"a.png": {"boxes": [[4, 5, 20, 25]], "polygons": [[polygon]]}}, region)
        return plan.table_sha256, split_plan(plan, 1, None).sha256

    moved = [*TRIANGLE[:-1], 24.0]
    assert hashes(TRIANGLE, "mask") == hashes(TRIANGLE, "mask")
    assert all(a != b for a, b in zip(hashes(TRIANGLE, "mask"), hashes(moved, "mask"), strict=True))
    assert hashes(TRIANGLE, "box") == hashes(moved, "box")
    plan = planned(folder, {"a.png": [[4, 5, 20, 25]]}, "box")
    assert plan.table_sha256 == table_sha256(replace(plan.table, source="elsewhere"))


@pytest.mark.parametrize("region", ["mask", "rotated", "points"])
def test_what_is_written_is_read_back(region: Region, folder: Path, tmp_path: Path) -> None:
    content = {
        "a.png": {"boxes": [[4, 5, 20, 25], [1, 0, 3, 10]], "polygons": [[TRIANGLE], None], "rle": [None, MASK],
                  "rotated": [[9.5, 9, 4, 2, 33.3], [9, 9, 4, 2, -5]], "points": [[[1.1, 2, 0]], [[3, 4, 1]]]},
        "b.png": [],
    }  # fmt: skip
    plan = planned(folder, content, region)
    write_native(plan, tmp_path / "w.json")
    again = planned(folder, json.loads((tmp_path / "w.json").read_text()), region)
    for name in ("boxes", "rotated", "points"):
        one, other = getattr(plan.table, name), getattr(again.table, name)
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other)
    if plan.table.shapes is not None:
        assert again.table.shapes is not None
        assert all(map(same, plan.table.shapes, again.table.shapes))  # type: ignore[call-overload]
    counted = {
        "mask": {"masks of polygons": 1, "masks of run lengths": 1}, "rotated": {"rotated boxes": 2},
        "points": {"sets of 1 points": 2},
    }  # fmt: skip
    assert survey(again).regions == counted[region]


def test_the_command_counts_regions(folder: Path, roialign: Run) -> None:
    (folder.parent / "n.json").write_text(json.dumps({"a.png": {"boxes": [[4, 5, 20, 25]], "polygons": [[TRIANGLE]]}}))
    found = roialign("boxes", "im", "n.json", "--region", "mask", cwd=folder.parent)
    assert found.returncode == 0, found.stderr
    assert "1 masks of polygons" in found.stdout
    found = roialign("boxes", "im", "n.json", "--region", "rotated", "--region-missing", "box", cwd=folder.parent)
    assert "1 of 1 annotations have no rotated box: pooled by their box" in found.stderr


def test_a_closed_rectangle_is_a_rotated_box(tmp_path: Path) -> None:
    """Many tools repeat the first corner at the end of a polygon."""
    corners = [[10, 10], [50, 10], [50, 30], [10, 30]]
    for points in (corners, [*corners, corners[0]]):
        flat = [value for point in points for value in point]
        (tmp_path / "b.json").write_text(json.dumps({"a.png": {"polygons": [[flat], [flat]]}}))
        table = read_boxes(tmp_path / "b.json", None, Settings(region="rotated"))
        resolved = resolve("b.json", table, np.array([[64, 64]]), Settings(region="rotated"))
        assert resolved.rotated is not None
        assert resolved.rotated.tolist() == [[30, 20, 40, 20, 0]] * 2
    (tmp_path / "b.json").write_text(json.dumps({"a.png": {"polygons": [[[*flat[:8], 11, 10]]]}}))
    table = read_boxes(tmp_path / "b.json", None, Settings(region="rotated"))
    with pytest.raises(InputError, match="found a polygon of 5 points"):
        resolve("b.json", table, np.array([[64, 64]]), Settings(region="rotated"))


def test_an_angle_needs_pixels(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("image,cx,cy,w,h,angle\na.png,0.3,0.3,0.2,0.2,30\n")
    with pytest.raises(InputError, match="in pixels beside an angle, found shares of the image"):
        read_boxes(tmp_path / "b.csv", None, Settings(region="rotated"))
    stated = Settings(region="rotated", columns="units=pixels")
    assert read_boxes(tmp_path / "b.csv", None, stated).boxes.shape == (1, 4)


def test_oriented_boxes_of_yolo_may_have_a_score(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "im" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3 0.75\n")
    table = read_boxes(tmp_path / "labels", tmp_path / "im", Settings(region="rotated", boxes_format="yolo"))
    assert table.scores is not None
    assert table.scores.tolist() == [0.75]
    assert table.shapes is not None


def test_masks_outside_of_their_boxes_are_counted(tmp_path: Path) -> None:
    inside, outside = [10, 10, 30, 10, 30, 30], [40, 40, 60, 40, 60, 60]
    content = {"a.png": {"boxes": [[5, 5, 35, 35]] * 3, "polygons": [[inside], [outside], [outside, inside]]}}
    (tmp_path / "b.json").write_text(json.dumps(content))
    table = read_boxes(tmp_path / "b.json", None, Settings(region="mask"))
    resolved = resolve("b.json", table, np.array([[64, 64]]), Settings(region="mask"))
    assert resolved.notes == ("1 of 3 masks lie outside of their boxes: their features are zeros",)
