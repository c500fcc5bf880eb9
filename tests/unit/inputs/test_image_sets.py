"""Test what IMAGES may be: a folder, an image, a pattern, a list, archives; all give the same images."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Run
from helpers.images import paint
from helpers.sample_data import SAMPLE_IMAGES
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.arrays import PackedNames
from roialign_cli.errors import InputError
from roialign_cli.inputs.images import ImageError, decode_image, open_images, read_size

IMAGES_TO_KILL = 100  # about a second
NAMES = ("a.jpg", "sub/b.png", "höhe 3.webp")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        (tmp_path / "im" / name).parent.mkdir(parents=True, exist_ok=True)
        paint(tmp_path / "im" / name, i)
    (tmp_path / "im" / "notes.txt").write_text("no image")
    return tmp_path / "im"


def make_zip(path: Path, folder: Path, kind: int) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/._a.jpg", b"metadata")
    return path


def make_tars(path: Path, folder: Path, count: int) -> str:
    """Divide the files of a folder among tar archives; return the pattern that names them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for i in range(count):
        with tarfile.open(path / f"part-{i:03}.tar", "w") as archive:
            for file in files[i::count]:
                archive.add(file, f"./{file.relative_to(folder).as_posix()}")
    return f"{path}/part-{{000..{count - 1:03}}}.tar"


def sources(tmp_path: Path, folder: Path) -> dict[str, str]:
    (tmp_path / "list.txt").write_text("".join(f"im/{name}\n" for name in NAMES), encoding="utf-8")
    return {
        "folder": str(folder),
        "list": str(tmp_path / "list.txt"),
        "pattern": f"{folder}/**/*.[jpw][pne][gb]*",
        "stored zip": str(make_zip(tmp_path / "stored.zip", folder, zipfile.ZIP_STORED)),
        "deflated zip": str(make_zip(tmp_path / "deflated.zip", folder, zipfile.ZIP_DEFLATED)),
        "tars": make_tars(tmp_path, folder, 2),
        "pattern of tars": f"{tmp_path}/part-*.tar",
    }


def test_all_sources_give_the_same_images(tmp_path: Path, folder: Path) -> None:
    wanted = {name: decode_image(open_images(folder).file(name)).pixels for name in NAMES}
    for kind, source in sources(tmp_path, folder).items():
        images = pickle.loads(pickle.dumps(open_images(source)))  # as they travel to processes
        assert {name.removeprefix("im/") for name in images.names()} == set(NAMES), kind
        prefix = "im/" if kind == "list" else ""
        assert images.listing.has(PackedNames.from_strings([prefix + NAMES[0], "none.jpg"])).tolist() == [True, False]
        for name, pixels in wanted.items():
            file = images.file(prefix + name)
            assert file.exists()
            assert np.array_equal(decode_image(file).pixels, pixels), (kind, name)
            assert read_size(file) == pixels.shape[:2]
        assert not images.file("none.jpg").exists()
        with pytest.raises(ImageError, match="nothing there"):
            decode_image(images.file("none.jpg"))


def test_features_from_folder_zip_and_tars_are_equal_bit_for_bit(tmp_path: Path, folder: Path) -> None:
    boxes = {name: [[1, 2, 30, 20 + i], [0, 0, 40, 40]] for i, name in enumerate(NAMES)}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    found = {}
    for kind, source in sources(tmp_path, folder).items():
        output = tmp_path / f"{kind}.h5"
        assert extract(source, tmp_path / "boxes.json", output, config="quickstart").done == len(NAMES)
        with FeatureFile(output) as file:
            assert [name.removeprefix("im/") for name in file.names] == list(NAMES)
            found[kind] = np.concatenate([file[i].features for i in range(len(file))]).tobytes()
        assert extract(source, tmp_path / "boxes.json", output, config="quickstart").already_finished
    assert len(set(found.values())) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_a_run_over_tars_that_is_killed_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "im"
    folder.mkdir()
    for i in range(IMAGES_TO_KILL):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (360, 480, 3), np.uint8)).save(folder / f"{i:03}.jpg")
    pattern = make_tars(tmp_path, folder, 2)
    arguments = ["extract", pattern, "--whole-image", "-c", "quickstart", "--batch-size", "1"]
    command = [sys.executable, "-m", "roialign_cli", *arguments]
    output = tmp_path / "killed.h5"
    with subprocess.Popen([*command, "-o", output], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        done = 0
        while done < 5 and process.poll() is None:
            time.sleep(0.005)
            if output.exists():
                with FeatureFile(output) as file:
                    done = int((file.status == 1).sum())
        process.send_signal(signal.SIGKILL)
    with FeatureFile(output) as file:
        assert 5 <= (file.status == 1).sum() < IMAGES_TO_KILL
    resumed = extract(pattern, None, output, config="quickstart", grid="1x1", batch_size=1)
    assert resumed.done == IMAGES_TO_KILL
    extract(folder, None, tmp_path / "whole.h5", config="quickstart", grid="1x1", batch_size=1)
    with FeatureFile(output) as ours, FeatureFile(tmp_path / "whole.h5") as theirs:
        assert sorted(ours.names) == sorted(theirs.names)
        for name in theirs.names:
            assert np.array_equal(ours[name].features, theirs[name].features)


def test_one_image_and_its_boxes(tmp_path: Path, roialign: Run) -> None:
    boxes = SAMPLE_IMAGES.parent / "boxes.json"
    done = roialign("extract", SAMPLE_IMAGES / "cat.jpg", boxes, "-c", "quickstart", "-o", tmp_path / "f.h5")
    assert done.returncode == 0, done.stderr
    assert "images of the box file are not among the images: left out" in done.stderr
    with FeatureFile(tmp_path / "f.h5") as file:
        assert list(file.names) == ["cat.jpg"]
        assert len(file["cat.jpg"].features) == len(json.loads(boxes.read_text())["cat.jpg"]["boxes"])


def test_an_archive_that_changes_is_noticed(tmp_path: Path, folder: Path) -> None:
    path = make_zip(tmp_path / "a.zip", folder, zipfile.ZIP_STORED)
    images = open_images(path)
    make_zip(path, folder, zipfile.ZIP_DEFLATED)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageError, match="has changed"):
        decode_image(images.file("a.jpg"))


def test_members_that_cannot_be_read_fail_by_themselves(tmp_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.write(folder / "a.jpg", "a.jpg")
    with pytest.raises(ImageError, match="stored or deflated"):
        decode_image(open_images(tmp_path / "a.zip").file("a.jpg"))
    path = make_zip(tmp_path / "b.zip", folder, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ImageError):
        decode_image(open_images(path).file("a.jpg"))


def test_links_in_a_tar(tmp_path: Path, folder: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "a.jpg", "d/a.jpg")
        for kind, name, target in ((tarfile.LNKTYPE, "hard.jpg", "d/a.jpg"), (tarfile.SYMTYPE, "d/soft.jpg", "a.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    images = open_images(tmp_path / "a.tar")
    assert set(images.names()) == {"d/a.jpg", "hard.jpg", "d/soft.jpg"}
    assert len({decode_image(images.file(name)).pixels.tobytes() for name in images.names()}) == 1


@pytest.mark.parametrize(
    ("make", "reference", "text"),
    [
        ("nothing.zip", "images-folder", "nothing there"),
        ("s3://bucket/images", "images-address", "found an address"),
        ("https://example.org/a.jpg", "images-address", "found an address"),
        ("none-*.jpg", "images-folder", "found none"),
        ("text.zip", "images-archive", "expected a zip archive"),
        ("text.tar", "images-archive", "expected a plain tar archive"),
        ("images.tar.gz", "images-archive", "found a compressed one"),
        ("part-{000..002}.tar", "images-archive", "is not there"),
        ("[ab].tar", "images-archive", "found it in"),
        ("list.txt", "images-list", "line 2"),
        ("empty.txt", "images-list", "an empty file"),
        ("boxes.json", "images-folder", "found another file"),
    ],
)
def test_what_is_no_images_is_an_error(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, make: str, reference: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.zip", "text.tar", "images.tar.gz", "boxes.json"):
        Path(name).write_text("text")
    Path("list.txt").write_text("im/a.jpg\nim/notes.txt\n")
    Path("empty.txt").write_text("\n")
    make_tars(tmp_path, folder, 2)
    for name in ("a.tar", "b.tar"):
        shutil.copy("part-000.tar", name)
    with pytest.raises(InputError) as error:
        open_images(make)
    assert error.value.reference == reference
    assert text in error.value.message


def test_swapped_arguments_are_recognised(tmp_path: Path, folder: Path, roialign: Run) -> None:
    (folder / "notes.txt").unlink()
    (tmp_path / "boxes.json").write_text(json.dumps({"a.jpg": [[1, 2, 3, 4]]}))
    done = roialign("extract", tmp_path / "boxes.json", folder, "-o", tmp_path / "f.h5")
    assert done.returncode == 3
    assert "error[images-swapped]" in done.stderr
    done = roialign("boxes", tmp_path, folder)
    assert "images come first, then boxes" in done.stderr
