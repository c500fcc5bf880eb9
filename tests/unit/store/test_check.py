"""Test that `check` finds every damaged byte, and values that cannot be although every checksum matches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.feature_files import vouch
from helpers.images import paint

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a file with every table, one failed image and one image without boxes."""
    import json

    folder = tmp_path_factory.mktemp("rich")
    (folder / "im").mkdir()
    table = {}
    for i in range(3):
        paint(folder / "im" / f"{i}.png", i)
        boxes = [[0, 0, 20, 20], [3, 3, 50, 30]] if i else []
        count = range(len(boxes))
        table[f"{i}.png"] = {
            "boxes": boxes, "labels": [f"l{k}" for k in count], "scores": [0.5 for _ in count], "ids": [str(k) for k in count]
        }  # fmt: skip
    table["bad.png"] = {"boxes": [[0, 0, 9, 9]], "labels": ["bad"], "scores": [0.25], "ids": ["b"]}
    (folder / "im" / "bad.png").write_bytes(b"none")
    (folder / "boxes.json").write_text(json.dumps(table))
    options = {"backbone": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random", "resize": "none"}
    extract(folder / "im", folder / "boxes.json", folder / "f.h5", output_size=1, **options)
    with FeatureFile(folder / "f.h5") as file:
        assert check(file).problems == []
        assert {"labels", "scores", "ids", "levels"} <= file.extents.keys()
        assert file.status.tolist() == [1, 1, 1, 2]
    return folder / "f.h5"


TABLES_OF_BOXES = ["boxes", "labels", "scores", "ids", "levels"]
TABLES_OF_IMAGES = [
    "name",
    "offset",
    "size",
    "status",
    "error",
    "crc32",
    "table_crc32",
    "file_size",
    "modified",
    "sha256",
]


@pytest.mark.parametrize("name", [*TABLES_OF_BOXES, *(f"images/{name}" for name in TABLES_OF_IMAGES), "features"])
def test_every_damaged_byte_of_every_table_is_found(rich: Path, tmp_path: Path, name: str) -> None:
    """Damage images that are done and the one that failed, whose features do not count."""
    with FeatureFile(rich) as file:
        place, offset = file.extents[name], file.offset.tolist()
    whole = rich.read_bytes()
    rows = {"images/": [0, 1, 3]}.get(name[:7], [offset[1], offset[2], *([offset[3]] if name != "features" else [])])
    for row in rows:
        for byte in {0, place.row_bytes // 2, place.row_bytes - 1}:
            for bit in (0, 7):
                damaged = bytearray(whole)
                damaged[place.offset + row * place.row_bytes + byte] ^= 1 << bit
                path = tmp_path / "x.h5"
                path.write_bytes(damaged)
                assert is_found(path), (name, row, byte, bit)


def is_found(path: Path) -> bool:
    """Return whether opening or checking a file finds its damage; a status that becomes pending is computed again."""
    try:
        with FeatureFile(path) as file:
            report = check(file)
    except OutputError:
        return True
    return bool(report.problems or report.pending)


VALUES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "a status": (lambda file: file["images/status"].__setitem__(1, 3), "images/status"),
    "a size": (lambda file: file["images/size"].__setitem__(1, [0, 5]), "images/size"),
    "a negative size": (lambda file: file["images/size"].__setitem__(3, [-1, 5]), "images/size"),
    "a box": (lambda file: file["boxes"].__setitem__(0, [9, 9, 3, 3]), "boxes"),
    "no number": (lambda file: file["boxes"].__setitem__(0, [0, 0, np.nan, 3]), "boxes"),
    "a score": (lambda file: file["scores"].__setitem__(0, np.inf), "scores"),
    "a level": (lambda file: file["levels"].__setitem__(0, 9), "levels"),
    "no checksums": (lambda file: file.__delitem__("images/table_crc32"), "images/table_crc32"),
    "no checksum of attributes": (lambda file: file.attrs.__delitem__("attributes_crc32"), "attributes_crc32"),
}


@pytest.mark.parametrize("what", VALUES)
def test_what_cannot_be_is_found_though_every_checksum_matches(rich: Path, tmp_path: Path, what: str) -> None:
    harm, name = VALUES[what]
    path = tmp_path / "x.h5"
    shutil.copy(rich, path)
    with h5py.File(path, "r+") as file:
        harm(file)
        if "images/table_crc32" in file:
            for image in range(4):
                vouch(file, image)
    with FeatureFile(path) as file:
        assert any(name in problem for problem in check(file).problems), check(file).problems


@pytest.mark.parametrize(("image", "status"), [(1, 2), (3, 1)])
def test_a_status_that_became_another_is_found(rich: Path, tmp_path: Path, image: int, status: int) -> None:
    path = tmp_path / "x.h5"
    shutil.copy(rich, path)
    with h5py.File(path, "r+") as file:
        file["images/status"][image] = status
    assert is_found(path)
    with FeatureFile(path) as file:
        assert check(file).problems
