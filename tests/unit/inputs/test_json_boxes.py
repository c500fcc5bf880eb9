"""Test box files in JSON: what is read, and the one clear error about everything else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sample_data import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roialign_cli.config import Settings
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes import read_boxes


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(**changes: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 7, "file_name": "b.jpg", "width": 9, "height": 9}, {"id": 3, "file_name": "a/ü.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 3, "bbox": [1, 2, 3, 4.5], "category_id": 2, "segmentation": [[1, 2, 3, 4, 5, 6]]},
            {"id": 2, "image_id": 7, "bbox": [0, 0, 9, 9], "category_id": 1, "iscrowd": 0, "area": 81},
            {"id": 3, "image_id": 3, "bbox": [10.5, 20, 0, 0], "category_id": 1},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dög"}],
    }
    return {**content, **changes}


def test_native_list_form(tmp_path: Path) -> None:
    table = read_boxes(
        written(tmp_path, {"b.jpg": [[1, 2, 3, 4], [5.5, 6, 7, 8]], "none.jpg": [], "a.jpg": [[0, 0, 1, 1]]})
    )
    assert table.names == ("b.jpg", "none.jpg", "a.jpg")
    assert table.offset.tolist() == [0, 2, 2, 3]
    assert table.boxes.tolist() == [[1, 2, 3, 4], [5.5, 6, 7, 8], [0, 0, 1, 1]]
    assert table.labels is table.scores is table.ids is None


def test_native_object_form(tmp_path: Path) -> None:
    content = {
        "a": {"boxes": [[1, 2, 3, 4], [1, 2, 3, 5]], "labels": ["x", "y"], "scores": [0.5, 1], "ids": [8, 9]},
        "b": {"boxes": []},
        "c": {"boxes": [[1, 2, 3, 4]], "labels": ["z"], "scores": [0], "ids": [1], "comment": "is ignored"},
    }
    table = read_boxes(written(tmp_path, content))
    assert table.labels.tolist() == ["x", "y", "z"]
    assert table.scores.tolist() == [0.5, 1, 0]
    assert table.ids.tolist() == [8, 9, 1]
    assert table.ids.dtype == np.int64


def test_coco_by_hand(tmp_path: Path) -> None:
    table = read_boxes(written(tmp_path, coco()))
    assert table.names == ("b.jpg", "a/ü.jpg")
    assert table.offset.tolist() == [0, 1, 3]
    assert table.boxes.tolist() == [[0, 0, 9, 9], [1, 2, 4, 6.5], [10.5, 20, 10.5, 20]]
    assert table.labels.tolist() == ["cat", "dög", "cat"]
    assert table.ids.tolist() == [2, 1, 3]
    assert table.scores is None


def test_values_that_some_boxes_lack_are_noted(tmp_path: Path) -> None:
    content = coco()
    for key, value in (("score", 0.5), ("id", None), ("category_id", None)):
        content["annotations"][1][key] = value
    table = read_boxes(written(tmp_path, content))
    assert (table.labels, table.scores, table.ids) == (None, None, None)
    assert table.notes == (
        "labels are not read: 1 of 3 boxes have none", "scores are not read: 2 of 3 boxes have none",
        "ids are not read: 1 of 3 boxes have none",
    )  # fmt: skip
    assert read_boxes(written(tmp_path, coco())).notes == ()


def test_relative_boxes_are_finite_in_pixels(tmp_path: Path) -> None:
    path = written(tmp_path, {"a.jpg": [[0, 0, 0.5, 0.5], [0, 0, 1e37, 1]]})
    with pytest.raises(InputError, match=r"a\.jpg.*expected numbers of at most 1\.6e\+29"):
        read_boxes(path, settings=Settings(box_units="xyxy-relative"))


def test_the_sample_data_says_the_same_in_both_formats() -> None:
    native, instances = (read_boxes(ROOT / "sample_data" / name) for name in ("boxes.json", "boxes_coco.json"))
    assert native.names == instances.names
    assert np.array_equal(native.boxes, instances.boxes)
    assert np.array_equal(native.labels, instances.labels)
    assert native.sha256 != instances.sha256


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected JSON, found"),
        ('{"a": [[1, 2, 3,', "expected JSON, found"),
        ("[]", "expected a list of COCO results, found an empty one"),
        ('{"a": [[1, 2, NaN, 4]]}', '"a", box 0: expected four finite numbers, found [1.0, 2.0, nan, 4.0]'),
        ('{"a": [[1, 2, 3, 4], [1, 2, 3, Infinity]]}', '"a", box 1: expected four finite numbers'),
        ('{"a": [[1, 2, 3, 1e39]]}', '"a", box 0: expected four finite numbers'),
        ('{"a": [[134, 84, 78, 64]]}', '"a", box 0: x2 must be greater than x1, got x1=134.0, x2=78.0'),
        ('{"z": [], "a": [[1, 84, 78, 64]]}', '"a", box 0: y2 must be greater than y1, got y1=84.0, y2=64.0'),
        ('{"a": [[1, 2, 3]]}', '"a": box 0: expected array of length 4'),
        ('{"a": [[1, 2, 3, "4"]]}', "\"a\", box 0: expected four numbers, found '4'"),
        ('{"a": [[1, 2, 3, null]]}', '"a": box 0: expected'),
        ('{"a": 5}', '"a": expected'),
        ('{"a": {"labels": [1]}}', '"a": expected boxes, polygons, rle, rotated or points, found none'),
        ('{"a": {"boxes": [[1, 2, 3, 4]], "labels": []}}', '"a": expected 1 labels, one per box, found 0'),
        ('{"a": {"boxes": [[1, 2, 3, 4]], "labels": [1]}, "b": [[1, 2, 3, 4]]}', '"b": expected labels as other'),
        ('{"../a.jpg": []}', "inside the image folder"),
        ('{"/etc/passwd": []}', "inside the image folder"),
        ('{"": []}', "inside the image folder"),
        (coco(images=[{"id": 1}]), "images[0]"),
        (coco(annotations=[{"image_id": 4, "bbox": [1, 2, 3, 4]}]), "annotations[0]: expected the id of an image"),
        (
            coco(annotations=[{"image_id": 3, "bbox": [1, 2, 3]}]),
            'annotations[0] of "a/ü.jpg": bbox: expected four numbers, or five with an angle, found 3',
        ),
        (coco(annotations=[{"image_id": 3, "bbox": [1, 2, -3, 4]}]), "width must not be negative, got width=-3"),
        (
            coco(annotations=[{"image_id": 3, "bbox": [1, 2, 3, 4], "category_id": 99}]),
            "category_id listed in categories",
        ),
        (coco(images=[{"id": 3, "file_name": "a"}, {"id": 3, "file_name": "b"}]), "once, found one twice"),
        ('{"a": [[1, 2, 3, 4]], "b": [], "a": [[5, 6, 7, 8]]}', '"a": expected each key once, found it twice'),
        ('{"a":[],"a":[]}', '"a": expected each key once'),
        ('{"a":[[1,2,3,4]],"b":[],"\\u0062":[]}', '"b": expected each key once'),
        ('{ "a,\\": [" : [ ] , "b":[],"b"\n:\t[ ] } ', '"b": expected each key once'),
        ('{"a": [[1, 2, NaN, 4]], "a": [[1, 2, 3, 4]]}', '"a": expected each key once'),
        ('{"a": {"boxes": [[1, 2, 3, 4]], "boxes": []}}', '"a": "boxes": expected each key once'),
        ('{"a": {"boxes": [[1, 2, 3, 4]], "\\u0062oxes": []}}', '"a": "boxes": expected each key once'),
        ('{"a": {"boxes": [], "labels": [], "ids": [], "labels": []}}', '"a": "labels": expected each key once'),
        (json.dumps(coco())[:-1] + ', "annotations": []}', '"annotations": expected each key once'),
        ('{"\\ud800": []}', "expected names and labels of Unicode text, found '\\ud800'"),
        ('{"a": {"boxes": [[1, 2, 3, 4]], "labels": ["\\ud800"]}}', "of Unicode text, found"),
        ('{"a": {"boxes": [[1, 2, 3, 4]], "ids": ["\\udc80"]}}', "of Unicode text, found"),
        (coco(images=[{"id": 3, "file_name": "\ud800"}]), "of Unicode text, found"),
        (coco(categories=[{"id": 1, "name": "\ud800"}, {"id": 2, "name": "b"}]), "of Unicode text, found"),
        (coco(annotations=[{"id": "\udfff", "image_id": 3, "bbox": [1, 2, 3, 4]}]), "of Unicode text, found"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, content: Any, expected: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_boxes(path)
    assert str(path) in error.value.message
    assert expected in error.value.message


def test_keys_that_only_look_alike(tmp_path: Path) -> None:
    content = {
        "a": [], '"a"': {"boxes": [[1, 2, 3, 4]], "note": {"boxes": [], "labels": []}, "labels": ["boxes"]},
        'a": [': {"boxes": [[1, 2, 3, 5]], "labels": ['"labels": "labels"']}, "A": [], "{a:": [], "\ta": [],
    }  # fmt: skip
    for text in (json.dumps(content), json.dumps(content, indent=3), json.dumps(content, separators=(",", ":"))):
        table = read_boxes(written(tmp_path, text))
        assert table.names == tuple(content)
        assert table.boxes.tolist() == [[1, 2, 3, 4], [1, 2, 3, 5]]


unlike = st.lists(st.tuples(st.text('ab"\\ {},:', max_size=3), st.lists(st.just([1, 2, 3, 4]), max_size=2)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=unlike, space=st.sampled_from(["", " ", "\n\t "]))
def test_every_key_that_stands_twice_is_found(tmp_path: Path, pairs: list[tuple[str, Any]], space: str) -> None:
    text = f"{space},{space}".join(f"{json.dumps(key)}{space}:{space}{json.dumps(value)}" for key, value in pairs)
    path = written(tmp_path, f"{space}{{{space}{text}{space}}}{space}")
    found = ""
    try:
        read_boxes(path, settings=Settings(boxes_format="native"))
    except InputError as error:
        found = error.message
    assert ("expected each key once" in found) == (len({key for key, _ in pairs}) < len(pairs))


def test_xywh_by_mistake_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--box-units xywh"):
        read_boxes(written(tmp_path, {"a": [[134, 84, 78, 64]]}))


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected COCO instances with 'images'"):
        read_boxes(written(tmp_path, {"a": [[1, 2, 3, 4]]}), settings=Settings(boxes_format="coco"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
boxes_like = st.lists(st.lists(st.floats(-50, 50) | st.integers(-9, 9), min_size=3, max_size=5), max_size=3)
files = (
    st.dictionaries(st.text(max_size=4), boxes_like | json_values, max_size=4)
    | st.fixed_dictionaries({"images": json_values, "annotations": json_values})
    | st.builds(
        lambda images, annotations: {"images": images, "annotations": annotations},
        st.lists(st.fixed_dictionaries({"id": st.integers(0, 3), "file_name": st.text(max_size=3)}), max_size=3),
        st.lists(st.fixed_dictionaries({"image_id": st.integers(0, 3), "bbox": boxes_like | json_values}), max_size=3),
    )
    | json_values
)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files.map(json.dumps).map(str.encode) | st.binary(max_size=40))
def test_anything_is_a_table_or_the_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.json"
    path.write_bytes(content)
    try:
        table = read_boxes(path)
    except InputError:
        return
    assert np.isfinite(table.boxes).all()
    assert (table.boxes[:, 2:] >= table.boxes[:, :2]).all()
    assert table.offset[-1] == len(table.boxes)
    assert len(table.offset) == len(table.names) + 1


def test_stated_sizes_are_read_if_all_are_stated(tmp_path: Path) -> None:
    assert read_boxes(written(tmp_path, coco())).sizes is None
    images = [
        {"id": 7, "file_name": "b", "width": 9, "height": 8},
        {"id": 3, "file_name": "a", "width": 5, "height": 6},
    ]
    assert read_boxes(written(tmp_path, coco(images=images))).sizes.tolist() == [[8, 9], [6, 5]]


@pytest.mark.parametrize("part_bytes", [1, 7, 60, 300])
def test_annotations_are_cut_into_parts_at_any_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    """Parts may also end where text looks like the end of an object."""
    content = coco()
    content["annotations"] = [
        {
            "id": f"}}, {{ [{i}",
            "note": {"a": {"b": "}],"}, "c": [{}, {}]},
            "image_id": (3, 7)[i % 2],
            "bbox": [i, 0, 1, 2],
        }
        for i in range(20)
    ]
    whole = read_boxes(written(tmp_path, content))
    monkeypatch.setattr("roialign_cli.inputs.boxes.formats.coco.PART_BYTES", part_bytes)
    parts = read_boxes(written(tmp_path, content))
    for name in ("boxes", "offset", "ids"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name))
    assert len(parts.boxes) == 20
    content["annotations"][17]["bbox"] = "here"
    with pytest.raises(InputError, match=r"annotations\[17\]"):
        read_boxes(written(tmp_path, content))


def test_text_full_of_ends_of_objects_is_read_once(tmp_path: Path) -> None:
    """Reading it again for each of them took minutes for some megabytes."""
    content = coco()
    content["annotations"][0]["note"] = "}," * 1_500_000
    started = time.monotonic()
    assert len(read_boxes(written(tmp_path, content)).boxes) == 3
    assert time.monotonic() - started < 10


MILLIONS = """
import json, re, sys, time
from pathlib import Path
from roialign_cli.extraction.batches import make_batches
from roialign_cli.config import Settings
from roialign_cli.extraction.plan import make_plan
from roialign_cli.inputs.images import open_images
from roialign_cli.inputs.boxes import read_boxes
started = time.perf_counter()
plan = make_plan(open_images(sys.argv[2]), read_boxes(Path(sys.argv[1])), Settings())
batches = sum(1 for _ in make_batches(plan, 0))
peak = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
print(json.dumps([plan.images, plan.rows, len(plan.problems), batches, time.perf_counter() - started, peak]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_millions_of_boxes_are_planned_in_little_memory(tmp_path: Path) -> None:
    images, boxes = 200_000, 2_000_000
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    path = tmp_path / "instances.json"
    with path.open("w") as file:
        file.write('{"images":[')
        for i in range(images):
            (tmp_path / "images" / f"{i:06}.jpg").touch()
            comma = "," if i else ""
            file.write(f'{comma}{{"id":{i},"file_name":"{i:06}.jpg","width":640,"height":480}}')
        file.write('],"annotations":[{"image_id":0,"bbox":[1,2,3,4]}')
        for owner in rng.integers(0, images, boxes - 1).tolist():
            file.write(f',{{"image_id":{owner},"bbox":[{owner % 500},7,90,80]}}')
        file.write("]}")
    command = [sys.executable, "-c", MILLIONS, path, tmp_path / "images"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *counts, _, peak = json.loads(done.stdout)
    assert counts[:3] == [images, boxes, 0]
    assert peak < 300
