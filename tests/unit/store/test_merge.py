"""Test that merging never harms its inputs and never takes old rows for new ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.commands import Run
from helpers.feature_files import assert_same
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check
from roialign_cli.store.merge import link, merge


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Make two shards of four images."""
    return make_shards(tmp_path, seed=0)


def make_shards(folder: Path, seed: int, **more: object) -> list[Path]:
    (folder / "im").mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "im" / f"{i}.png")
    (folder / "boxes.json").write_text(json.dumps({f"{i}.png": [[0, 0, 9 + i, 9]] for i in range(4)}))
    settings = {"config_name": "quickstart", "output_size": 2, "overwrite": True, **more}
    for number in (1, 2):
        extract(folder / "im", folder / "boxes.json", folder / "f.h5", shard=f"{number}/2", **settings)
    return sorted(folder.glob("f-*.h5"))


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("spelling", ["plain", "through a folder", "a link", "a hard link"])
def test_an_output_that_is_an_input_is_refused(shards: list[Path], linked: bool, spelling: str) -> None:
    output = shards[0]
    if spelling == "through a folder":
        output = output.parent / "im" / ".." / output.name
    elif spelling == "a link":
        output = output.with_name("link.h5")
        output.symlink_to(shards[0])
    elif spelling == "a hard link":
        output = output.with_name("link.h5")
        output.hardlink_to(shards[0])
    before = [path.read_bytes() for path in shards]
    with pytest.raises(OutputError, match="none of the inputs") as error:
        (link if linked else merge)(shards, output, overwrite=True)
    assert error.value.reference == "output-is-input"
    assert [path.read_bytes() for path in shards] == before


def test_the_command_refuses_it_too(shards: list[Path], roialign: Run) -> None:
    for more in ([], ["--link"]):
        done = roialign("merge", *shards, "-o", shards[0], "--overwrite", *more)
        assert done.returncode == 6
        assert "error[output-is-input]" in done.stderr
    with FeatureFile(shards) as file:
        assert check(file).problems == []


def test_shards_made_anew_are_merged_anew(shards: list[Path], tmp_path: Path) -> None:
    merged = tmp_path / "merged.h5"
    assert merge(shards, merged).finished
    make_shards(tmp_path, seed=1)  # the same names and boxes, other pixels
    assert merge(shards, merged).finished
    with FeatureFile(merged) as file, FeatureFile(shards) as parts:
        assert check(file).problems == []
        for name in parts:
            assert np.array_equal(file[name].features, parts[name].features)


def test_one_shard_made_anew_is_copied_alone(shards: list[Path], tmp_path: Path) -> None:
    kept = tmp_path / "kept.h5"
    merged = tmp_path / "merged.h5"
    shutil.copy(shards[0], kept)
    merge(shards, merged)
    make_shards(tmp_path, seed=1)
    shutil.copy(kept, shards[0])
    sizes: list[int] = []
    assert merge(shards, merged, on_bytes=lambda copied, _: sizes.append(copied)).finished
    assert len(sizes) == 1
    assert_same(merged, tmp_path / "f-*-of-0002.h5")


def test_a_merge_that_stops_leaves_no_old_rows_marked_done(shards: list[Path], tmp_path: Path) -> None:
    merged = tmp_path / "merged.h5"
    merge(shards, merged)
    make_shards(tmp_path, seed=1)
    assert not merge(shards, merged, should_stop=lambda: True).finished
    with FeatureFile(merged) as file:
        report = check(file)
        assert report.problems == []
        assert report.pending == 2  # of the first shard; the second has its old rows, which are right of themselves
    assert merge(shards, merged).finished
    assert_same(merged, tmp_path / "f-*-of-0002.h5")


def test_bytes_that_are_not_utf8_are_read_and_copied(tmp_path: Path, roialign: Run) -> None:
    """Labels of another writer are copied byte for byte; a note is shown with replacement characters."""
    path = tmp_path / "f.h5"
    boxes, rows = {"a.png": [[0, 0, 9, 9]], "b.png": [[0, 0, 9, 9]]}, np.ones((1, 4), np.float32)
    FeatureFile.create(
        path, boxes, {"a.png": rows, "b.png": rows * np.nan}, sizes={"a.png": (9, 9), "b.png": (9, 9)},
        labels={"a.png": ["cat"], "b.png": ["dog"]},
    ).close()  # fmt: skip
    with h5py.File(path, "r+") as file:
        file["labels"][0] = b"\xff\xfe"
        file["images/error"][1] = b"4 \xff"
    with FeatureFile(path) as file:
        assert file["a.png"].labels.tolist() == ["\udcff\udcfe"]
        assert file.as_row_dataset()[0]["label"] == "\udcff\udcfe"
        assert file.notes == {"b.png": "4 \ufffd"}
    assert roialign("inspect", path).returncode == 0
    assert roialign("show", "--from", path, "-o", tmp_path / "sheet.png").returncode == 0
    assert roialign("merge", path, "-o", tmp_path / "merged.h5").returncode == 0
    with h5py.File(tmp_path / "merged.h5") as file:
        assert file["labels"][:].tolist() == [b"\xff\xfe", b"dog"]


def test_names_with_markup_are_printed_as_they_are(tmp_path: Path, roialign: Run) -> None:
    path = tmp_path / "f[bold]o.h5"
    FeatureFile.create(
        path, {"[red]a[/b].png": [[0, 0, 9, 9]]}, {"[red]a[/b].png": np.full((1, 4), np.nan, np.float32)},
        sizes={"[red]a[/b].png": (9, 9)},
    ).close()  # fmt: skip
    for command in (["inspect", path], ["verify", path], ["merge", path, "-o", tmp_path / "[red]m.h5"]):
        done = roialign(*command)
        assert done.returncode == 0, done.stderr
        assert command[-1].name in done.stdout
    assert "4 not finite (1 boxes)" in roialign("inspect", path).stdout
    assert "[red]a[/b].png: 9 x 9" in roialign("inspect", path, "--image", "[red]a[/b].png").stdout
    facts = roialign("inspect", path, "--image", "[red]a[/b].png", "--json").stdout
    assert "NaN" not in facts
    assert json.loads(facts)["norms"] == {"features": [None]}


def test_files_of_several_runs_are_distinguished(tmp_path: Path, shards: list[Path]) -> None:
    """A merged file is not the output of any single run, so no run continues it."""
    paths = []
    for i in (0, 1):
        boxes = tmp_path / f"{i}.json"
        boxes.write_text(json.dumps({f"{i}.png": [[0, 0, 9, 9]]}))
        paths.append(tmp_path / f"run{i}.h5")
        extract(tmp_path / "im", boxes, paths[-1], config_name="quickstart", output_size=2)
    merge(paths, tmp_path / "both.h5")
    with FeatureFile(tmp_path / "both.h5") as both, FeatureFile(paths[0]) as one:
        assert both.names == ["0.png", "1.png"]
        assert check(both).problems == []
        for name in ("table_sha256", "boxes_sha256"):
            assert both.attributes[name] != one.attributes[name]
            assert len(both.attributes[name]) == 64


def test_links_stay_in_their_folder(shards: list[Path], tmp_path: Path, roialign: Run) -> None:
    (tmp_path / "inside").mkdir()
    link(shards, tmp_path / "near.h5")
    assert roialign("verify", tmp_path / "near.h5").returncode == 0
    with pytest.warns(RuntimeWarning, match="links files outside of its own folder"):
        link(shards, tmp_path / "inside" / "far.h5")
    for command in (["verify"], ["inspect"], ["export", "--to", "h5", "-o", tmp_path / "e.h5"]):
        refused = roialign(*command, tmp_path / "inside" / "far.h5")
        assert refused.returncode == 6
        assert "error[file-links]" in refused.stderr
        assert "--allow-links" in refused.stderr
        assert roialign(*command, tmp_path / "inside" / "far.h5", "--allow-links").returncode == 0
    with FeatureFile(tmp_path / "inside" / "far.h5", allow_links=True) as file:
        assert len(file.as_dataset()) == 4
