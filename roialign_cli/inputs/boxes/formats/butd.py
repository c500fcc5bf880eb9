"""Read the TSV files of bottom-up attention: boxes in base64, a line per image, without a header.

The fields are image_id, image_w, image_h, num_boxes, boxes, features, and in LXMERT's files img_id, img_h, img_w,
objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features. Features are not read.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import quoted
from roialign_cli.inputs.boxes.common import Entry, Source, format_error, table_from_entries
from roialign_cli.inputs.boxes.formats.coco_results import coco_name, names_by_id
from roialign_cli.types import BoxTable

FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_FIELDS = (
    "image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
    "features",
)  # fmt: skip


def read(source: Source) -> BoxTable:
    """Read a line per image; the image is found by its id, as in COCO results. Raises InputError naming the line."""
    names, entries = names_by_id(source.images), []
    with source.open() as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{source.path}: line {number}"
            values = _fields(where, line)
            identity: int | str = int(values["image_id"]) if values["image_id"].isdecimal() else values["image_id"]
            image = source.images.find(str(identity))
            if image not in source.images.all:
                image = names.get(identity) or coco_name(identity)
            try:
                size = (int(values["image_h"]), int(values["image_w"]))
                boxes = _decode(values["boxes"], np.float32).reshape(int(values["num_boxes"]), 4).astype(np.float64)
                labels = _decode(values["objects_id"], np.int64).tolist() if "objects_id" in values else None
                scores = _decode(values["objects_conf"], np.float32).tolist() if "objects_conf" in values else None
            except (ValueError, binascii.Error) as error:
                raise format_error(where, f"expected boxes as float32 in base64, found: {quoted(str(error))}") from None
            entries.append(Entry(image, boxes, labels, scores, size))
    return table_from_entries(source, entries, source.units("xyxy"))


def looks_like(line: bytes) -> bool:
    """Return whether a line has the fields of a file of this format."""
    fields = line.split(b"\t")
    return len(fields) in (len(FIELDS), len(LXMERT_FIELDS)) and fields[1].isdigit() and fields[2].isdigit()


def _fields(where: str, line: bytes) -> dict[str, str]:
    try:
        fields = line.decode("ascii").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise format_error(where, "expected fields in ASCII, found other characters") from None
    for names in (FIELDS, LXMERT_FIELDS):
        if len(fields) == len(names):
            return dict(zip(names, fields, strict=True))
    raise format_error(where, f"expected {len(FIELDS)} or {len(LXMERT_FIELDS)} fields, found {len(fields)}")


def _decode(text: str, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)
