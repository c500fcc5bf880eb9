"""Recognise the format of a box file or folder by its suffix or content."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from roialign_cli.inputs.boxes.common import format_error
from roialign_cli.inputs.boxes.json_objects import decode_top_level

FILE_SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".xml": "voc",
    ".npz": "npz", ".txt": "yolo",
}  # fmt: skip
FOLDER_SUFFIXES = {".xml": "voc", ".json": "labelme", ".npz": "npz", ".txt": "yolo"}  # of formats with a file per image
START_BYTES = 4096  # that are read to tell JSON lists, JSON objects and XML apart


def recognise(path: Path) -> str:
    """Return the format of a file or folder as --boxes-format names it. Raises InputError if a folder has no box files."""
    if path.is_dir():
        counts = Counter(file.suffix.lower() for file in path.rglob("*") if file.suffix.lower() in FOLDER_SUFFIXES)
        if not counts:
            expected = "expected a folder of VOC .xml, YOLO .txt, LabelMe .json or .npz files"
            raise format_error(path, f"{expected}, found none of them")
        return FOLDER_SUFFIXES[counts.most_common(1)[0][0]]
    if path.suffix.lower() in FILE_SUFFIXES:
        return FILE_SUFFIXES[path.suffix.lower()]
    with path.open("rb") as file:
        start = file.read(START_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"[":
        return "coco-results"
    if start[:1] == b"<":
        return "voc"
    keys = decode_top_level(path)
    if "annotations" in keys and "images" in keys:
        return "coco"
    return "labelme" if "shapes" in keys else "native"
