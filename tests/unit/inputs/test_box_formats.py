"""Read one data set in every box format, corners worked by hand, selections, and damaged files of every kind."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import re
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.backbones.weights import read_weights_file
from roialign_cli.config import Settings, load
from roialign_cli.errors import BackboneError, InputError, RoialignError
from roialign_cli.extraction.plan import make_plan
from roialign_cli.inputs.boxes import read_boxes
from roialign_cli.inputs.boxes.common import Source
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.inputs.boxes.read import READERS
from roialign_cli.inputs.boxes.recognise import recognise
from roialign_cli.inputs.images import open_images
from roialign_cli.types import BoxTable

# Names, sizes (width, height) and boxes; whole quarters of pixels, so that every format can hold them exactly.
IMAGES = {"1.jpg": (128, 64), "sub/2.png": (100, 80), "höhe 3.jpg": (64, 64)}
BOXES = {
    "1.jpg": [[0, 0, 128, 64], [10.25, 3.5, 20.75, 63]],
    "sub/2.png": [[1, 2, 3, 4]],
    "höhe 3.jpg": [[5, 5, 60, 50.5], [0, 32, 32, 64], [7, 8, 9, 10]],
}
LABELS = {"1.jpg": ["cat", "dog"], "sub/2.png": ["dog"], "höhe 3.jpg": ["cat", "cat", "bird"]}
CLASSES = ["bird", "cat", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the images, and a COCO file that names them by number for COCO results."""
    folder = tmp_path_factory.mktemp("images")
    for name, size in IMAGES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, "gray").save(folder / name)
    return folder


def rows() -> list[tuple[str, str, list[float]]]:
    return [(name, label, box) for name in IMAGES for label, box in zip(LABELS[name], BOXES[name], strict=True)]


def as_native(path: Path) -> Path:
    content = {name: {"boxes": BOXES[name], "labels": LABELS[name]} for name in IMAGES}
    (path / "boxes.json").write_text(json.dumps(content))
    return path / "boxes.json"


def as_jsonl(path: Path) -> Path:
    lines = [json.dumps({"image": name, "boxes": BOXES[name], "labels": LABELS[name]}) for name in IMAGES]
    (path / "boxes.jsonl").write_text("\n\n".join(lines))
    return path / "boxes.jsonl"


def coco() -> dict[str, Any]:
    number = {name: i for i, name in enumerate(IMAGES, 7)}
    return {
        "images": [{"id": number[name], "file_name": name} for name in IMAGES],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [
            {"image_id": number[name], "category_id": CLASSES.index(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for name, label, (x1, y1, x2, y2) in rows()
        ],
    }


def as_coco(path: Path) -> Path:
    (path / "instances.json").write_text(json.dumps(coco()))
    return path / "instances.json"


def as_results(path: Path) -> Path:
    as_coco(path)
    (path / "results.json").write_text(json.dumps(coco()["annotations"]))
    return path / "results.json"


def as_voc(path: Path) -> Path:
    for name in IMAGES:
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
            for label, (x1, y1, x2, y2) in zip(LABELS[name], BOXES[name], strict=True)
        )
        short = Path(name).name  # VOC's <filename> has no folder
        text = f"<annotation><folder>x</folder><filename>{short}</filename>{objects}</annotation>"
        (path / f"{Path(name).stem}.xml").write_text(text, encoding="utf-8")
    return path


def as_yolo(path: Path) -> Path:
    (path / "labels" / "sub").mkdir(parents=True)
    (path / "classes.txt").write_text("\n".join(CLASSES))
    for name, (width, height) in IMAGES.items():
        lines = [
            f"{CLASSES.index(label)} {(x1 + x2) / 2 / width!r} {(y1 + y2) / 2 / height!r} "
            f"{(x2 - x1) / width!r} {(y2 - y1) / height!r}"
            for label, (x1, y1, x2, y2) in zip(LABELS[name], BOXES[name], strict=True)
        ]
        (path / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))
    return path / "labels"


def as_labelme(path: Path) -> Path:
    for name in IMAGES:
        shapes = [
            {"label": label, "points": [[x2, y1], [x1, y2]] if i else [[x1, y1], [x2, y1], [x2, y2], [x1, y2]],
             "shape_type": "rectangle" if i else "polygon"}
            for i, (label, (x1, y1, x2, y2)) in enumerate(zip(LABELS[name], BOXES[name], strict=True))
        ]  # fmt: skip
        content = {"imagePath": f"..\\images\\{Path(name).name}", "imageData": None, "shapes": shapes}
        (path / f"{Path(name).stem}.json").write_text(json.dumps(content))
    return path


def as_table(path: Path, header: str, cells: Callable[[str, list[float]], list[object]], comma: bool = False) -> Path:
    separator = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(header.split())
        for name, label, box in rows():
            values = [str(value).replace(".", ",") if comma else value for value in cells(name, box)]
            writer.writerow([name, *values, label])
    return path


def as_csv(path: Path) -> Path:
    return as_table(path / "b.csv", "filename xmin ymin xmax ymax class", lambda _, box: list(box))


def as_xywh(path: Path) -> Path:
    return as_table(
        path / "b.tsv", "Image X Y W H Label", lambda _, b: [b[0], b[1], b[2] - b[0], b[3] - b[1]], comma=True
    )


def as_openimages(path: Path) -> Path:
    def shares(name: str, box: list[float]) -> list[object]:
        width, height = IMAGES[name]
        return [box[0] / width, box[2] / width, box[1] / height, box[3] / height]

    return as_table(path / "b.csv", "ImageID XMin XMax YMin YMax LabelName", shares)


def as_npz(path: Path) -> Path:
    for name in IMAGES:
        np.savez(path / f"{Path(name).name}.npz", bbox=np.array(BOXES[name], np.float32), labels=np.array(LABELS[name]))
    return path


def as_text(path: Path, line: Callable[[str, str, list[float]], str]) -> Path:
    """Write a text file per image, with its folder, from what `line` makes of an image, a label and a box."""
    (path / "labels" / "sub").mkdir(parents=True)
    for name in IMAGES:
        lines = [line(name, label, box) for label, box in zip(LABELS[name], BOXES[name], strict=True)]
        (path / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))
    return path / "labels"


def centred(name: str, box: list[float]) -> str:
    """Return a box as its centre and size, relative to its image."""
    width, height = IMAGES[name]
    x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    return f"{(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}"


def as_named_yolo(path: Path) -> Path:
    return as_text(path, lambda name, label, box: f"{label} {centred(name, box)}")


def as_detections(path: Path) -> Path:
    return as_text(path, lambda name, label, box: f"{label} 0.5 {' '.join(map(str, box))}")


def as_relative_detections(path: Path) -> Path:
    return as_text(path, lambda name, label, box: f"{label} 0.95 {centred(name, box)}")


def as_dota(path: Path) -> Path:
    def line(name: str, label: str, box: list[float]) -> str:
        x1, y1, x2, y2 = box
        return f"{x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2} {label} 0"

    labels = as_text(path, line)
    (labels / "1.txt").write_text("imagesource:GoogleEarth\ngsd:0.15\n" + (labels / "1.txt").read_text())
    return labels


def as_cvat(path: Path) -> Path:
    images = "".join(
        f'<image id="{i}" name="{name}" width="{width}" height="{height}">'
        + "".join(
            f'<polygon label="{label}" points="{x1},{y1};{x2},{y1};{x2},{y2}"/>' if i % 2
            else f'<box label="{label}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}" occluded="0"/>'
            for label, (x1, y1, x2, y2) in zip(LABELS[name], BOXES[name], strict=True)
        )
        + "</image>"
        for i, (name, (width, height)) in enumerate(IMAGES.items())
    )  # fmt: skip
    (path / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{images}</annotations>", encoding="utf-8"
    )
    return path / "annotations.xml"


def as_label_studio(path: Path) -> Path:
    tasks = []
    for name, (width, height) in IMAGES.items():
        result = [
            {"type": "rectanglelabels", "original_width": width, "original_height": height,
             "value": {"x": 100 * x1 / width, "y": 100 * y1 / height, "width": 100 * (x2 - x1) / width,
                       "height": 100 * (y2 - y1) / height, "rotation": 0, "rectanglelabels": [label]}}
            for label, (x1, y1, x2, y2) in zip(LABELS[name], BOXES[name], strict=True)
        ]  # fmt: skip
        address = f"/data/upload/3/0123abcd-{Path(name).name}"
        tasks.append({"id": 1, "data": {"image": address}, "annotations": [{"id": 5, "result": result}]})
    (path / "export.json").write_text(json.dumps(tasks))
    return path / "export.json"


def as_compressed_coco(path: Path) -> Path:
    (path / "instances.json.gz").write_bytes(gzip.compress(json.dumps(coco()).encode()))
    return path / "instances.json.gz"


FORMATS = {
    "detections": as_detections, "relative detections": as_relative_detections, "named yolo": as_named_yolo,
    "dota": as_dota, "cvat": as_cvat, "label-studio": as_label_studio, "compressed coco": as_compressed_coco,
    "native": as_native, "jsonl": as_jsonl, "coco": as_coco, "coco-results": as_results, "voc": as_voc, "yolo": as_yolo,
    "labelme": as_labelme, "csv": as_csv, "xywh": as_xywh, "openimages": as_openimages, "npz": as_npz,
}  # fmt: skip


def by_image(table: BoxTable, folder: Path) -> dict[str, tuple[list[list[float]], list[str]]]:
    plan = make_plan(open_images(folder), table, Settings(on_error="stop"))
    assert plan.table.boxes.dtype == np.float32
    assert plan.table.labels is not None
    return {
        name: (plan.table.boxes[a:b].tolist(), plan.table.labels[a:b].tolist())
        for name, a, b in zip(plan.table.names, plan.table.offset, plan.table.offset[1:], strict=False)
    }


@pytest.mark.parametrize("name", FORMATS)
def test_all_formats_are_one(name: str, folder: Path, tmp_path: Path) -> None:
    path = FORMATS[name](tmp_path)
    options = Settings(images_json=str(tmp_path / "instances.json")) if name == "coco-results" else Settings()
    if name in READERS and name != "detections":  # which format that is depends on the images
        assert recognise(Source(path, ImageNames(None), Settings())) == name
    table = read_boxes(path, folder, options)
    assert by_image(table, folder) == {image: (BOXES[image], LABELS[image]) for image in IMAGES}
    assert table.sha256 == read_boxes(path, folder, options).sha256


def test_a_label_that_is_null_is_empty(folder: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    corners = {name: [1.0, 9.0] for name in ("x1", "y1")} | {name: [20.0, 30.0] for name in ("x2", "y2")}
    names = list(IMAGES)[:2]
    parquet.write_table(arrow.table({"image": names, "label": ["cat", None], **corners}), tmp_path / "b.parquet")
    assert sorted(read_boxes(tmp_path / "b.parquet", folder).labels.tolist()) == ["", "cat"]


def test_parquet(folder: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["image", "label", "box"]
    columns = dict(zip(names, zip(*rows(), strict=True), strict=True))
    corners = {corner: [box[i] for box in columns["box"]] for i, corner in enumerate(("x1", "y1", "x2", "y2"))}
    parquet.write_table(
        arrow.table({"image": columns["image"], "label": columns["label"], **corners}), tmp_path / "b.parquet"
    )
    assert by_image(read_boxes(tmp_path / "b.parquet", folder), folder) == {n: (BOXES[n], LABELS[n]) for n in IMAGES}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.jpg", "b.jpg", "sub/ü.png", "a"]),
            st.lists(st.floats(0, 500, width=32), min_size=4, max_size=4),
            st.sampled_from(["cat", "7", "-3", "07", ""]),
            st.floats(0, 1, width=32),
        ),
        max_size=40,
    ),
    st.sampled_from([1, 1 / 512]),
    st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parquet_holds_what_csv_holds(tmp_path: Path, found: list[Any], scale: float, coded: bool) -> None:
    """Rows come in any order, names may mean one image, boxes may be relative, and row groups may be small."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "im").mkdir(exist_ok=True)
    (tmp_path / "im" / "a.jpg").touch()
    names = [row[0] for row in found]
    boxes = np.sort(np.array([row[1] for row in found]).reshape(-1, 2, 2), axis=1).reshape(-1, 4) * scale
    sizes = {"a.jpg": (640, 480), "a": (640, 480), "b.jpg": (3, 4), "sub/ü.png": (1, 1)}
    columns = {
        "filename": names, "label": [row[2] for row in found], "score": [row[3] for row in found],
        **{corner: boxes[:, i].tolist() for i, corner in enumerate(("x1", "y1", "x2", "y2"))},
        "image_width": [sizes[name][0] for name in names], "image_height": [sizes[name][1] for name in names],
    }  # fmt: skip
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    table = arrow.table(
        columns, schema=arrow.schema([(n, "string" if n in ("filename", "label") else "float64") for n in columns])
    )
    if coded:
        table = table.set_column(0, "filename", table["filename"].dictionary_encode())
        table = table.set_column(1, "label", table["label"].dictionary_encode())
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=3 if coded else 1000)
    one, other = (read_boxes(tmp_path / name, tmp_path / "im") for name in ("t.csv", "t.parquet"))
    assert one.names == other.names
    for column in ("offset", "boxes", "labels", "scores", "sizes", "relative_boxes"):
        left, right = getattr(one, column), getattr(other, column)
        assert (left is None) == (right is None), column
        assert left is None or (left.dtype.kind == right.dtype.kind and np.array_equal(left, right)), column
    assert set(other.names) <= {"a.jpg", "b.jpg", "sub/ü.png"}
    assert other.sizes is not None
    assert [tuple(size[::-1]) for size in other.sizes.tolist()] == [sizes[name] for name in other.names]


def test_parquet_of_more_rows_than_are_read_at_a_time(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    count = 600_000
    row = np.arange(count)
    image = np.where(row < 500_000, row % 3, 3 + row % 2)  # two of them come late
    columns = {"image": [f"{i}.jpg" for i in image], "x1": row % 640, "y1": row // 640, "x2": row, "y2": row}
    label = [str(i) if i < 500_000 else "cat" for i in row % 10 + image // 3 * 500_000]
    parquet.write_table(arrow.table({**columns, "label": label}), tmp_path / "t.parquet")
    table = read_boxes(tmp_path / "t.parquet")
    assert table.names == ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    assert table.labels is not None
    for i, rows in enumerate(np.split(np.arange(count), table.offset[1:-1])):
        mine = row[image == i]
        assert np.array_equal(table.boxes[rows], np.stack([mine % 640, mine // 640, mine, mine], axis=1))
        assert table.labels[rows].tolist() == [label[i] for i in mine]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_sizes_that_disagree_or_are_none(tmp_path: Path, suffix: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    def read(heights: list[float | None]) -> BoxTable:
        columns: dict[str, Any] = {"image": ["a.jpg", "b.jpg", "a.jpg"], "x1": [0, 0, 0], "y1": [0, 0, 0]}
        columns |= {"x2": [5, 5, 5], "y2": [5, 5, 5], "image_width": [9, 9, 9], "image_height": heights}
        write = arrow_csv.write_csv if suffix == "csv" else parquet.write_table
        write(arrow.table(columns), tmp_path / f"t.{suffix}")
        return read_boxes(tmp_path / f"t.{suffix}")

    stated = read([8, 7, 8]).sizes
    assert stated is not None
    assert stated.tolist() == [[8, 9], [7, 9]]
    assert read([8.5, 7, 8.5]).sizes is None
    assert read([0, 7, 0]).sizes is None
    with pytest.raises(RoialignError, match=r'"a.jpg": expected one size in all its rows, found several'):
        read([8, 7, 6])


def test_parquet_that_lacks_something(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def read(**columns: Any) -> BoxTable:
        parquet.write_table(arrow.table({"x1": [0, 0], "y1": [0, 0], "x2": [5, 5], **columns}), tmp_path / "t.parquet")
        return read_boxes(tmp_path / "t.parquet")

    for columns, expected in (
        (
            {"image": ["a", None], "y2": [1, 2]},
            r"t.parquet: row 2: image: expected the name of an image, found nothing",
        ),
        ({"image": ["a", "b"], "y2": [1, None]}, r'"b", box 0: expected four finite numbers'),
        ({"image": ["a", "b"], "y2": ["1", "x"]}, r"t.parquet: row 2: y2: expected a number, found 'x'"),
        ({"image": ["a", "b"]}, r"expected an image column and x1, y1, x2, y2"),
        ({"image": [[1], [2]], "y2": [1, 2]}, r"expected Parquet, found"),
    ):
        with pytest.raises(RoialignError, match=expected):
            read(**columns)
    numbered = read(image=[17, 18], y2=["1,5", "2"])
    assert numbered.names == ("17", "18")
    assert numbered.boxes[:, 3].tolist() == [1.5, 2]


def test_relative_boxes_become_pixels_in_a_run(folder: Path, tmp_path: Path) -> None:
    for name, make in (("n", as_native), ("y", as_yolo)):
        (tmp_path / name).mkdir()
        extract(folder, make(tmp_path / name), tmp_path / f"{name}.h5", config_name="quickstart", output_size=2)
    with FeatureFile(tmp_path / "n.h5") as native, FeatureFile(tmp_path / "y.h5") as yolo:
        for name in IMAGES:
            assert np.array_equal(native[name].boxes, yolo[name].boxes)
            assert np.array_equal(native[name].features, yolo[name].features)


@pytest.mark.parametrize(("origin", "expected"), [(1, [4, 6, 10, 12]), (0, [5, 7, 10, 12])])
def test_voc_by_hand(tmp_path: Path, origin: int, expected: list[float]) -> None:
    text = "<bndbox><xmin>5</xmin><ymin>7</ymin><xmax>10</xmax><ymax>12</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(f"<annotation><filename>a.jpg</filename><object>{text}</object></annotation>")
    table = read_boxes(tmp_path / "a.xml", None, load(None, {"voc_origin": origin}))
    assert table.boxes.tolist() == [expected]
    assert table.names == ("a.jpg",)


def test_yolo_by_hand(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "im" / "a.png")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.25 0.5 0.75\n0 0.1 0.1 0.3 0.1 0.3 0.2\n")
    (tmp_path / "data.yaml").write_text("names: {0: tree, 1: house}")
    with pytest.raises(RoialignError, match="score on every line"):
        read_boxes(tmp_path / "a.txt", tmp_path / "im")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.3 0.1 0.3 0.2\n")
    plan = make_plan(
        open_images(tmp_path / "im"), read_boxes(tmp_path / "a.txt", tmp_path / "im"), Settings(on_error="stop")
    )
    np.testing.assert_allclose(plan.table.boxes, [[75, 25, 125, 75], [20, 10, 60, 20]], rtol=1e-6)
    assert plan.table.labels is not None
    assert plan.table.labels.tolist() == ["house", "tree"]


def test_labelme_circles_and_names_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "im" / "a.png")
    shapes = [{"label": 5, "points": [[10, 10], [13, 14]], "shape_type": "circle"}, {"label": "x", "points": [[1, 2]]}]
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": "other.jpg", "shapes": shapes}))
    table = read_boxes(tmp_path / "a.json", tmp_path / "im")
    assert table.names == ("a.png",)
    assert table.boxes.tolist() == [[5, 5, 15, 15], [1, 2, 1, 2]]


def test_results_find_their_images_by_number(tmp_path: Path) -> None:
    for name in ("000000000785.jpg", "COCO_val_000000000012.jpg", "b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    results = [{"image_id": i, "bbox": [1, 2, 3, 4], "score": 0.5} for i in (12, 785, "b", 99, 12)]
    (tmp_path / "r.json").write_text(json.dumps(results))
    table = read_boxes(tmp_path / "r.json", tmp_path)
    assert table.names == ("COCO_val_000000000012.jpg", "000000000785.jpg", "b.png", "000000000099.jpg")
    assert table.offset.tolist() == [0, 2, 3, 4, 5]
    assert table.boxes[0].tolist() == [1, 2, 4, 6]


def table_from_entries(content: object, tmp_path: Path, **options: object) -> BoxTable:
    (tmp_path / "b.json").write_text(json.dumps(content))
    return read_boxes(tmp_path / "b.json", None, load(None, options))


def test_selections(tmp_path: Path) -> None:
    content = {
        "a": {
            "boxes": [[0, 0, 9, 9], [0, 0, 2, 9], [0, 0, 8, 8]],
            "labels": ["x", "y", "x"],
            "scores": [0.2, 0.9, 0.7],
        },
        "b": {"boxes": [[1, 1, 5, 5]], "labels": ["x"], "scores": [0.1]},
    }
    for options, kept in (
        ({}, [3, 1]), ({"labels": "x"}, [2, 1]), ({"min_score": 0.5}, [2, 0]), ({"min_size": 3}, [2, 1]),
        ({"max_boxes": 1}, [1, 1]), ({"max_boxes": 2, "labels": "x,y"}, [2, 1]), ({"labels": ["y"], "min_size": 3}, [0, 0]),
    ):  # fmt: skip
        table = table_from_entries(content, tmp_path, **options)
        assert np.diff(table.offset).tolist() == kept, options
        assert table.names == ("a", "b")
    best = table_from_entries(content, tmp_path, max_boxes=1)
    assert best.scores is not None
    assert best.scores.tolist() == pytest.approx([0.9, 0.1])
    crowd = coco()
    crowd["annotations"][0]["iscrowd"] = 1
    assert len(table_from_entries(crowd, tmp_path).boxes) == 6
    assert len(table_from_entries(crowd, tmp_path, crowd=False).boxes) == 5
    for options, expected in (
        ({"labels": "z"}, "expected some of x, y, found 'z'"), ({"min_score": -1}, "min_score: expected at least 0"),
    ):  # fmt: skip
        with pytest.raises(RoialignError, match=expected):
            table_from_entries(content, tmp_path, **options)
    for options, expected in (({"labels": "z"}, "with labels"), ({"min_score": 0.1}, "with scores")):
        with pytest.raises(RoialignError, match=f"expected boxes {expected}, found none"):
            table_from_entries({"a": [[1, 2, 3, 4]]}, tmp_path, **options)


def test_boxes_without_a_file(folder: Path, tmp_path: Path, roialign: Run) -> None:
    plan = make_plan(open_images(folder), read_boxes(None, folder, Settings(grid="2x4")), Settings(on_error="stop"))
    assert plan.rows == 3 * 8
    assert plan.table.names[0] == "1.jpg"
    assert plan.table.boxes[:8].tolist() == [
        [32 * x, 32 * y, 32 * (x + 1), 32 * (y + 1)] for y in range(2) for x in range(4)
    ]
    done = roialign("extract", folder, "--whole-image", "-c", "quickstart", "-o", tmp_path / "f.h5")
    assert done.returncode == 0, done.stderr
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file["sub/2.png"].boxes.tolist() == [[0, 0, 100, 80]]
    for arguments, expected in (
        ((folder, "-o", tmp_path / "x.h5"), "expected a box file, found none"),
        ((folder, as_native(tmp_path), "--grid", "2x2", "-o", tmp_path / "x.h5"), "expected no box file"),
        ((folder, "--grid", "0x2", "-o", tmp_path / "x.h5"), "expected ROWSxCOLUMNS"),
    ):
        wrong = roialign("extract", *arguments, "-c", "quickstart")
        assert wrong.returncode == 2, wrong.stderr
        assert expected in wrong.stderr


ENTITIES = '<!DOCTYPE a [<!ENTITY b "bbb"><!ENTITY c "&b;&b;&b;">]><annotation><filename>&c;</filename></annotation>'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xml", ENTITIES, "expected plain XML, found a document type"),
        ("a.xml", "<annotation><object>", "expected XML, found: no element found"),
        ("a.xml", "<html></html>", "expected <annotation>, found <html>"),
        ("a.xml", "<annotation><object><bndbox><xmin>a</xmin></bndbox></object></annotation>", "object 0: xmin: expected"),
        ("a.jsonl", '{"image": "a", "boxes": []}\n{"boxes": []}', "line 2: expected"),
        ("a.jsonl", '{"image": "a", "boxes": []}\n{"image": "a", "boxes": []}', 'line 2: "a": expected each image once'),
        ("a.jsonl", '{"image": "a", "boxes": [[1, 2, 3, 4]], "boxes": []}', '"boxes": expected each key once'),
        ("a.jsonl", '{"image": "a", "boxes": []}\n{"image": "b", "boxes": [], "image": "c"}', 'line 2: "image": expected each'),
        ("a.jsonl", '{"image": "\\ud800", "boxes": []}', "line 1: expected"),
        ("a.json", '{"shapes": [{"points": [[1, 2], [3, 4]]}], "shapes": []}', '"shapes": expected each key once'),
        ("a.json", '{"shapes": [], "imagePath": "\\ud800"}', "of Unicode text"),
        ("a.json", '[{"image_id": "\\ud800", "bbox": [1, 2, 3, 4]}]', "expected a list of COCO results"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2]}]', "expected a list of COCO results"),
        ("a.json", '{"shapes": [{"points": []}]}', "shape 0: expected points, found none"),
        ("a.csv", "", "found an empty file"),
        ("a.csv", "a,b\n1,2", "expected an image column and x1, y1, x2, y2"),
        ("a.csv", "image,x1,y1,x2,y2\na,1,2,3", "row 2: expected 5 fields, found 4"),
        ("a.csv", 'image,x1,y1,x2,y2,label\na,1,2,3,4,b\nc,1,2,3,4,"cat\nd,1,2,3,4,dog\n', "line 3: expected fields that"),
        ("a.csv", 'image,x1,y1,x2,y2,label\na,1,2,3,4,"b\nd,1,2,3,4,c\ne,1,2,3,4,"\n', "line 2: expected a closing quote"),
        ("a.csv", 'image,x1,y1,x2,y2\na,1,2,3,4\n"b,5,6,7,8\nc",1,2,3,4\n', "a field with the row 'b,5,6,7,8'"),
        ("a.csv", 'image,x1,y1,x2,y2\n"a"b,1,2,3,4\n', "line 2: expected fields that are quoted"),
        ("a.csv", "image,x1,y1,x2,y2,x1\na,1,2,3,4,0", "expected one column 'x1', found 2: x1, x1"),
        ("a.tsv", "image\tx1\ty1\tx2\ty2\tcls\tCls\na\t1\t2\t3\t4\tb\tc", "expected one column 'cls', found 2: cls, Cls"),
        ("a.csv", "image,x1,y1,x2,y2\na,1,2,3,b", "row 2: y2: expected a number, found 'b'"),
        ("a.csv", "image,x1,y1,x2,y2\n../a,1,2,3,4", "inside the image folder"),
        ("a.csv", "image,x1,y1,x2,y2\n,1,2,3,4", "inside the image folder"),
        ("a.csv", "image,x1,y1,x2,y2\na,1,2,nan,4", "expected four finite numbers"),
        ("a.csv", "image,x1,y1,x2,y2,score\na,1,2,3,4,1e300", 'box 0: expected a finite score, found inf'),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1e300}]', "expected a finite score, found inf"),
        ("a.txt", "0 0.5 0.5 0.1", "found no image for"),
        ("a.npz", "PK", "expected an npz file"),
    ],
)  # fmt: skip
def test_errors_name_the_place(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    if name == "a.txt":
        content = "0 0.5 0.5 0.1 0.1"
        (tmp_path / name).write_text(content)
    with pytest.raises(RoialignError) as error:
        read_boxes(tmp_path / name)
    assert str(tmp_path / name) in error.value.message
    assert expected in error.value.message


@pytest.mark.parametrize(
    ("line", "expected"),
    [("x 1 1 z 1", "line 1: expected class"), ("0.5 1 1 1 1", "line 1: expected class"), ("0 1 1", "found 3 numbers"),
     ("9 .5 .5 .1 .1", "numbered from 0, found 9"), ("0 nan .5 .1 .1", "finite"), ("inf 1 1 1 1", "class")],
)  # fmt: skip
def test_yolo_lines_that_are_none(tmp_path: Path, folder: Path, line: str, expected: str) -> None:
    labels = as_yolo(tmp_path)
    (labels / "1.txt").write_text(line)
    with pytest.raises(RoialignError) as error:
        read_boxes(labels, folder)
    assert expected in error.value.message


def test_columns_can_be_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "b.csv").write_text("datei;links;oben;rechts;unten\n1.jpg;0,25;0;0,5;1\n1.jpg;0;0;1;1\n")
    said = "image=datei,x1=links,y1=oben,x2=rechts,y2=unten"
    relative = read_boxes(tmp_path / "b.csv", folder, load(None, {"columns": said}))
    assert relative.relative_boxes is not None
    assert relative.relative_boxes.tolist() == [[0.25, 0, 0.5, 1], [0, 0, 1, 1]]
    pixels = read_boxes(tmp_path / "b.csv", folder, load(None, {"columns": f"{said},units=pixels"}))
    assert pixels.relative_boxes is None
    assert pixels.sha256 != relative.sha256
    for columns, expected in (
        ("x1=Left", "expected one of datei"),
        ("links", "expected WHAT=NAME"),
        ("label links", "in order"),
        ("units=km", "pixels"),
    ):
        with pytest.raises(RoialignError, match=expected):
            read_boxes(tmp_path / "b.csv", folder, load(None, {"columns": columns}))


def test_columns_that_are_not_used_or_are_named_may_be_alike(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("image,x1,y1,x2,y2,label,Label,note,note\na,1,2,3,4,b,c,d,e\n")
    table = read_boxes(tmp_path / "b.csv", None, load(None, {"columns": "label=Label"}))
    assert table.labels is not None
    assert table.labels.tolist() == ["c"]


def test_a_text_over_several_lines_is_no_lost_quote(tmp_path: Path) -> None:
    label = "one, two, three, four, five\n3, 4 and 5\n"
    with (tmp_path / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "x1", "y1", "x2", "y2", "label"], ["a\nb", 1, 2, 3, 4, label]])
    table = read_boxes(tmp_path / "b.csv")
    assert table.names == ("a\nb",)
    assert table.labels is not None
    assert table.labels.tolist() == [label.strip()]


def test_parquet_of_columns_that_are_alike(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["image", "x1", "y1", "x2", "y2", "x1"]
    columns = [arrow.array(["a"]), *(arrow.array([float(i)]) for i in range(5))]
    parquet.write_table(arrow.Table.from_arrays(columns, names), tmp_path / "b.parquet")
    with pytest.raises(RoialignError, match="expected one column 'x1', found 2: x1, x1"):
        read_boxes(tmp_path / "b.parquet")


DEEP = {"lists": "[" * 100_000 + "]" * 100_000, "objects": '{"a":' * 100_000 + "1" + "}" * 100_000}
NESTED = {
    "native": '{"a": %s}', "native entry": '{"a": {"boxes": [], "x": %s}}', "jsonl": '{"image": "a", "boxes": [], "x": %s}',
    "coco": '{"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "x": %s}]}', "coco itself": "%s",
    "coco-results": '[{"image_id": 1, "bbox": [1, 2, 3, 4], "x": %s}]', "coco-results itself": "%s",
    "labelme": '{"shapes": [], "x": %s}', "labelme shapes": '{"shapes": %s}',
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("name", NESTED)
def test_deep_nesting_is_an_error(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "b.json").write_text(NESTED[name] % DEEP[kind])
    with pytest.raises(InputError) as error:
        read_boxes(tmp_path / "b.json", None, load(None, {"boxes_format": name.split(maxsplit=1)[0]}))
    assert error.value.reference == "boxes-format"


def test_deep_nesting_beside_results_is_an_error(tmp_path: Path) -> None:
    results = as_results(tmp_path)
    for content in ('{"images": [], "x": ' + DEEP["lists"] + "}", '{"images": [], "images": []}'):
        (tmp_path / "instances.json").write_text(content)
        with pytest.raises(InputError, match=re.escape(str(tmp_path / "instances.json"))):
            read_boxes(results, None, Settings(images_json=str(tmp_path / "instances.json")))
    twice = {"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}
    (tmp_path / "instances.json").write_text(json.dumps(twice))
    with pytest.raises(InputError, match="expected every id once"):
        read_boxes(results, None, Settings(images_json=str(tmp_path / "instances.json")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
def test_devices_and_pipes_beside_the_boxes_are_no_files(tmp_path: Path, folder: Path, roialign: Run) -> None:
    """Reading one of them would wait for ever."""
    labels, results, pipe = as_yolo(tmp_path), as_results(tmp_path), tmp_path / "pipe"
    os.mkfifo(pipe)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for path in (tmp_path / "socket", Path("/dev/zero")):
        for boxes_format in ("auto", "native", "csv", "voc"):
            with pytest.raises(InputError, match="a pipe, device or socket, not a regular file"):
                read_boxes(path, folder, load(None, {"boxes_format": boxes_format}))
    server.close()
    for options in ({"classes": str(pipe)}, {"images_json": str(pipe), "boxes_format": "coco-results"}):
        for path in (labels, results) if "classes" in options else (results,):
            with pytest.raises(InputError, match="a pipe, device or socket"):
                read_boxes(path, folder, load(None, options))
    with pytest.raises(BackboneError, match="a pipe, device or socket"):
        read_weights_file(pipe)
    os.mkfifo(tmp_path / "labels" / "x.txt")  # in a folder they are passed over, as folders are
    (tmp_path / "labels" / "y.txt").mkdir()
    assert len(read_boxes(labels, folder).boxes) == len(rows())
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("pipe", "pipe.yaml"):
        done = roialign("extract", folder, results, "-c", tmp_path / name, "-o", tmp_path / "f.h5")
        assert done.returncode == 2, done.stderr
        assert "error[config-missing]" in done.stderr


def npz(path: Path, **headers: tuple[tuple[int, ...], str, int]) -> Path:
    """Write arrays of zeros with a stated shape and type and a real number of bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, kind, size) in headers.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
                for begin in range(0, size, 1 << 24):
                    file.write(bytes(min(size - begin, 1 << 24)))
    return path


def test_npz_that_expands_too_far(tmp_path: Path) -> None:
    one = ((1, 4), "<f4", 16)
    path = tmp_path / "a.npz"
    assert read_boxes(npz(path, bbox=one, unused=((10**9,), "<f8", 0))).boxes.tolist() == [[0, 0, 0, 0]]
    for headers, expected in (
        ({"bbox": ((10**12, 4), "<f4", 0)}, "bbox: expected at most 268 MB, .* expands to 16000000 MB"),
        ({"bbox": ((1, 4), "<f4", 300 << 20)}, "bbox: .* expands to 315 MB"),
        ({"bbox": one, "scores": ((10**9,), "<f4", 0)}, "scores: .* expands to 4000 MB"),
        ({"bbox": one, "classes": ((1,), "<U100000000", 0)}, "classes: .* expands to 400 MB"),
    ):
        with pytest.raises(InputError, match=expected):
            read_boxes(npz(path, **headers))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_with_an_array_twice(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", bbox=((1, 4), "<f4", 16))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("bbox.npy", b"")
    with pytest.raises(InputError, match="bbox: expected one array, found several"):
        read_boxes(path)


def test_parquet_that_expands_too_far(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    count = 20_000_000
    zeros = arrow.array(np.zeros(count, np.float32))
    names = arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(count, np.int8)), ["a"])
    table = arrow.table({"image": names, "x1": zeros, "y1": zeros, "x2": zeros, "y2": zeros})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=count, write_statistics=False)
    with pytest.raises(InputError, match=r"at most 1000 times the .*, found 20000000 that expand to 320 MB"):
        read_boxes(tmp_path / "a.parquet")
    table = table.slice(0, 1).set_column(0, "image", arrow.array(["a" * 300_000_000]))
    parquet.write_table(table, tmp_path / "b.parquet", compression="zstd", write_statistics=False)
    with pytest.raises(InputError, match=r"at most 4096 bytes per row, found 1 rows that expand to \d+ MB"):
        read_boxes(tmp_path / "b.parquet")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", bbox=np.array([{"a": 1}], object))
    with pytest.raises(RoialignError, match="plain arrays"):
        read_boxes(tmp_path / "a.npz")


@pytest.mark.parametrize("line", ["dog inf 1 inf 3 4", "dog 0.5 1e308 2 1e308 3", "dog 1e308 2 1e308 3 0.5"])
def test_detections_that_are_not_finite_are_the_error(line: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text(f"cat 0.5 1 2 30 40\n{line}\n")
    with pytest.raises(RoialignError, match="expected"):
        read_boxes(tmp_path / "1.txt", folder, load(None, {"boxes_format": "detections"}))


SEEDS = {
    "voc": b"<annotation><filename>1.jpg</filename><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>"
    b"<ymax>2</ymax></bndbox></object></annotation>",
    "yolo": b"0 0.5 0.5 0.1 0.1\n1 0.25 0.5 0.1 0.1 0.9\n",
    "labelme": b'{"imagePath": "1.jpg", "shapes": [{"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "rectangle"}]}',
    "csv": b'image,x1,y1,x2,y2,label,score\n1.jpg,1,2,3,4,a,0.5\n"2.jpg",1,2,"3,5",4,b,1\n',
    "jsonl": b'{"image": "1.jpg", "boxes": [[1, 2, 3, 4]], "labels": ["a"]}\n',
    "coco-results": b'[{"image_id": 1, "category_id": 3, "bbox": [1.5, 2, 3, 4], "score": 0.5}]',
    "coco": json.dumps(coco()).encode(),
    "native": json.dumps(BOXES).encode(),
    "npz": b"",
    "dota": b"imagesource:x\n1 1 2 1 2 2 1 2 plane 0\n3 3 4 3 4 4 3 4 ship 1\n",
    "detections": b"cat 0.5 1 2 30 40\ndog 0.25 1 2 3 4\n",
    "cvat": b'<annotations><image name="1.jpg" width="128" height="64"><box label="a" xtl="1" ytl="2" xbr="3" ybr="4" '
    b'rotation="30"/><polygon label="b" points="1,2;3,4;5,0"/><ellipse cx="9" cy="9" rx="2" ry="1"/></image></annotations>',
    "label-studio": b'[{"data": {"image": "/data/upload/1/0123abcd-1.jpg"}, "annotations": [{"result": [{"original_width": 9, '
    b'"original_height": 9, "value": {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 9, "rectanglelabels": ["a"]}}]}]}]',
    "butd": b"1\t128\t64\t1\tAACAPwAAAEAAAEBAAACAQA==\tAAAA\n",
}


WORSE = [b"NaN", b"1e999", b"-", b"\x00", b"\xff", b"<", b'"', b"[", b"}", b",", b"9" * 30]


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """Change, cut out or insert some bytes of a good file."""
    content = bytearray(seed)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from("cdi"))
        if kind == "c" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "d":
            del content[at : at + draw(st.integers(1, 9))]
        else:
            content[at:at] = draw(st.sampled_from(WORSE))
    return bytes(content)


@pytest.mark.parametrize("name", SEEDS)
def test_anything_is_a_table_or_the_error(name: str, folder: Path, tmp_path: Path) -> None:
    """`make fuzz` tries hundreds of thousands."""
    if name == "npz":
        np.savez(tmp_path / "seed.npz", bbox=np.ones((2, 4), np.float32), scores=np.ones(2))
        SEEDS["npz"] = (tmp_path / "seed.npz").read_bytes()
    path, options = tmp_path / "1", load(None, {"boxes_format": name})

    @settings(
        max_examples=int(os.environ.get("ROIALIGN_FUZZ", "150")),
        suppress_health_check=list(HealthCheck),
        database=None,
        deadline=None,
    )
    @given(damaged(SEEDS[name]) | st.binary(max_size=200))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(RoialignError):
            table = read_boxes(path, folder, options)
            assert table.offset[-1] == len(table.boxes)

    check()
