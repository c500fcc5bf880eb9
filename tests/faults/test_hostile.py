"""Test hostile images, names and feature files: a clear error names the culprit, without a crash, a leak or a wait."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.data import TABLE, Data
from faults.runs import FULL, Ended, Runs
from roialign_cli import FeatureFile

pytestmark = pytest.mark.timeout(3600)
FLIPS = 3000 if FULL else 300
FILE_FLIPS = 3000 if FULL else 150

# Decodes damaged copies of an image; says how many gave an error of their own kind, and how memory grew after the first fifth.
DECODE = """
import random, resource, sys, time
from pathlib import Path
from roialign_cli.inputs.images import ImageError, ImageFile, decode, limit_pixels, read_size
whole, target, flips, seed = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
def damaged():
    for percent in range(100):
        yield whole[: len(whole) * percent // 100]
    for _ in range(flips):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            bit = rng.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
        yield bytes(data)
errors, early, slowest = 0, 0, 0.0
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
with limit_pixels():
    for i, data in enumerate(damaged()):
        target.write_bytes(data)
        begun = time.monotonic()
        for read in (lambda path: read_size(ImageFile(path)), decode):
            try:
                read(target)
            except ImageError as error:
                assert error.message
                errors += 1
        slowest = max(slowest, time.monotonic() - begun)
        if i == 100 + flips // 5:
            early = resident()
print(errors, resident() - early, slowest)
"""


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_damaged_images(suffix: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
    image.save(tmp_path / f"whole.{suffix}")
    seed = random.randrange(2**32)
    command = [
        sys.executable,
        "-c",
        DECODE,
        tmp_path / f"whole.{suffix}",
        tmp_path / f"x.{suffix}",
        str(FLIPS),
        str(seed),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, (seed, done.stderr[-2000:])
    errors, grown, slowest = done.stdout.split()
    line = TABLE["damaged image"]
    line.decodings += FLIPS + 100
    print(f"{suffix}: seed {seed}, {errors} errors, {int(grown) / 1e6:.1f} MB grown, slowest {slowest} s")
    assert int(errors) >= 100  # nearly every truncation, for one
    assert int(grown) < 30e6
    assert float(slowest) < 10


def run_over(folder: Path, content: dict[str, object], runs: Runs) -> Ended:
    (folder / "boxes.json").write_text(json.dumps(content))
    run = [
        "extract",
        folder / "im",
        folder / "boxes.json",
        "-o",
        folder / "f.h5",
        "-c",
        "quickstart",
        "--output-size",
        "2",
    ]
    return runs([str(part) for part in run])


def test_names_of_every_kind(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "im"
    folder.mkdir()
    long = "ü" * 125 + "x.jpg"
    names = [
        "a.1.jpg",
        "a.2.jpg",
        "A.1.jpg",
        "new\nline.jpg",
        "🦊.jpg",
        "é.jpg",
        "e\u0301.jpg",
        long,
        " .jpg",
        "-o.jpg",
        "[1].jpg",
    ]
    names += [os.fsdecode(b"\xff\xfe.jpg"), "sub/a.1.jpg", "quote'\".jpg", "x\ty.jpg", "%s{}.jpg", "[bold]a[/bold].jpg"]
    assert len(long.encode()) == 255
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + i, 30)).save(folder / name)
    ended = run_over(tmp_path, {name: [[0, 0, 10 + i, 10]] for i, name in enumerate(names)}, runs)
    assert ended.code == 0, ended
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.names == names
        assert [file[name].size for name in names] == [(30, 20 + i) for i in range(len(names))]
    TABLE["names of every kind"].runs += 1


def test_things_that_are_no_images(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "im"
    folder.mkdir()
    Image.new("RGB", (20, 30)).save(folder / "good.jpg")
    os.mkfifo(folder / "fifo.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "empty.jpg").touch()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "text.jpg").write_text("not an image")
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + b"\x08\x02\0\0\0\0\0\0\0"
    (folder / "absurd.png").write_bytes(header + bytes(100))
    bad = [path.name for path in folder.iterdir() if path.name != "good.jpg"]
    ended = run_over(tmp_path, {name: [[0, 0, 10, 10]] for name in ["good.jpg", *bad]}, runs)
    assert ended.code == 7, ended
    assert not ended.hung
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.done_names == ["good.jpg"]
        assert sorted(file.errors) == sorted(bad)
        assert all(file.errors.values())
    TABLE["no image at all"].runs += 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../x.jpg", "..\\x.jpg", "x\0y.jpg"])
def test_paths_that_lead_out_of_the_folder(name: str, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "im" / "good.jpg")
    ended = run_over(tmp_path, {"good.jpg": [[0, 0, 9, 9]], name: [[0, 0, 9, 9]]}, runs)
    assert ended.code == 3, ended
    assert "inside the image folder" in ended.log
    TABLE["path out of the folder"].runs += 1


# Flips bits outside or inside of the data, and says what reading and verifying make of it.
FLIP = """
import random, shutil, sys
from pathlib import Path
import numpy as np
from roialign_cli import FeatureFile
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check
whole, target, flips, seed, inside = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
rng, original = random.Random(seed), whole.read_bytes()
def content(file):
    return [(name, repr(file[name])) for name in file.done_names], file.attributes, file.notes, file.errors
with FeatureFile(whole) as file:
    right = content(file)
    data = np.zeros(len(original), bool)
    for name, place in file.extents.items():
        data[place.offset : place.offset + place.row_bytes * place.shape[0]] = True
        if name.startswith("features"):  # of an image that has failed, features mean nothing
            for row in set(range(place.shape[0])) - set(file.done_rows.tolist()):
                data[place.offset + row * place.row_bytes : place.offset + (row + 1) * place.row_bytes] = False
places = np.flatnonzero(data == (inside == "data"))
found = harmless = 0
for i in range(flips):
    at, bit = int(rng.choice(places)), rng.randrange(8)
    text = bytearray(original)
    text[at] ^= 1 << bit
    target.write_bytes(text)
    try:
        with FeatureFile(target) as file:
            report = check(file)
            if report.problems or report.pending:
                found += 1
            elif content(file) == right:
                harmless += 1
            else:
                sys.exit(f"flip of bit {bit} at {at} was not found")
    except OutputError as error:
        assert error.message
        found += 1
print(found, harmless)
"""


@pytest.mark.parametrize("inside", ["data", "metadata"])
def test_flipped_bits_in_feature_files(inside: str, data: Data, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    source = tmp_path / "whole.h5"
    shutil.copy(data.whole, source)
    command = [sys.executable, "-c", FLIP, source, tmp_path / "x.h5", str(FILE_FLIPS), str(seed), inside]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, (seed, done.returncode, done.stderr[-2000:])
    found, harmless = map(int, done.stdout.split())
    TABLE[f"flipped bit in {inside}"].files += FILE_FLIPS
    print(f"{inside}: seed {seed}, {found} found, {harmless} harmless")
    assert found + harmless == FILE_FLIPS
    if inside == "data":
        assert harmless == 0
