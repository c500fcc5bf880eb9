"""Read Pascal VOC XML, a file per image: corners are inclusive indices of pixels, counted from 1.

To get the edges of pixels, 1 is subtracted from the minima, while the maxima stay (detectron2's rule); --voc-origin 0
keeps both, for tools that count from 0. Entities and document types, which attacks use, are refused.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from roialign_cli.inputs.boxes.common import Entry, Source, format_error, parse_number, table_from_entries
from roialign_cli.types import BoxTable

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read(source: Source) -> BoxTable:
    """Read files sorted by path; the image is <filename>, or if that does not exist, the one with the stem of the file.

    Raises InputError.
    """
    entries = []
    for path in source.files(".xml"):
        root = parse(path, path.read_bytes() if source.is_folder else source.read())
        if root.tag != "annotation":
            raise format_error(path, f"expected <annotation>, found <{root.tag}>")
        boxes, labels = [], []
        for number, item in enumerate(root.findall("object")):
            boxes.append(_corners(path, number, item, source.settings.voc_origin))
            labels.append((item.findtext("name") or "").strip())
        name = source.images.find((root.findtext("filename") or path.stem).strip() or path.stem)
        if name not in source.images.all:
            name = source.images.find_by_stem(path.stem) or name
        entries.append(Entry(name, np.array(boxes, np.float64).reshape(-1, 4), labels))
    return table_from_entries(source, entries, source.units("xyxy"))


def parse(path: Path, content: bytes) -> Element:
    """Return the root element of XML; `path` is for errors. Raises InputError if it is not XML or declares a document type."""
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise format_error(path, "expected plain XML, found a document type declaration, which annotations do not need")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise format_error(path, f"expected XML, found: {error}") from None


def _corners(path: Path, number: int, item: Element, origin: int) -> list[float]:
    values = []
    for corner in CORNERS:
        text = (item.findtext(f"bndbox/{corner}") or "").strip()
        value = parse_number(path, f"object {number}: {corner}", text)
        values.append(value - origin if corner.endswith("min") else value)
    return values
