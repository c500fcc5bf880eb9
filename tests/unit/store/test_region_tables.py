"""Test files of regions that are not boxes: what is written is read, damage is found, shards merge, old files stay readable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.feature_files import assert_same, vouch
from helpers.region_files import KINDS, TABLES, Content, region_content, write_content, write_image, write_shards

from roialign_cli import FeatureFile, collate
from roialign_cli.errors import InputError, OutputError
from roialign_cli.extraction.resume import revalidate
from roialign_cli.figures.sheet import draw_sheet
from roialign_cli.inputs.images import open_images
from roialign_cli.store.check import check
from roialign_cli.store.identity import plan_sha256, table_sha256
from roialign_cli.store.layout import create_file
from roialign_cli.store.merge import link, merge
from roialign_cli.store.schema import REGION_TABLES
from roialign_cli.store.writer import open_writer

CONTENTS: Mapping[str, Content] = {
    **{kind: region_content(kind) for kind in KINDS},
    "one bin": region_content("mask", bins=(1, 1)),
    "one point": region_content("points", points=1),
    "masks on two layers": region_content("mask", layers=("one", "two")),
    "points on two layers": region_content("points", layers=("one", "two")),
    **{f"{kind}, no regions": region_content(kind, (0, 0)) for kind in KINDS},
    **{f"{kind}, no images": region_content(kind, ()) for kind in KINDS},
}


def expected_tables(content: Content) -> dict[str, np.ndarray]:
    given = {"rotated": content.plan.table.rotated, "points": content.plan.table.points}
    return {name: values for name, values in given.items() if values is not None} | content.filled


def assert_holds(file: FeatureFile, content: Content) -> None:
    """Check all values of a file, all at once and by image."""
    tables = expected_tables(content)
    assert tables.keys() == TABLES[content.kind]
    assert set(REGION_TABLES) & file.extents.keys() == tables.keys()
    assert file.attributes["format_version"] == 2
    assert check(file).problems == []
    for name, values in tables.items():
        found = np.array(file.dataset(name))
        assert found.dtype == np.float32
        assert np.array_equal(found, values)
    for layer, values in content.layers.items():
        assert np.array_equal(np.array(file.features(layer)), values)
    assert len(file.done_names) == content.plan.images
    for i, (name, regions) in enumerate(file.items()):
        rows = content.plan.table.rows_of(i)
        assert regions.name == name
        assert np.array_equal(regions.boxes, content.plan.table.boxes[rows])
        for table in REGION_TABLES:
            found = getattr(regions, table)
            if table in tables:
                assert np.array_equal(found, tables[table][rows])
            else:
                assert found is None


@pytest.mark.parametrize("what", CONTENTS)
def test_what_is_written_is_read(what: str, tmp_path: Path) -> None:
    content = CONTENTS[what]
    with FeatureFile(write_content(tmp_path / "f.h5", content)) as file:
        assert_holds(file, content)


def test_other_programs_read_the_shapes_that_the_format_promises(tmp_path: Path) -> None:
    shapes = {
        "rotated": {"rotated": (6, 5), "area": (6,), "features": (6, 8, 2, 3)},
        "mask": {"coverage": (6, 2, 3), "area": (6,), "features": (6, 8, 2, 3)},
        "one bin": {"coverage": (6,), "area": (6,), "features": (6, 8, 1, 1)},
        "points": {"points": (6, 4, 3), "features": (6, 4, 8)},
        "one point": {"points": (6, 1, 3), "features": (6, 1, 8)},
    }
    for what, expected in shapes.items():
        with h5py.File(write_content(tmp_path / f"{what}.h5", CONTENTS[what])) as file:
            found = {name: item.shape for name, item in file.items() if name in ("features", *REGION_TABLES)}
            assert found == expected
            for name in expected:
                assert (file[name].dtype, file[name].chunks) == (np.float32, None)


@pytest.mark.parametrize("what", [*KINDS, "one bin", "one point"])
def test_every_flipped_bit_of_a_table_is_found(what: str, tmp_path: Path) -> None:
    path = write_content(tmp_path / "f.h5", CONTENTS[what], failed=[3])
    with FeatureFile(path) as file:
        assert check(file).problems == []
        extents, offset = file.extents, file.offset
        assert file.status.tolist() == [1, 1, 1, 2]
    whole = path.read_bytes()
    for name in TABLES[CONTENTS[what].kind]:
        place = extents[name]
        for at in range(place.shape[0] * place.row_bytes):
            damaged = bytearray(whole)
            damaged[place.offset + at] ^= 1 << at % 8
            path.write_bytes(damaged)
            image = int(np.searchsorted(offset, at // place.row_bytes, side="right")) - 1
            with FeatureFile(path) as file:
                problems = check(file).problems
            assert len(problems) == 1
            assert f'"{image}.png"' in problems[0]


def test_the_checksum_covers_the_tables_in_the_documented_order(tmp_path: Path) -> None:
    """Compute it as docs/reference/format.md has it."""
    import zlib

    content = CONTENTS["mask"]
    with h5py.File(write_content(tmp_path / "f.h5", content)) as file:
        crc = zlib.crc32(b"1 2")
        for name in ("name", "size", "error", "crc32"):
            value = file[f"images/{name}"][0]
            crc = zlib.crc32(value.rstrip(b"\0") if isinstance(value, bytes) else value.tobytes(), crc)
        for name in ("boxes", "labels", "coverage", "area"):
            values = file[name][:2]
            crc = zlib.crc32(b"\0".join(values.tolist()) if name == "labels" else values.tobytes(), crc)
        assert crc == file["images/table_crc32"][0]


@pytest.mark.parametrize(
    ("what", "name", "value", "expected"),
    [
        ("mask", "coverage", 1.5, "shares from 0 to 1"),
        ("mask", "coverage", -0.5, "shares from 0 to 1"),
        ("one bin", "coverage", np.nan, "shares from 0 to 1"),
        ("mask", "area", -1, "a finite number, at least 0"),
        ("rotated", "area", np.inf, "a finite number, at least 0"),
        ("rotated", "rotated", [1, 1, -1, 1, 1], "width and height at least 0"),
        ("points", "points", np.nan, "finite numbers"),
    ],
)
def test_a_value_that_cannot_be_is_found_though_every_checksum_matches(
    what: str, name: str, value: object, expected: str, tmp_path: Path
) -> None:
    path = write_content(tmp_path / "f.h5", CONTENTS[what])
    with h5py.File(path, "r+") as file:
        file[name][3] = value
        vouch(file, 2)
    with FeatureFile(path) as file:
        (problem,) = check(file).problems
    assert problem.startswith(f'{name}: "2.png", row 3: expected ')
    assert expected in problem


@pytest.mark.parametrize("what", [what for what, content in CONTENTS.items() if content.plan.images > 1])
@pytest.mark.parametrize("linked", [False, True])
def test_shards_become_one_file(what: str, linked: bool, tmp_path: Path) -> None:
    content = CONTENTS[what]
    shards = write_shards(tmp_path, content)
    with FeatureFile(shards) as file:
        assert len(file.parts) == 2
        assert_holds(file, content)
    result = (link if linked else merge)(shards, tmp_path / "merged.h5")
    assert result.finished
    with FeatureFile(tmp_path / "merged.h5") as file:
        assert_holds(file, content)
    with h5py.File(tmp_path / "merged.h5") as file:
        for name, values in expected_tables(content).items():
            assert np.array_equal(file[name], values)
        assert file.attrs["format_version"] == 2
    if not linked:
        assert_same(tmp_path / "merged.h5", write_content(tmp_path / "whole.h5", content))


def test_files_of_other_regions_do_not_join(tmp_path: Path) -> None:
    contents = [region_content("points", points=points) for points in (3, 4)]
    paths = [write_content(tmp_path / f"{i}.h5", content) for i, content in enumerate(contents)]
    with pytest.raises(OutputError) as error:
        FeatureFile(paths)
    assert error.value.reference == "shards-differ"


@pytest.mark.parametrize("what", [*KINDS, "one bin"])
def test_an_image_whose_tables_are_damaged_is_computed_again(what: str, tmp_path: Path) -> None:
    content = CONTENTS[what]
    (tmp_path / "im").mkdir()
    path = tmp_path / "f.h5"
    for name in TABLES[content.kind]:
        create_file(path, content.plan, content.layout)
        with open_writer(path) as writer:
            for image in (0, 1, 2):
                write_image(writer, content, image)
        with h5py.File(path, "r+") as file:
            file[name][3] = 0.25
        with pytest.warns(RuntimeWarning, match='do not match.*"2.png"'):
            done = revalidate(path, open_images(tmp_path / "im"), content.plan, content.layout, strict=False)
        assert done.tolist() == [True, True, False, False]
        with open_writer(path) as writer:
            for image in (2, 3):
                write_image(writer, content, image)
        with FeatureFile(path) as file:
            assert_holds(file, content)


def test_regions_identify_a_run() -> None:
    for kind in ("rotated", "points"):
        plan = region_content(kind).plan
        moved = dataclasses.replace(plan.table, **{kind: getattr(plan.table, kind) + np.float32(0.5)})
        without = dataclasses.replace(plan.table, **{kind: None})
        assert len({table_sha256(table) for table in (plan.table, moved, without)}) == 3
        plans = [dataclasses.replace(plan, table=table) for table in (plan.table, moved, without)]
        assert len({plan_sha256(one) for one in plans}) == 3


def test_version_1_is_written_and_read_for_boxes(tmp_path: Path) -> None:
    content = region_content("rotated")
    table = dataclasses.replace(content.plan.table, rotated=None)
    boxes = dataclasses.replace(content, plan=dataclasses.replace(content.plan, table=table), filled={})
    with FeatureFile(write_content(tmp_path / "f.h5", boxes)) as file:
        assert file.attributes["format_version"] == 1
        assert check(file).problems == []
        assert not set(REGION_TABLES) & file.extents.keys()
        assert file["0.png"].area is None


def test_version_3_is_refused(tmp_path: Path) -> None:
    path = write_content(tmp_path / "f.h5", CONTENTS["mask"])
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 3
    with pytest.raises(OutputError, match="expected format version 1 or 2, found 3") as error:
        FeatureFile(path)
    assert error.value.reference == "file-version"


@pytest.mark.parametrize("what", [*KINDS, "one bin"])
def test_datasets_and_data_frames_have_the_tables(what: str, tmp_path: Path) -> None:
    content = CONTENTS[what]
    path = write_content(tmp_path / "f.h5", content)
    with FeatureFile(path) as file:
        images, rows = file.as_dataset(), file.as_row_dataset()
        batch = collate([images[i] for i in range(len(images))])
        frame = file.to_pandas()
        for name, values in expected_tables(content).items():
            assert torch.equal(batch[name], torch.from_numpy(values))
            items = [rows[i][name] for i in range(len(rows))]
            assert torch.equal(torch.stack([torch.as_tensor(item) for item in items]), torch.from_numpy(values))
            assert isinstance(items[0], float if values.ndim == 1 else torch.Tensor)
            assert np.array_equal(np.stack(frame[name].to_list()).astype(np.float32), values)


@pytest.mark.parametrize("what", CONTENTS)
def test_the_contact_sheet_draws_them(what: str, tmp_path: Path) -> None:
    content = CONTENTS[what]
    with FeatureFile(write_content(tmp_path / "f.h5", content)) as file:
        if content.plan.rows:
            axes = draw_sheet(file, file.layers[0], None).axes
            (bins,) = {one.images[0].get_array().shape for one in axes if one.images}
            layer = content.layers[file.layers[0]]
            assert bins == ((1, layer.shape[1], 3) if content.kind == "points" else (*layer.shape[2:], 3))
        else:
            with pytest.raises(InputError, match="expected boxes of images that are done"):
                draw_sheet(file, None, None)


def test_inspect_and_verify_show_the_tables(tmp_path: Path, roialign: Run) -> None:
    for kind in KINDS:
        path = write_content(tmp_path / f"{kind}.h5", CONTENTS[kind])
        assert roialign("verify", path).returncode == 0
        whole, image = roialign("inspect", path), roialign("inspect", path, "--image", "2.png")
        assert (whole.returncode, image.returncode) == (0, 0)
        for name in TABLES[kind]:
            assert f"{name}  [6" in whole.stdout
            assert name in image.stdout
    content = CONTENTS["points"]
    first = ", ".join(f"{number:.7g}" for number in content.plan.table.points[2, 0].tolist())
    shown = roialign("inspect", tmp_path / "points.h5", "--image", "2.png", env={"COLUMNS": "400"})
    assert first in shown.stdout
    stated = roialign("inspect", tmp_path / "points.h5", "--image", "2.png", "--json")
    assert json.loads(stated.stdout)["points"] == content.plan.table.points[2:5].tolist()
