"""Test resuming: a file continues only with the same images and boxes, and keeps only what still holds."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.commands import Run
from helpers.images import paint
from helpers.small_runs import IMAGES, run

from roialign_cli import FeatureFile
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check


def annotations(folder: Path, kind: str) -> Path:
    """Write one box per image in a format whose images are found in the folder."""
    place = folder / kind
    place.mkdir(exist_ok=True)
    for path in (folder / "im").iterdir():
        if kind == "voc":
            corners = "<xmin>2</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax>"
            text = f"<annotation><object><name>a</name><bndbox>{corners}</bndbox></object></annotation>"
            (place / f"{path.stem}.xml").write_text(text)
        elif kind == "yolo":
            (place / f"{path.stem}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
        else:
            shape = {"label": "a", "shape_type": "rectangle", "points": [[1, 1], [20, 20]]}
            (place / f"{path.stem}.json").write_text(json.dumps({"shapes": [shape], "imagePath": f"{path.stem}.png"}))
    return place


@pytest.mark.parametrize("kind", ["whole image", "voc", "yolo", "labelme"])
def test_another_set_of_images_is_refused(five_images: Path, kind: str) -> None:
    boxes = None if kind == "whole image" else annotations(five_images, kind)
    assert run(five_images, boxes, images=2).done == 2
    before = (five_images / "f.h5").read_bytes()
    if kind == "whole image":
        (five_images / "im" / "0.png").rename(five_images / "im" / "9.png")
    else:  # the same annotations now mean an image in a subfolder
        (five_images / "im" / "sub").mkdir()
        (five_images / "im" / "0.png").rename(five_images / "im" / "sub" / "0.png")
    with pytest.raises(OutputError, match=r'image 0 is "0.png" in it, and "') as error:
        run(five_images, boxes)
    assert error.value.reference == "output-mismatch"
    assert (five_images / "f.h5").read_bytes() == before


def test_fewer_images_are_refused(five_images: Path) -> None:
    run(five_images, images=2)
    (five_images / "im" / "4.png").unlink()
    with pytest.raises(OutputError, match=f"it has {IMAGES} images, this run has {IMAGES - 1}"):
        run(five_images)


def test_labels_found_beside_the_boxes_identify_a_run_too(five_images: Path) -> None:
    boxes = annotations(five_images, "yolo")
    (boxes / "classes.txt").write_text("cat\n")
    run(five_images, boxes, images=2)
    (boxes / "classes.txt").write_text("dog\n")
    with pytest.raises(OutputError, match="boxes, labels, scores, ids or regions have changed"):
        run(five_images, boxes)


def test_an_image_that_was_missing_may_come_later(five_images: Path) -> None:
    boxes = annotations(five_images, "yolo")  # relative boxes depend on the size of the image
    (five_images / "im" / "1.png").rename(five_images / "1.png")
    (boxes / "1.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    native = five_images / "boxes.json"
    native.write_text(json.dumps({f"{i}.png": [[0, 0, 9, 9]] for i in range(IMAGES)}))
    assert run(five_images, native).failed == 1
    (five_images / "1.png").rename(five_images / "im" / "1.png")
    assert run(five_images, native).done == IMAGES


@pytest.fixture
def begun(five_images: Path) -> Path:
    """Begin a run and stop it after three images; `whole` holds the file of an undisturbed run."""
    shutil.copytree(five_images / "im", five_images / "whole" / "im")
    run(five_images / "whole")
    assert run(five_images, images=3).done == 3
    return five_images


def rows_of(path: Path) -> dict[str, np.ndarray]:
    with FeatureFile(path) as file:
        assert check(file).problems == []
        return {name: np.array(file[name].features) for name in file.done_names}


def test_an_image_that_has_changed_is_computed_again(begun: Path) -> None:
    before = rows_of(begun / "f.h5")
    paint(begun / "im" / "1.png", 77)
    paint(begun / "whole" / "im" / "1.png", 77)
    with pytest.warns(RuntimeWarning, match=r'1 done images changed since they were read .*"1.png"'):
        assert run(begun).finished
    with pytest.warns(RuntimeWarning, match='"1.png"'):  # a finished file, too
        assert run(begun / "whole").finished
    after, expected = rows_of(begun / "f.h5"), rows_of(begun / "whole" / "f.h5")
    assert not np.array_equal(after["1.png"], before["1.png"])
    for name, rows in expected.items():
        assert np.array_equal(after[name], rows), name
    assert not run(begun).interrupted  # and no warning


def test_an_image_that_was_only_touched_is_kept(begun: Path) -> None:
    with FeatureFile(begun / "f.h5") as file:
        assert file.dataset("images/file_size")[0] == (begun / "im" / "0.png").stat().st_size
    os.utime(begun / "im" / "0.png", ns=(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(begun).finished


def test_an_image_that_vanished_keeps_its_features(begun: Path) -> None:
    native = begun / "boxes.json"
    native.write_text(json.dumps({f"{i}.png": [[0, 0, 9, 9]] for i in range(IMAGES)}))
    (begun / "f.h5").unlink()
    run(begun, native, images=3)
    before = rows_of(begun / "f.h5")
    (begun / "im" / "0.png").unlink()
    assert (run(begun, native).done, run(begun, native).failed) == (IMAGES, 0)
    assert np.array_equal(rows_of(begun / "f.h5")["0.png"], before["0.png"])


def test_a_done_image_that_cannot_be_read_any_more_stays_done(begun: Path) -> None:
    """Its batch is computed because another image needs it."""
    (begun / "f.h5").unlink()
    run(begun, images=1, batch_size=2)
    with FeatureFile(begun / "f.h5") as file:
        assert file.done_names == ["0.png", "1.png"]
    with h5py.File(begun / "f.h5", "r+") as file:
        file["images/status"][1] = 0
        before = file["features"][0]
    state = (begun / "im" / "0.png").stat()
    whole = (begun / "im" / "0.png").read_bytes()  # of which the header stays
    (begun / "im" / "0.png").write_bytes(whole[:300] + bytes(state.st_size - 300))
    os.utime(begun / "im" / "0.png", ns=(state.st_mtime_ns, state.st_mtime_ns))  # so that it seems to be the same
    assert run(begun, batch_size=2).done == IMAGES
    with FeatureFile(begun / "f.h5") as file:
        assert np.array_equal(file["0.png"].features[0], before)


@pytest.mark.parametrize("dataset", ["features", "boxes", "images/size", "images/crc32"])
def test_a_done_image_that_is_damaged_is_computed_again(begun: Path, dataset: str) -> None:
    whole = (begun / "whole" / "f.h5").read_bytes()
    with FeatureFile(begun / "f.h5") as file:
        place = file.extents[dataset]
    with (begun / "f.h5").open("r+b") as handle:
        handle.seek(place.offset + place.row_bytes)  # of the second image
        byte = handle.read(1)[0]
        handle.seek(place.offset + place.row_bytes)
        handle.write(bytes([byte ^ 1]))
    with pytest.warns(RuntimeWarning, match=r'1 done images do not match their checksums .*"1.png"'):
        assert run(begun).finished
    with FeatureFile(begun / "f.h5") as file:
        assert check(file).problems == []
    with h5py.File(begun / "f.h5") as found, h5py.File(begun / "whole" / "f.h5") as right:
        for name in ("features", "boxes", "images/size", "images/crc32"):
            assert np.array_equal(found[name][()], right[name][()]), name
    assert whole


def test_other_versions_are_a_warning_and_an_error_if_strict(begun: Path) -> None:
    with h5py.File(begun / "f.h5", "r+") as file:
        versions = json.loads(file.attrs["versions"]) | {"torch": "1.0"}
        file.attrs["versions"] = json.dumps(versions)
        file.attrs["kernel"] = "torchvision on cpu"
    with pytest.raises(OutputError, match=r"found: the run started with other versions: torch was 1\.0") as error:
        run(begun, strict=True)
    assert error.value.reference == "output-strict"
    with pytest.warns(RuntimeWarning, match=r"torch was 1\.0, is .*; kernel was torchvision on cpu, is cpu on cpu"):
        assert run(begun).finished
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(begun).already_finished  # nothing is computed, so nothing is mixed


def test_strict_refuses_changed_images(begun: Path, roialign: Run) -> None:
    paint(begun / "im" / "1.png", 77)
    command = ["extract", begun / "im", "-o", begun / "f.h5", "-c", "quickstart", "--output-size", "2", "--whole-image"]
    before = (begun / "f.h5").read_bytes()
    refused = roialign(*command, "--strict")
    assert refused.returncode == 6
    assert "error[output-strict]" in refused.stderr
    assert (begun / "f.h5").read_bytes() == before
    done = roialign(*command)
    assert done.returncode == 0
    assert "warning: " in done.stderr
    assert '"1.png"' in done.stderr


def test_a_failed_image_is_pending_while_it_is_tried_again(five_images: Path) -> None:
    """After a kill at that point every checksum of the other images still matches."""
    (five_images / "im" / "2.png").write_bytes(b"no image")
    assert run(five_images).failed == 1
    paint(five_images / "im" / "2.png", 2)
    assert run(five_images, images=0).pending == 1
    with FeatureFile(five_images / "f.h5") as file:
        assert check(file).problems == []
    assert run(five_images).done == IMAGES
