"""Recognise the format of a box file or folder by its suffix or content."""

from __future__ import annotations

import itertools
import re
from collections import Counter

from roialign_cli.inputs.boxes.columns import positional_columns
from roialign_cli.inputs.boxes.common import Source, format_error
from roialign_cli.inputs.boxes.formats import butd, detections, dota, label_map
from roialign_cli.inputs.boxes.formats.text_files import label_files, read_lines
from roialign_cli.inputs.boxes.json_objects import decode_top_level
from roialign_cli.inputs.images import open_images

FILE_SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npz": "npz"}
TABLE_SUFFIXES = ("", ".tsv")  # a pipe has no suffix
FOLDER_SUFFIXES = {".xml": "voc", ".json": "labelme", ".npz": "npz", ".txt": "yolo"}  # of formats with a file per image
START_BYTES = 4096  # that are read to tell formats apart
CVAT_ROOT = re.compile(rb"<annotations[\s>]")
JUDGED_FILES = 20  # text files whose first lines are looked at
JUDGED_LINES = 20  # of each


def recognise(source: Source) -> str:
    """Return the format of a file or folder as --boxes-format names it. Raises InputError if a folder has no box files."""
    if source.is_folder:
        return _kind_of_folder(source)
    if source.suffix == ".txt":
        return "csv" if positional_columns(source) else _kind_of_text(source)
    return FILE_SUFFIXES.get(source.suffix) or _kind_by_content(source)


def _kind_of_folder(source: Source) -> str:
    """Return the format of the files of which a folder has most."""
    suffixes = (file.suffix.lower() for file in source.path.rglob("*"))
    counts = Counter(suffix for suffix in suffixes if suffix in FOLDER_SUFFIXES)
    if not counts:
        files = sorted(path for path in source.path.rglob("*") if path.is_file())
        if all(path.suffix.lower() == ".png" for path in files) and label_map.looks_like(source, files):
            return "label-map"
        has_images = next(open_images(source.path).names(), None) is not None
        expected = "expected a folder of VOC .xml, text .txt, LabelMe .json or .npz files, or label maps"
        found = "images" if has_images else "none of them"
        raise format_error(source.path, f"{expected}, found {found}", "images come first, then boxes" * has_images)
    found = FOLDER_SUFFIXES[counts.most_common(1)[0][0]]
    return _kind_of_text(source) if found == "yolo" else found


def _kind_by_content(source: Source) -> str:
    """Return the format of a file whose suffix does not tell."""
    with source.open() as file:
        start = file.read(START_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"[":
        is_results = b'"image_id"' in start or not any(
            key in start for key in (b'"data"', b'"annotations"', b'"image"')
        )
        return "coco-results" if is_results else "label-studio"
    if start[:1] == b"<":
        return "cvat" if CVAT_ROOT.search(start) else "voc"
    if start[:1] == b"{":
        return _kind_of_json(source, start)
    if source.suffix in TABLE_SUFFIXES:
        with source.open() as file:
            return "butd" if butd.looks_like(file.readline()) else "csv"
    return "native"  # whose reader says what is wrong


def _kind_of_json(source: Source, start: bytes) -> str:
    """Return the format of a file that starts with a JSON object."""
    if re.match(rb'\{\s*"image"\s*:\s*"', start):
        return "jsonl"
    keys = decode_top_level(source.path, source.read())
    if "annotations" in keys and "images" in keys:
        return "coco"
    return "labelme" if "shapes" in keys else "native"


def _kind_of_text(source: Source) -> str:
    """Return the format of text files with a line per box: text if --columns names the columns, or by their lines."""
    if positional_columns(source):
        return "text"
    lines = [
        fields
        for path in label_files(source)[:JUDGED_FILES]
        for _, fields in itertools.islice(read_lines(source, path), JUDGED_LINES)
    ]
    if lines and all(map(dota.looks_like, lines)):
        return "dota"
    with_scores = lines and all(len(fields) == detections.FIELDS for fields in lines)
    return "detections" if with_scores and detections.fitting_layouts(source) != [detections.YOLO] else "yolo"
