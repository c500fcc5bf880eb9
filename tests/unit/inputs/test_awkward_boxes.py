"""Test box files as other tools and people write them: what would be misread is refused, with a hint that works."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from roialign_cli.config import Settings, load
from roialign_cli.errors import InputError
from roialign_cli.extraction.plan import make_plan
from roialign_cli.inputs.boxes import read_boxes
from roialign_cli.inputs.boxes.units import LAYOUTS, Units, enclose_rotated
from roialign_cli.inputs.images import open_images
from roialign_cli.types import BoxTable, Plan

SIZE = (200, 100)  # (width, height) of the images
RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "im").mkdir()
    for i in range(4):
        Image.new("RGB", SIZE, "gray").save(tmp_path / "im" / f"{i}.jpg")
    return tmp_path / "im"


def random_corners(count: int) -> np.ndarray:
    """Return boxes [count, 4] inside the images, in whole pixels."""
    x1, y1 = RNG.integers(0, 150, count), RNG.integers(0, 70, count)
    return np.stack([x1, y1, x1 + RNG.integers(5, 50, count), y1 + RNG.integers(5, 30, count)], axis=1).astype(float)


CORNERS = [random_corners(12) for _ in range(4)]


def write_text(tmp_path: Path, line: Callable[[np.ndarray], str]) -> Path:
    """Write a text file per image with a line per box."""
    (tmp_path / "labels").mkdir()
    for i, corners in enumerate(CORNERS):
        (tmp_path / "labels" / f"{i}.txt").write_text("".join(line(box) + "\n" for box in corners))
    return tmp_path / "labels"


def planned(path: Path, folder: Path, **options: object) -> Plan:
    settings = load(None, options)
    images = open_images(folder)
    return make_plan(images, read_boxes(path, images, settings), settings)


def xywh(box: np.ndarray) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def relative(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = box / np.array([*SIZE, *SIZE])
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def words(values: list[float]) -> str:
    return " ".join(f"{value:.17g}" for value in values)


@pytest.mark.parametrize(
    "line",
    [
        lambda box: f"cat 0.9 {words(xywh(box))}",
        lambda box: f"0 0.9 {words(xywh(box))}",
        lambda box: f"0 0.9 {words(box.tolist())}",
        lambda box: f"0 0.95 {words(relative(box))}",
        lambda box: f"0 {words(relative(box))} 0.95",
        lambda box: f"0 {words(relative(box))}",
        lambda box: f"cat {words(relative(box))}",
    ],
    ids=[
        "name score xywh",
        "class score xywh",
        "class score xyxy",
        "class score relative",
        "yolo score",
        "yolo",
        "name",
    ],
)
def test_text_boxes_are_recognised(tmp_path: Path, folder: Path, line: Callable[[np.ndarray], str]) -> None:
    plan = planned(write_text(tmp_path, line), folder)
    assert np.allclose(plan.table.boxes, np.concatenate(CORNERS), atol=1e-4)
    if "0.9" in line(CORNERS[0][0]):
        assert plan.table.scores is not None
        assert np.ptp(plan.table.scores) == 0


def test_layouts_that_both_fit_are_not_guessed(tmp_path: Path, folder: Path) -> None:
    path = write_text(tmp_path, lambda box: "0 0.9 20 10 40 30")  # corners, or width and height
    with pytest.raises(InputError, match="fit 'label score x1 y1 x2 y2' and 'label score x y w h'") as error:
        planned(path, folder)
    columns = re.search(r'--columns "(.*)"', error.value.hint)
    assert columns is not None
    assert planned(path, folder, columns=columns[1]).table.boxes[0].tolist() == [20, 10, 40, 30]


@pytest.mark.parametrize("values", [lambda box: box.tolist(), xywh], ids=["xyxy", "xywh"])
def test_yolo_in_pixels_is_an_error_whose_hint_reads_it(
    tmp_path: Path, folder: Path, values: Callable[[np.ndarray], list[float]]
) -> None:
    path = write_text(tmp_path, lambda box: f"0 {words(values(box))}")
    with pytest.raises(InputError, match="found pixels") as error:
        planned(path, folder)
    assert error.value.reference == "boxes-format"
    columns = re.search(r'--columns "(.*)"', error.value.hint)
    assert columns is not None
    hinted = columns[1]
    if values is xywh:  # the first line alone need not tell
        hinted = "label x y w h"
    assert np.array_equal(planned(path, folder, columns=hinted).table.boxes, np.concatenate(CORNERS))


@pytest.mark.parametrize("units", [f"{layout}{suffix}" for layout in LAYOUTS for suffix in ("", "-relative")])
@pytest.mark.parametrize("kind", ["native", "coco", "coco-results", "csv", "npz"])
def test_units_of_any_format(tmp_path: Path, folder: Path, units: str, kind: str) -> None:
    corners = CORNERS[0]
    wanted = Units.parse(units)
    numbers = wanted.numbers(corners / np.array([*SIZE, *SIZE]) if wanted.relative else corners)
    path = tmp_path / "boxes.json"
    if kind == "native":
        path.write_text(json.dumps({"0.jpg": numbers.tolist()}))
    elif kind == "npz":
        path = tmp_path / "0.npz"
        np.savez(path, bbox=numbers)
    elif kind == "csv":
        path = tmp_path / "boxes.csv"
        path.write_text("image,x,y,w,h\n" + "".join(f"0.jpg,{','.join(map(str, row))}\n" for row in numbers.tolist()))
    else:
        annotations = [{"image_id": 0, "bbox": row, "score": 1} for row in numbers.tolist()]
        images = [{"id": 0, "file_name": "0.jpg"}]
        path.write_text(
            json.dumps(annotations if kind == "coco-results" else {"images": images, "annotations": annotations})
        )
    plan = planned(path, folder, box_units=units)
    assert np.allclose(plan.table.boxes, corners, atol=1e-4)


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 4), min_size=1, max_size=5), st.sampled_from([*LAYOUTS]))
def test_units_go_both_ways(rows: list[tuple[float, ...]], layout: str) -> None:
    numbers = np.array(rows)
    units = Units(layout)
    assert np.allclose(units.numbers(units.corners(numbers)), numbers, atol=1e-9)


def test_rotated_boxes_get_the_smallest_upright_box() -> None:
    boxes, angles = np.array([[10, 20, 6, 4]] * 4, float), np.array([0.0, 90, 45, -90])
    half = (6 + 4) / 2 / np.sqrt(2)
    wanted = [[7, 18, 13, 22], [8, 17, 12, 23], [10 - half, 20 - half, 10 + half, 20 + half], [8, 17, 12, 23]]
    assert np.allclose(enclose_rotated(boxes, angles), wanted)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (xywh, "--box-units xyxy"),
        (lambda box: [box[1], box[0], box[3], box[2]], "--box-units yxyx"),
        (lambda box: (box * 3).tolist(), "--allow-outside"),
    ],
    ids=["corners in COCO", "swapped axes", "other size"],
)
def test_files_with_most_boxes_outside_are_refused(
    tmp_path: Path, folder: Path, make: Callable[[np.ndarray], list[float]], hint: str, roialign: Run
) -> None:
    """The hint names the option with which the boxes are read as they were meant, or at least as they are."""
    far = np.array([[120, 60, 190, 95], [130, 70, 199, 99], [150, 55, 180, 90.0]])
    path = tmp_path / "boxes.json"
    if hint == "--box-units xyxy":  # a COCO file with corners
        annotations = [{"image_id": 0, "bbox": box.tolist()} for box in far]
        path.write_text(json.dumps({"images": [{"id": 0, "file_name": "0.jpg"}], "annotations": annotations}))
    else:
        path.write_text(json.dumps({"0.jpg": [make(box) for box in far]}))
    with pytest.raises(InputError, match="found 3 of 3 outside") as error:
        planned(path, folder)
    assert error.value.reference == "boxes-outside"
    assert hint in error.value.hint
    options = shlex.split(re.search(r"--[a-z-]+( \w+)?", error.value.hint)[0])  # type: ignore[index]
    if hint == "--allow-outside":
        options = options[:1]
    for command in (("boxes",), ("extract", "-c", "quickstart", "-o", tmp_path / "f.h5")):
        assert roialign(command[0], folder, path, *command[1:]).returncode == 3
        done = roialign(command[0], folder, path, *options, *command[1:])
        assert done.returncode == 0, done.stderr


def read_csv(tmp_path: Path, folder: Path, text: str, **options: object) -> BoxTable:
    (tmp_path / "b.csv").write_text(text)
    return read_boxes(tmp_path / "b.csv", folder, load(None, options))


def test_columns_that_are_not_read_are_noted(tmp_path: Path, folder: Path, roialign: Run) -> None:
    text = "image,x1,y1,x2,y2,cell_type,_who\n0.jpg,1,2,3,4,blob,me\n"
    table = read_csv(tmp_path, folder, text)
    assert table.labels is None
    assert table.notes == (
        "columns that are not read: cell_type, _who; --columns label=cell_type would make one the label",
    )
    named = read_csv(tmp_path, folder, text, columns="label=cell_type")
    assert named.labels is not None
    assert named.labels.tolist() == ["blob"]
    assert "note: columns that are not read: cell_type" in roialign("boxes", folder, tmp_path / "b.csv").stderr


@pytest.mark.parametrize("separator", [" ", "\t", ",", ";"])
@pytest.mark.parametrize("header", ["", "name label score left top right bottom"])
def test_columns_in_order(tmp_path: Path, folder: Path, separator: str, header: str) -> None:
    lines = [header, "0.jpg cat 0.5 1 2 3 4", "1.jpg dog 0.25 5 6 7 8.5"]
    text = "\n".join(line.replace(" ", separator) for line in lines if line)
    table = read_csv(tmp_path, folder, text, columns="image label score x1 y1 x2 y2")
    assert list(table.names) == ["0.jpg", "1.jpg"]
    assert table.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8.5]]
    assert table.labels is not None
    assert table.labels.tolist() == ["cat", "dog"]
    assert table.scores is not None
    assert table.scores.tolist() == [0.5, 0.25]


def test_columns_in_order_of_a_folder_of_text(tmp_path: Path, folder: Path) -> None:
    path = write_text(tmp_path, lambda box: f"7 x {words(xywh(box))} 0")
    (path / "3.txt").write_text("")
    table = read_boxes(path, folder, load(None, {"columns": "label _ x y w h angle"}))
    assert np.array_equal(table.boxes, np.concatenate(CORNERS[:3]))
    assert list(table.names) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]  # an image without boxes stays
    (path / "2.txt").write_text("1 2 3\n")
    with pytest.raises(InputError, match=r"2\.txt: row 1: expected 7 fields, found 3"):
        read_boxes(path, folder, load(None, {"columns": "label _ x y w h angle"}))


def test_scores_that_are_empty_are_absent(tmp_path: Path, folder: Path) -> None:
    """OpenImages' Confidence may be empty; other languages write decimal commas."""
    head = "ImageID;Confidence;XMin;XMax;YMin;YMax;LabelName\n"
    table = read_csv(tmp_path, folder, head + "0;;0,1;0,5;0,2;0,75;cat\n")
    assert table.scores is None
    assert table.notes == ()
    table = read_csv(tmp_path, folder, head + "0;0,5;0,1;0,5;0,2;0,75;cat\n0;1;0,1;0,5;0,2;0,75;cat\n")
    assert table.scores is not None
    assert table.scores.tolist() == [0.5, 1]
    table = read_csv(tmp_path, folder, head + "0;0,5;0,1;0,5;0,2;0,75;cat\n0;;0,1;0,5;0,2;0,75;cat\n")
    assert table.scores is None
    assert table.notes == ("scores are not read: 1 of 2 rows have none in column Confidence",)


def test_names_with_other_folders_are_found(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "coco.json"
    images = [{"id": i, "file_name": f"val2017/{i}.jpg"} for i in range(3)]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}))
    table = read_boxes(path, folder)
    assert list(table.names) == ["0.jpg", "1.jpg", "2.jpg"]
    assert table.notes == ('3 images are found under another name: "val2017/0.jpg" is "0.jpg"',)
    for name in ("x/0.jpg", "y/0.jpg"):
        (folder / name).parent.mkdir()
        Image.new("RGB", SIZE).save(folder / name)
    content = {"y/0.jpg": [[1, 2, 3, 4]], "data/x/0.jpg": [], "a/1.jpg": [], "b/1.jpg": [], "z/0.jpg": []}
    path.write_text(json.dumps(content))
    # Two names for one image, and one name for several images, are left as they are: those images are missing.
    assert list(read_boxes(path, folder).names) == ["y/0.jpg", "x/0.jpg", "a/1.jpg", "b/1.jpg", "z/0.jpg"]


def test_coco_with_polygons_only(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "coco.json"
    polygons = [[10, 20, 40, 20, 40, 60], [5, 30, 6, 31, 7, 30]]
    annotations = [
        {"image_id": 0, "segmentation": polygons, "category_id": 3, "iscrowd": 0},
        {"image_id": 0, "bbox": [1, 2, 3, 4], "category_id": 3},
    ]
    images = [{"id": 0, "file_name": "0.jpg"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    assert read_boxes(path, folder).boxes.tolist() == [[5, 20, 40, 60], [1, 2, 4, 6]]
    annotations[0]["segmentation"] = {"counts": "abc", "size": [1, 2]}
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(InputError, match=r"annotations\[0\] of .*expected COCO's run lengths, found: .*cut off"):
        read_boxes(path, folder)


def encoded(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def test_bottom_up_attention(tmp_path: Path, folder: Path) -> None:
    corners, features = CORNERS[0].astype(np.float32), np.zeros((12, 2048), np.float32)
    (tmp_path / "a.tsv").write_text(f"2\t{SIZE[0]}\t{SIZE[1]}\t12\t{encoded(corners)}\t{encoded(features)}\n")
    table = read_boxes(tmp_path / "a.tsv", folder)
    assert list(table.names) == ["2.jpg"]
    assert np.array_equal(table.boxes, corners)
    assert table.sizes is not None
    assert table.sizes.tolist() == [[SIZE[1], SIZE[0]]]
    ids, scores = np.arange(12), np.linspace(0, 1, 12, dtype=np.float32)
    fields = ["2", str(SIZE[1]), str(SIZE[0]), encoded(ids), encoded(scores), encoded(ids), encoded(scores), "12"]
    (tmp_path / "b.tsv").write_text("\t".join([*fields, encoded(corners), encoded(features)]) + "\n")
    table = read_boxes(tmp_path / "b.tsv", folder)
    assert table.scores is not None
    assert np.array_equal(table.scores, scores)
    assert np.array_equal(table.boxes, corners)


def test_what_an_error_quotes_is_short(tmp_path: Path, folder: Path) -> None:
    for text in ("a,b,c\n" + "x" * 100_000, f"{'image'},x1,y1,x2,y2\n0.jpg,{'9' * 100_000}x,1,2,3\n", "x" * 100_000):
        with pytest.raises(InputError) as error:
            read_csv(tmp_path, folder, text)
        assert len(str(error.value)) < 1500


@pytest.mark.skipif(sys.platform == "win32", reason="the paths are POSIX's")
@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("-", "/dev/stdin")), "<()"])
def test_boxes_from_a_pipe(tmp_path: Path, folder: Path, kind: str) -> None:
    boxes, output = tmp_path / "boxes.json", tmp_path / "f.h5"
    boxes.write_text(json.dumps({"0.jpg": [[1, 2, 30, 40]]}))
    argument = f"<(cat {boxes})" if kind == "<()" else kind
    command = f"{sys.executable} -m roialign_cli extract {folder} {argument} -c quickstart -o {output}"
    script = command if kind == "<()" else f"cat {boxes} | {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 done" in done.stdout


def test_images_whose_boxes_are_empty_finish_at_once(tmp_path: Path, folder: Path, roialign: Run) -> None:
    (tmp_path / "boxes.json").write_text("{}")
    done = roialign("extract", folder, tmp_path / "boxes.json", "-c", "quickstart", "-o", tmp_path / "f.h5")
    assert done.returncode == 0, done.stderr
    assert "f.h5: finished" in done.stdout
    again = roialign("extract", folder, tmp_path / "boxes.json", "-c", "quickstart", "-o", tmp_path / "f.h5")
    assert "was finished already" in again.stdout


def test_class_names_are_found_two_folders_up(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "0.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data.yaml").write_text("names: {0: cat, 1: dog}\n")
    table = read_boxes(tmp_path / "labels" / "train", folder)
    assert table.labels is not None
    assert table.labels.tolist() == ["dog"]


def test_first_boxes_without_scores_are_noted(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps({"0.jpg": [[1, 2, 3, 4], [5, 6, 7, 8]]}))
    table = read_boxes(tmp_path / "boxes.json", folder, Settings(max_boxes=1))
    assert table.notes == ("boxes have no scores: the first 1 of each image are kept",)


def test_a_coco_file_in_a_folder_is_pointed_at(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "instances.json"
    path.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(InputError) as error:
        read_boxes(tmp_path / "annotations", folder)
    assert error.value.hint == f"pass the file itself as BOXES: {path}"
