"""Test that an export writes and removes only itself, whatever the file holds and whatever stands in its way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import OutputError
from roialign_cli.export import FOLDERS, FORMS, export
from roialign_cli.export.folder import MARKER


def rename_first(path: Path, name: bytes) -> None:
    with h5py.File(path, "r+") as file:
        names = file["images/name"][()]
        names[0] = name
        file["images/name"][...] = names


@pytest.mark.parametrize("name", [b"/tmp/x.jpg", b"../x.jpg", b"a/../../x", b"..\\x.jpg", b""])
def test_names_that_lead_out_of_the_folder(sample_features: Path, name: bytes) -> None:
    rename_first(sample_features, name)
    with pytest.raises(OutputError, match="images/name: expected names of images relative to their folder") as error:
        FeatureFile(sample_features)
    assert error.value.reference == "file-structure"
    assert list(sample_features.parent.iterdir()) == [sample_features]


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_no_export_made_is_left_alone(sample_features: Path, form: str, roialign: Run) -> None:
    folder = sample_features.parent / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    done = roialign("export", sample_features, "--to", form, "-o", folder, "--overwrite")
    assert done.returncode == 6
    assert "error[output-in-the-way]" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_folder_of_empty_folders_is_left_alone(sample_features: Path) -> None:
    (sample_features.parent / "out" / "empty").mkdir(parents=True)
    with FeatureFile(sample_features) as file, pytest.raises(OutputError, match="a folder that no export made"):
        export(file, sample_features.parent / "out", "npz", overwrite=True)
    assert (sample_features.parent / "out" / "empty").is_dir()


@pytest.mark.parametrize("form", FOLDERS)
def test_a_file_added_to_an_export_is_left_alone(sample_features: Path, form: str) -> None:
    folder = sample_features.parent / "out"
    with FeatureFile(sample_features) as file:
        export(file, folder, form)
        assert (folder / MARKER).is_file()
        export(file, folder, form, overwrite=True)  # nothing in it but the export
        (folder / "thesis.npz").write_text("years of work")
        with pytest.raises(OutputError, match=r"holds thesis.npz, which no export made"):
            export(file, folder, form, overwrite=True)
    assert (folder / "thesis.npz").read_text() == "years of work"


@pytest.mark.parametrize("form", FORMS)
def test_the_source_is_never_removed(sample_features: Path, form: str) -> None:
    before = sample_features.read_bytes()
    with FeatureFile(sample_features) as file:
        for output in (sample_features, sample_features.parent):
            with pytest.raises(OutputError) as error:
                export(file, output, form, overwrite=True)
            assert error.value.reference == "output-is-input"
    inside = sample_features.parent / "out"
    with FeatureFile(sample_features) as file:
        export(file, inside, "npz")
    shifted = inside / "f.h5"
    sample_features.rename(shifted)
    with FeatureFile(shifted) as file, pytest.raises(OutputError):
        export(file, inside, form, overwrite=True)
    assert shifted.read_bytes() == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["folder", "link", "link to a folder", "pipe"])
def test_what_stands_where_it_is_written_is_left_alone(sample_features: Path, form: str, what: str) -> None:
    partial, other = sample_features.parent / "out.partial", sample_features.parent / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    if what == "folder":
        other.rename(partial)
    elif what == "pipe":
        os.mkfifo(partial)
    else:
        partial.symlink_to(other if what == "link to a folder" else other / "thesis.txt")
    with FeatureFile(sample_features) as file, pytest.raises(OutputError) as error:
        export(file, sample_features.parent / "out", form)
    assert error.value.reference == "output-in-the-way"
    assert not (sample_features.parent / "out").exists()
    kept = partial if what == "folder" else other
    assert (kept / "thesis.txt").read_text() == "years of work"


def test_what_an_ended_export_left_is_removed(sample_features: Path) -> None:
    """A killed process leaves such a folder."""
    partial = sample_features.parent / "out.partial"
    with FeatureFile(sample_features) as file:
        export(file, partial, "npz")
        assert export(file, sample_features.parent / "out", "npz").images == 5
    assert not partial.exists()


@pytest.mark.parametrize("what", ["link", "folder"])
def test_the_same_holds_for_extract(sample_features: Path, what: str) -> None:
    partial, other = sample_features.parent / "new.h5.partial", sample_features.parent / "thesis.txt"
    other.write_text("years of work")
    partial.symlink_to(other) if what == "link" else partial.mkdir()
    with pytest.raises(OutputError) as error:
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, sample_features.parent / "new.h5", config_name="quickstart", output_size=2)
    assert error.value.reference == "output-in-the-way"
    assert other.read_text() == "years of work"


def test_outputs_that_are_no_files(sample_features: Path, roialign: Run) -> None:
    os.mkfifo(sample_features.parent / "pipe")
    for output in (sample_features.parent / "pipe", sample_features.parent / ("x" * 250 + ".h5")):
        for command in (
            ["extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart"],
            ["merge", sample_features],
            ["export", sample_features, "--to", "h5", "--overwrite"],
        ):
            done = roialign(*command, "-o", output)
            assert done.returncode == 6, (command, done.stderr)
            assert "error[output-" in done.stderr


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    name = os.fsdecode(b"\xff\xfe.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "im" / name)
    (tmp_path / "boxes.json").write_text(json.dumps({"x.png": [[0, 0, 9, 9]]}))
    extract(tmp_path / "im", None, tmp_path / "f.h5", config_name="quickstart", output_size=2, grid="1x1")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.names == [name]
        for form in FORMS:
            assert export(file, tmp_path / f"out-{form}", form).images == 1
        rows = np.array(file[name].features)
    assert np.array_equal(np.load(tmp_path / "out-npz" / f"{name}.npz")["x"], rows)
    with h5py.File(tmp_path / "out-h5-groups") as groups:
        assert np.array_equal(groups[b"\xff\xfe.png"]["features"], rows)
    assert (tmp_path / "out-tsv").read_bytes().startswith(b"\xff\xfe.png\t")
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "out-parquet")["image"].to_pylist() == [b"\xff\xfe.png"]
    import lmdb

    with lmdb.open(str(tmp_path / "out-lmdb"), readonly=True) as environment, environment.begin() as transaction:
        assert transaction.get(b"\xff\xfe.png")
        assert json.loads(transaction.get(b"keys")) == [name]


def test_two_images_that_would_share_a_file(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "im" / "a.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": [[0, 0, 9, 9]], "./a.png": [[0, 0, 20, 20]]}))
    extract(tmp_path / "im", tmp_path / "boxes.json", tmp_path / "f.h5", config_name="quickstart", output_size=2)
    with FeatureFile(tmp_path / "f.h5") as file:
        for form in ("npz", "pt", "h5-groups"):
            with pytest.raises(OutputError):
                export(file, tmp_path / f"out-{form}", form)
            assert not (tmp_path / f"out-{form}").exists()
        assert export(file, tmp_path / "out", "lmdb").images == 2


def test_inputs_are_not_overwritten(tmp_path: Path, roialign: Run) -> None:
    """A conversion must not replace its box file, and a picture must not replace its image."""
    boxes, photo = tmp_path / "boxes.json", tmp_path / "cat.jpg"
    boxes.write_bytes(SAMPLE_BOXES.read_bytes())
    photo.write_bytes((SAMPLE_IMAGES / "cat.jpg").read_bytes())
    before = boxes.read_bytes(), photo.read_bytes()
    for command in (
        ["boxes", SAMPLE_IMAGES, boxes, "--write", boxes, "--overwrite"],
        ["show", photo, boxes, "-o", photo, "-c", "quickstart"],
    ):
        done = roialign(*command)
        assert done.returncode == 6, done.stderr
        assert "error[output-is-input]" in done.stderr
    assert (boxes.read_bytes(), photo.read_bytes()) == before
    other = tmp_path / "other.json"
    other.write_text("years of work")
    done = roialign("boxes", SAMPLE_IMAGES, boxes, "--write", other)
    assert (done.returncode, other.read_text()) == (6, "years of work")
    assert roialign("boxes", SAMPLE_IMAGES, boxes, "--write", other, "--overwrite").returncode == 0
