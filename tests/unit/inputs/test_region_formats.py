"""Read regions in every format that has them: shapes worked by hand, pycocotools as the oracle, and shapes that are wrong."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from roialign_cli.config import Region, Settings, load
from roialign_cli.errors import ConfigError, InputError, RoialignError
from roialign_cli.extraction.plan import make_plan
from roialign_cli.inputs.boxes import read_boxes
from roialign_cli.inputs.images import open_images
from roialign_cli.shapes import POLYGONS, RUNS, decode_counts, encode_bitmap
from roialign_cli.types import Plan

mask_api = pytest.importorskip("pycocotools.mask")

WIDTH, HEIGHT = 40, 30
TRIANGLE = [4.0, 5.0, 20.0, 5.0, 4.0, 25.0]
TURNED = [20.0, 15.0, 10.0, 4.0, 90.0]  # upright: 4 wide, 10 high
TURNED_BOX = [18.0, 10.0, 22.0, 20.0]
# Corners of TURNED: the object's top left is at the bottom left on the screen, since it is turned to the left.
TURNED_CORNERS = [18.0, 20.0, 18.0, 10.0, 22.0, 10.0, 22.0, 20.0]
KEYPOINTS = [[3.0, 4.0, 2.0], [10.0, 12.0, 1.0], [0.0, 0.0, 0.0]]
BITMAP = np.zeros((HEIGHT, WIDTH), np.bool_)
BITMAP[6:9, 3:8] = True
BITMAP[8, 10] = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "im").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save(tmp_path / "im" / "a.jpg")
    return tmp_path / "im"


def planned(path: Path, folder: Path, region: Region, **options: Any) -> Plan:
    chosen = Settings(region=region, **options)
    return make_plan(open_images(folder), read_boxes(path, folder, chosen), chosen)


def written(path: Path, content: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(path: Path, *annotations: dict[str, Any], size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    images = [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}]
    rows = [{"image_id": 1, "category_id": 1, "id": 7 + i, **one} for i, one in enumerate(annotations)]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "x"}]}
    return written(path / "coco.json", content)


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def labelme(path: Path, *shapes: dict[str, Any]) -> Path:
    content = {"imagePath": "a.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH,
               "shapes": [{"label": "x", **shape} for shape in shapes]}  # fmt: skip
    return written(path / "a.json", content)


def cvat(path: Path, shape: str) -> Path:
    image = f'<image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{shape}</image>'
    return written(path / "a.xml", f"<annotations>{image}</annotations>")


def label_studio(path: Path, value: dict[str, Any]) -> Path:
    result = [{"original_width": WIDTH, "original_height": HEIGHT, "value": value}]
    return written(path / "s.json", [{"data": {"image": "a.jpg"}, "annotations": [{"result": result}]}])


def pairs(numbers: list[float]) -> list[list[float]]:
    return [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]


def joined(numbers: list[float]) -> str:
    return ";".join(f"{x},{y}" for x, y in pairs(numbers))


def shares(numbers: list[float], unit: float = 1.0) -> list[float]:
    return [value * unit / (HEIGHT if i % 2 else WIDTH) for i, value in enumerate(numbers)]


def crop_counts() -> list[int]:
    """Return the run lengths of BITMAP[6:9, 3:11] along rows, as CVAT has them."""
    flat = BITMAP[6:9, 3:11].reshape(-1)
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def runs(compressed: bool = False) -> dict[str, Any]:
    if not compressed:
        return {"size": [HEIGHT, WIDTH], "counts": encode_bitmap(BITMAP).tolist()}
    found = mask_api.encode(np.asfortranarray(BITMAP.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


POLYGON_FILES: dict[str, Callable[[Path], Path]] = {
    "coco": lambda path: coco(path, {"bbox": [4, 5, 16, 20], "segmentation": [TRIANGLE]}),
    "coco without bbox": lambda path: coco(path, {"segmentation": [TRIANGLE]}),
    "native": lambda path: written(path / "n.json", {"a.jpg": {"boxes": [[4, 5, 20, 25]], "polygons": [[TRIANGLE]]}}),
    "native without boxes": lambda path: written(path / "n.json", {"a.jpg": {"polygons": [[TRIANGLE]]}}),
    "jsonl": lambda path: written(path / "n.jsonl", json.dumps({"image": "a.jpg", "polygons": [[TRIANGLE]]})),
    "labelme": lambda path: labelme(path, {"points": pairs(TRIANGLE), "shape_type": "polygon"}),
    "cvat": lambda path: cvat(path, f'<polygon label="x" points="{joined(TRIANGLE)}"/>'),
    "yolo": lambda path: written(path / "labels" / "a.txt", f"0 {' '.join(map(str, shares(TRIANGLE)))}").parent,
    "label-studio": lambda path: label_studio(path, {"points": pairs(shares(TRIANGLE, 100)), "polygonlabels": ["x"]}),
}
MASK_FILES: dict[str, Callable[[Path], Path]] = {
    "coco": lambda path: coco(path, {"bbox": [3, 6, 8, 3], "segmentation": runs()}),
    "coco without bbox": lambda path: coco(path, {"segmentation": runs()}),
    "coco compressed": lambda path: coco(path, {"segmentation": runs(compressed=True)}),
    "native": lambda path: written(path / "n.json", {"a.jpg": {"rle": [runs(compressed=True)]}}),
    "coco-results": lambda path: written(
        path / "r.json", [{"image_id": "a", "bbox": [3, 6, 8, 3], "score": 0.5, "segmentation": runs(compressed=True)}]
    ),
    "labelme": lambda path: labelme(
        path,
        {"points": [[3, 6], [11, 9]], "shape_type": "mask",
         "mask": base64.b64encode(png(BITMAP[6:9, 3:11])).decode()},
    ),
    "cvat": lambda path: cvat(
        path, f'<mask label="x" left="3" top="6" width="8" height="3" rle="{", ".join(map(str, crop_counts()))}"/>'
    ),
    "label-map": lambda path: label_map(path, BITMAP.astype(np.uint8) * 5),
}  # fmt: skip
ROTATED_FILES: dict[str, Callable[[Path], Path]] = {
    "coco": lambda path: coco(path, {"bbox": TURNED}),
    "coco corners": lambda path: coco(path, {"bbox": [18, 10, 4, 10], "segmentation": [TURNED_CORNERS]}),
    "native": lambda path: written(path / "n.json", {"a.jpg": {"rotated": [TURNED]}}),
    "dota": lambda path: dota(path, f"{' '.join(map(str, TURNED_CORNERS))} ship 0"),
    "yolo": lambda path: written(path / "labels" / "a.txt", f"0 {' '.join(map(str, shares(TURNED_CORNERS)))}").parent,
    "labelme": lambda path: labelme(path, {"points": pairs(TURNED_CORNERS), "shape_type": "rotation"}),
    "labelme polygon": lambda path: labelme(path, {"points": pairs(TURNED_CORNERS)}),
    "cvat": lambda path: cvat(path, '<box label="x" xtl="15" ytl="13" xbr="25" ybr="17" rotation="270"/>'),
    "csv": lambda path: written(path / "t.csv", "image,cx,cy,w,h,angle\na.jpg,20,15,10,4,90\n"),
    "text": lambda path: written(path / "labels" / "a.txt", "1 20 15 10 4 90").parent,
    "label-studio": lambda path: label_studio(
        path,
        {"x": 100 * 18 / WIDTH, "y": 100 * 20 / HEIGHT, "width": 100 * 10 / WIDTH, "height": 100 * 4 / HEIGHT,
         "rotation": 270, "rectanglelabels": ["x"]},
    ),
}  # fmt: skip
POINT_FILES: dict[str, Callable[[Path], Path]] = {
    "coco": lambda path: coco(path, {"bbox": [3, 4, 7, 8], "keypoints": [v for point in KEYPOINTS for v in point]}),
    "coco without bbox": lambda path: coco(path, {"keypoints": [v for point in KEYPOINTS for v in point]}),
    "native": lambda path: written(path / "n.json", {"a.jpg": {"points": [KEYPOINTS]}}),
    "csv": lambda path: written(
        path / "t.csv",
        "image,x1,y1,x2,y2,px1,py1,pv1,px2,py2,pv2,p_x_3,p_y_3,p_v_3\na.jpg,3,4,10,12,3,4,2,10,12,1,0,0,0\n",
    ),
}  # fmt: skip


def label_map(path: Path, values: np.ndarray) -> Path:
    (path / "maps").mkdir()
    (path / "maps" / "a.png").write_bytes(png(values))
    return path / "maps"


def dota(path: Path, line: str) -> Path:
    return written(path / "labels" / "a.txt", f"imagesource:GoogleEarth\ngsd:0.15\n{line}\n").parent


@pytest.mark.parametrize("name", POLYGON_FILES)
def test_polygons(name: str, folder: Path, tmp_path: Path) -> None:
    table = planned(POLYGON_FILES[name](tmp_path), folder, "mask").table
    assert table.shapes is not None
    assert table.shapes.kind.tolist() == [POLYGONS]
    np.testing.assert_allclose(table.shapes[0].parts, [pairs(TRIANGLE)], atol=1e-5)
    np.testing.assert_allclose(table.boxes, [[4, 5, 20, 25]], atol=1e-5)


@pytest.mark.parametrize("name", MASK_FILES)
def test_masks(name: str, folder: Path, tmp_path: Path) -> None:
    path = MASK_FILES[name](tmp_path)
    table = planned(path, folder, "mask").table
    assert table.shapes is not None
    assert table.shapes.kind.tolist() == [RUNS]
    assert table.shapes.sizes.tolist() == [[HEIGHT, WIDTH]]
    counts = table.shapes[0].counts
    flat = np.repeat(np.arange(len(counts)) % 2, counts)  # type: ignore[arg-type]
    assert np.array_equal(flat.reshape(WIDTH, HEIGHT).T, BITMAP)
    assert table.boxes.tolist() == [[3, 6, 11, 9]]
    assert read_boxes(path, folder).boxes.tolist() == [[3, 6, 11, 9]]  # without --region, too


@pytest.mark.parametrize("name", ROTATED_FILES)
def test_rotated_boxes(name: str, folder: Path, tmp_path: Path) -> None:
    options = {"columns": "label cx cy w h angle"} if name == "text" else {}
    path = ROTATED_FILES[name](tmp_path)
    table = planned(path, folder, "rotated", clip=True, **options).table
    assert table.rotated is not None
    assert table.shapes is None
    np.testing.assert_allclose(table.rotated[:, :4], [TURNED[:4]], atol=1e-4)
    assert table.rotated[0, 4] % 360 == pytest.approx(TURNED[4], abs=1e-4)
    np.testing.assert_allclose(table.boxes, [TURNED_BOX], atol=1e-4)
    plain = planned(path, folder, "box", **options).table
    np.testing.assert_allclose(plain.boxes, [TURNED_BOX], atol=1e-4)
    assert plain.shapes is None
    assert plain.rotated is None


@pytest.mark.parametrize("name", POINT_FILES)
def test_points(name: str, folder: Path, tmp_path: Path) -> None:
    table = planned(POINT_FILES[name](tmp_path), folder, "points").table
    assert table.points is not None
    assert table.points.tolist() == [KEYPOINTS]
    assert table.boxes.tolist() == [[3, 4, 10, 12]]


def test_points_of_labelme_cvat_and_label_studio(folder: Path, tmp_path: Path) -> None:
    files = {
        "labelme": labelme(tmp_path, {"points": [[3, 4], [10, 12]], "shape_type": "linestrip"}),
        "cvat": cvat(tmp_path, '<points label="x" points="3,4;10,12"/>'),
    }
    for path in files.values():
        points = planned(path, folder, "points").table.points
        assert points is not None
        assert points.tolist() == [[[3, 4, 2], [10, 12, 2]]]
    studio = label_studio(tmp_path, {"x": 25, "y": 50, "width": 0.4, "keypointlabels": ["x"]})
    points = planned(studio, folder, "points").table.points
    assert points is not None
    assert points.tolist() == [[[10, 15, 2]]]


def test_parquet_has_angles_and_points(folder: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    row = {"image": "a.jpg", "cx": 20.0, "cy": 15.0, "w": 10.0, "h": 4.0, "angle": 90.0, "px1": 3.0, "py1": 4.0}
    parquet.write_table(arrow.table({name: [value] for name, value in row.items()}), tmp_path / "t.parquet")
    rotated = planned(tmp_path / "t.parquet", folder, "rotated").table.rotated
    assert rotated is not None
    assert rotated.tolist() == [TURNED]
    points = planned(tmp_path / "t.parquet", folder, "points").table.points
    assert points is not None
    assert points.tolist() == [[[3, 4, 2]]]
    np.testing.assert_allclose(read_boxes(tmp_path / "t.parquet", folder).boxes, [TURNED_BOX], atol=1e-5)


def test_label_maps_have_a_region_per_value(folder: Path, tmp_path: Path) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint16)
    values[2:5, 1:4], values[10:20, 5:9], values[0, 39], values[12, 6] = 3, 1000, 3, 255
    path = label_map(tmp_path, values)
    table = planned(path, folder, "mask").table
    assert table.labels is not None
    assert table.shapes is not None
    assert table.labels.tolist() == [3, 255, 1000]
    for row, label in enumerate(table.labels.tolist()):
        assert np.array_equal(table.shapes[row].counts, encode_bitmap(values == label))
    assert table.boxes.tolist() == [[1, 0, 40, 5], [6, 12, 7, 13], [5, 10, 9, 20]]
    before = table.sha256
    values[29, 0] = 3
    (path / "a.png").write_bytes(png(values))
    assert read_boxes(path, folder, Settings(region="mask")).sha256 != before


def test_images_are_not_taken_for_label_maps(folder: Path, tmp_path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "im" / "a.png")
    (tmp_path / "im" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"expected a folder of VOC .* found images"):
        read_boxes(folder, folder)
    (tmp_path / "colour").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "colour" / "a.png")
    with pytest.raises(InputError, match="found images"):
        read_boxes(tmp_path / "colour", folder)
    with pytest.raises(InputError, match="one channel or with a palette, found mode RGB"):
        read_boxes(tmp_path / "colour", folder, Settings(boxes_format="label-map"))


@given(st.integers(1, 30), st.integers(1, 30), st.data())
@settings(max_examples=100, deadline=None)
def test_run_lengths_are_those_of_pycocotools(height: int, width: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    bitmap = np.array(bits, np.uint8).reshape(height, width)
    found = mask_api.encode(np.asfortranarray(bitmap))
    assert np.array_equal(decode_counts(found["counts"]), encode_bitmap(bitmap != 0))


@given(bits=st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH).filter(any))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_boxes_of_masks_are_those_of_pycocotools(bits: list[bool], tmp_path: Path) -> None:
    found = mask_api.encode(np.asfortranarray(np.array(bits, np.uint8).reshape(HEIGHT, WIDTH)))
    path = coco(tmp_path, {"segmentation": {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}})
    x, y, w, h = mask_api.toBbox(found).tolist()
    assert read_boxes(path).boxes.tolist() == [[x, y, x + w, y + h]]


@given(st.lists(st.lists(st.lists(st.floats(0, 500, width=32), min_size=6, max_size=12), max_size=3), max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_coco_polygons_follow_their_boxes(tmp_path: Path, found: list[list[list[float]]]) -> None:
    """Annotations of three images come in any order; shapes are sorted with their boxes, and the first stays the first."""
    polygons = [[ring[: len(ring) // 2 * 2] for ring in rings] for rings in found]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    annotations = [
        {"id": i, "image_id": (7 * i) % 3, "bbox": [i, 0, 1, 1], "segmentation": rings}
        for i, rings in enumerate(polygons)
    ]
    path = written(tmp_path / "c.json", {"images": images, "annotations": annotations})
    table = read_boxes(path, None, Settings(region="mask"))
    assert table.shapes is not None
    assert len(table.shapes) == len(polygons)
    for row, box in enumerate(table.boxes.tolist()):
        rings = polygons[int(box[0])]
        assert [np.ravel(part).tolist() for part in table.shapes[row].parts] == rings


BAD_COCO = {
    "odd": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "an x and a y per point, found 7 numbers"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "at least 3 points, found 4 numbers"),
    "an empty ring": ({"segmentation": [[]]}, "at least 3 points, found 0 numbers"),
    "too large": ({"segmentation": [[1, 2, 3, 4, 5, 1e300]]}, "expected finite numbers, found inf"),
    "negative run": ({"segmentation": {"size": [30, 40], "counts": [-1, 1201]}}, "from 0 to 1200, found -1"),
    "wrong sum": ({"segmentation": {"size": [30, 40], "counts": [3, 5]}}, "add up to 30 x 40 = 1200, found 8"),
    "cut off": ({"segmentation": {"size": [30, 40], "counts": "PPY"}}, "cut off or have characters out of range"),
    "huge run": ({"segmentation": {"size": [30, 40], "counts": [2**80]}}, "more than 64 bits"),
    "empty mask": ({"segmentation": {"size": [30, 40], "counts": [1200]}}, "a mask with a pixel in it, found an empty one"),
    "other size": ({"segmentation": {"size": [40, 30], "counts": [1, 1199]}}, "height x width, 30 x 40, found 40 x 30"),
    "no size": ({"segmentation": {"size": [0, 40], "counts": [1]}}, r"found size \[0, 40\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COCO)
def test_bad_masks_of_coco(name: str, folder: Path, tmp_path: Path) -> None:
    annotation, message = BAD_COCO[name]
    path = coco(tmp_path, {"bbox": [1, 1, 2, 2], "segmentation": [TRIANGLE]}, {"bbox": [1, 1, 2, 2], **annotation})
    with pytest.raises(InputError, match=message) as found:
        planned(path, folder, "mask")
    assert found.value.reference == "region-shape"
    text = str(found.value)
    assert str(path) in text
    assert '"a.jpg"' in text
    assert "annotations[1]" in text or "box 1 (id 8)" in text
    assert planned(path, folder, "box").rows == 2  # which is not read without --region


def test_nan_in_a_polygon(folder: Path, tmp_path: Path) -> None:
    path = coco(tmp_path, {"bbox": [1, 1, 2, 2], "segmentation": [[1, 2, 3, 4, 5, float("nan")]]})
    with pytest.raises(InputError, match=r'annotations\[0\] of "a.jpg": expected finite numbers, found .*NaN') as found:
        planned(path, folder, "mask")
    assert found.value.reference == "region-shape"


BAD_NATIVE = {
    "negative width": ("rotated", {"rotated": [[1, 2, -3, 4, 0]]}, "must not be negative, found -3 and 4"),
    "angle": ("rotated", {"rotated": [[1, 2, 3, 4, float("nan")]]}, "expected finite numbers, found .*NaN"),
    "four numbers": ("rotated", {"rotated": [[1, 2, 3, 4]]}, "cx, cy, width, height, angle, found 4 numbers"),
    "no polygons": ("mask", {"polygons": [[]]}, "expected polygons, found an empty list"),
    "odd": ("mask", {"polygons": [[[1, 2, 3, 4, 5, 6, 7]]]}, "an x and a y per point, found 7 numbers"),
    "different points": ("points", {"points": [[[1, 2]], [[1, 2], [3, 4]]]}, "1 points as in the first .* found 2"),
    "four of a point": ("points", {"points": [[[1, 2, 3, 4]]]}, "found 4 numbers"),
}


@pytest.mark.parametrize("name", BAD_NATIVE)
def test_bad_shapes_of_native_json(name: str, folder: Path, tmp_path: Path) -> None:
    region, entry, message = BAD_NATIVE[name]
    path = written(tmp_path / "n.json", {"a.jpg": entry})
    with pytest.raises(InputError, match=f'"a.jpg".*{message}') as found:
        planned(path, folder, region)  # type: ignore[arg-type]
    assert found.value.reference == "region-shape"


BAD_MASKS = {
    "cvat outside": (
        lambda path: cvat(path, '<mask left="39" top="0" width="2" height="1" rle="0, 2"/>'), "inside of its image",
    ),
    "cvat sum": (lambda path: cvat(path, '<mask left="0" top="0" width="2" height="1" rle="0, 3"/>'), "add up to 2 x 1 = 2"),
    "cvat text": (lambda path: cvat(path, '<mask left="0" top="0" width="2" height="1" rle="0, x"/>'), "separated by commas"),
    "cvat empty": (lambda path: cvat(path, '<mask left="0" top="0" width="2" height="1" rle="2"/>'), "found an empty one"),
    "labelme base64": (
        lambda path: labelme(path, {"points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "%"}), "PNG in base64",
    ),
    "labelme png": (
        lambda path: labelme(path, {"points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "AAAA"}), "expected a PNG",
    ),
    "brush": (lambda path: label_studio(path, {"format": "rle", "rle": [1, 2], "brushlabels": ["x"]}), "found a brush label"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks_of_other_formats(name: str, folder: Path, tmp_path: Path) -> None:
    make, message = BAD_MASKS[name]
    with pytest.raises(InputError, match=message) as found:
        planned(make(tmp_path), folder, "mask")
    assert found.value.reference == "region-shape"


def test_a_format_without_masks(folder: Path, tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.xml",
        "<annotation><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>",
    )
    with pytest.raises(InputError, match="expected a format with masks, found voc") as found:
        planned(path, folder, "mask")
    assert found.value.reference == "region-format"
    assert "coco" in found.value.hint
    with pytest.raises(ConfigError, match="region: expected box without a box file"):
        read_boxes(None, folder, Settings(region="mask", grid="2x2"))
    with pytest.raises(ConfigError, match="region_missing: expected error with region points"):
        load(None, {"region": "points", "region_missing": "box"})


def test_relative_units_have_no_angle(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "n.json", {"a.jpg": {"boxes": [[0, 0, 1, 1]], "rotated": [TURNED]}})
    with pytest.raises(InputError, match="expected a rotated box in pixels, found units xyxy-relative"):
        planned(path, folder, "rotated", box_units="xyxy-relative")


def test_images_that_are_missing_do_not_matter(folder: Path, tmp_path: Path) -> None:
    content = {name: {"polygons": [[shares(TRIANGLE)]], "boxes": [[0, 0, 0.5, 0.5]]} for name in ("a.jpg", "none.jpg")}
    plan = planned(written(tmp_path / "n.json", content), folder, "mask", box_units="xyxy-relative")
    assert list(plan.problems) == [1]
    assert plan.table.shapes is not None
    np.testing.assert_allclose(plan.table.shapes[0].parts, [pairs(TRIANGLE)], atol=1e-5)


def test_a_table_without_regions_is_read_as_before(folder: Path, tmp_path: Path) -> None:
    path = coco(tmp_path, {"bbox": [1, 2, 3, 4], "segmentation": "not read"})
    table = read_boxes(path, folder)
    assert table.boxes.tolist() == [[1, 2, 4, 6]]
    assert table.shapes is None


WORSE = [b"NaN", b"1e999", b"-", b"\x00", b"\xff", b"<", b'"', b"[", b"]", b"null", b",", b"9" * 30]
FUZZED = {
    **{f"mask, polygons of {name}": ("mask", make) for name, make in POLYGON_FILES.items()},
    **{f"mask, masks of {name}": ("mask", make) for name, make in MASK_FILES.items()},
    **{f"rotated, {name}": ("rotated", make) for name, make in ROTATED_FILES.items()},
    **{f"points, {name}": ("points", make) for name, make in POINT_FILES.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_files_are_regions_or_the_error(name: str, folder: Path, tmp_path: Path) -> None:
    """`make fuzz` tries hundreds of thousands."""
    region, make = FUZZED[name]
    options = {"columns": "label cx cy w h angle"} if name == "rotated, text" else {}
    path = make(tmp_path)
    file = next(path.iterdir()) if path.is_dir() else path
    seed = file.read_bytes()

    @settings(
        max_examples=int(os.environ.get("ROIALIGN_FUZZ", "40")),
        suppress_health_check=list(HealthCheck), database=None, deadline=None,
    )  # fmt: skip
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = bytearray(seed)
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, max(len(content) - 1, 0)))
            if data.draw(st.booleans()):
                del content[at : at + data.draw(st.integers(1, 9))]
            else:
                content[at:at] = data.draw(st.sampled_from(WORSE))
        file.write_bytes(content)
        with contextlib.suppress(RoialignError):
            plan = planned(path, folder, region, allow_outside=True, **options)  # type: ignore[arg-type]
            found = plan.table.shapes if region == "mask" else getattr(plan.table, region)
            assert len(found) == len(plan.table.boxes)

    check()
