"""Test the feature file: damage is found, one writer at a time, and a full disk is an error before the first image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import h5py
import numpy as np
import pytest
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check, image_crc32
from roialign_cli.store.layout import check_space
from roialign_cli.store.schema import encode, truncate_utf8
from roialign_cli.store.writer import FeatureWriter


def test_nothing_is_left_beside_a_finished_file_whose_space_is_really_there(tmp_path: Path) -> None:
    output = tmp_path / "f.h5"
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, output, config_name="quickstart")
    assert list(tmp_path.iterdir()) == [output]
    if sys.platform.startswith("linux"):
        assert output.stat().st_blocks * 512 >= output.stat().st_size


@pytest.mark.parametrize("layers", ["layer1", "layer1,layer2"])
def test_every_flipped_bit_of_the_features_is_found(tmp_path: Path, layers: str) -> None:
    path = tmp_path / "f.h5"
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, path, backbone="resnet18", weights="random", layers=layers, output_size=2)
    with FeatureFile(path) as file:
        assert check(file).problems == []
        assert [image_crc32(file, i) for i in range(len(file))] == file.dataset("images/crc32").tolist()
        extents = [place for name, place in file.extents.items() if name.startswith("features")]
        offset = file.offset
    rng = np.random.default_rng(0)
    whole = path.read_bytes()
    for place in extents:
        for at in rng.integers(0, place.shape[0] * place.row_bytes, 20):
            damaged = bytearray(whole)
            damaged[place.offset + at] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            image = int(np.searchsorted(offset, at // place.row_bytes, side="right")) - 1
            with FeatureFile(path) as file:
                assert check(file).problems == [
                    f'"{file.names[image]}": marked done, but its features do not match its checksum'
                ]


def test_verify_reports_damage_by_its_exit_code(sample_features: Path, roialign: Run) -> None:
    assert roialign("verify", sample_features).returncode == 0
    with h5py.File(sample_features) as file:
        offset = file["features"].id.get_offset()
    with sample_features.open("r+b") as handle:
        handle.seek(offset + 5)
        handle.write(b"\xff\xfe")
    damaged = roialign("verify", sample_features)
    assert damaged.returncode == 6
    assert "error[file-damaged]" in damaged.stderr
    assert '"astronaut.jpg": marked done, but its features do not match' in damaged.stderr
    with h5py.File(sample_features, "r+") as file:
        file["images/status"][0] = 0
    assert roialign("verify", sample_features).returncode == 7


def test_files_that_are_none(tmp_path: Path, sample_features: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "cut.h5").write_bytes(sample_features.read_bytes()[:3000])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with h5py.File(tmp_path / "newer.h5", "w") as file:
        file.attrs.update({"format": "roialign-features", "format_version": 3})
    for name, reference in (
        ("none.h5", "file-missing"), ("text.h5", "file-unreadable"), ("cut.h5", "file-unreadable"),
        ("other.h5", "file-format"), ("newer.h5", "file-version"),
    ):  # fmt: skip
        with pytest.raises(OutputError) as error:
            FeatureFile(tmp_path / name)
        assert error.value.reference == reference


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    with filelock.FileLock(f"{tmp_path / 'f.h5'}.lock"):
        yield tmp_path / "f.h5"


def test_a_second_writer_is_refused(held: Path, roialign: Run) -> None:
    done = roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-o", held, "-c", "quickstart")
    assert done.returncode == 6
    assert "error[output-locked]" in done.stderr
    assert not held.exists()


def test_the_lock_of_a_dead_process_is_no_hindrance(tmp_path: Path) -> None:
    script = f"import filelock, os; filelock.FileLock({str(tmp_path / 'f.h5.lock')!r}).acquire(); os._exit(9)"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", config_name="quickstart").finished


def test_a_disk_too_small_is_an_early_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="bytes of free space") as error:
        check_space(tmp_path / "f.h5", 1 << 60)
    assert error.value.reference == "output-space"
    with pytest.raises(OutputError, match="expected an existing folder"):
        check_space(tmp_path / "none" / "f.h5", 0)
    with pytest.raises(OutputError, match="found a folder"):
        check_space(tmp_path, 0)


@pytest.mark.parametrize("harm", ["cut", "removed", "replaced"])
def test_a_file_that_changes_under_the_run_ends_it(sample_features: Path, harm: str) -> None:
    with FeatureFile(sample_features) as file:
        extents, rows = file.extents, np.array(file["cat.jpg"].features)
    writer = FeatureWriter(sample_features, extents)
    if harm == "cut":
        os.truncate(sample_features, 9000)
    else:
        sample_features.rename(sample_features.with_name("away"))
    if harm == "replaced":
        shutil.copy(sample_features.with_name("away"), sample_features)
    released = []
    writer.features("features", 2, 9, rows, lambda: released.append(1))
    writer.done(2)
    with pytest.raises(OutputError, match=f"{harm}|another file" if harm == "replaced" else harm):
        writer.close()
    assert released == [1]


def test_long_messages_are_cut_between_characters() -> None:
    for length in range(1, 12):
        truncate_utf8("aü日🦊x".encode(), length).decode()
        assert len(truncate_utf8("aü日🦊x".encode(), length)) <= length
    assert encode(["é", "ab"]).dtype.itemsize == 2
