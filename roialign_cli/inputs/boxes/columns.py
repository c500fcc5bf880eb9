"""CSV, TSV and Parquet: a row per box; columns are told by their usual names, or by --columns image=Name,x1=Left,...

Corners, or a corner with width and height, or a centre with them; in pixels, or relative to the image where all numbers
lie in 0..1 (OpenImages), or as `units=pixels` or `units=relative` says. Decimal commas are understood.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import ConfigError
from roialign_cli.inputs.boxes.common import Source, bad, table_of_rows
from roialign_cli.structures import BoxTable

KNOWN = {
    "image": ("image", "imageid", "imagename", "imagepath", "imagefile", "filename", "filepath", "file", "path", "img", "name"),
    "x1": ("x1", "xmin", "left", "xtl", "bboxx1", "minx", "bboxxmin"),
    "y1": ("y1", "ymin", "top", "ytl", "bboxy1", "miny", "bboxymin"),
    "x2": ("x2", "xmax", "right", "xbr", "bboxx2", "maxx", "bboxxmax"),
    "y2": ("y2", "ymax", "bottom", "ybr", "bboxy2", "maxy", "bboxymax"),
    "cx": ("cx", "xcenter", "centerx", "xcentre", "centrex", "xc"),
    "cy": ("cy", "ycenter", "centery", "ycentre", "centrey", "yc"),
    "x": ("x", "bboxx"),
    "y": ("y", "bboxy"),
    "w": ("w", "boxwidth", "bboxwidth", "bboxw", "width"),
    "h": ("h", "boxheight", "bboxheight", "bboxh", "height"),
    "label": ("label", "labelname", "class", "classname", "category", "categoryname", "cls", "species"),
    "score": ("score", "confidence", "conf", "probability"),
    "id": ("id", "boxid", "annotationid"),
}  # fmt: skip
FORMS = (("x1", "y1", "x2", "y2"), ("cx", "cy", "w", "h"), ("x1", "y1", "w", "h"), ("x", "y", "w", "h"))
UNITS = ("pixels", "relative")
DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+([eE][-+]?\d+)?\s*")


def read_csv(source: Source) -> BoxTable:
    """A header, then a row per box; fields separated by comma, semicolon or tab, whichever the header has most of."""
    csv.field_size_limit(1 << 20)
    try:
        with source.path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            separator = max(",;\t", key=header.count)
            rows = list(csv.reader(file, delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad(source.path, f"expected a table of text, found: {error}") from None
    rows = [row for row in rows if row]
    if not rows:
        raise bad(source.path, "expected a header and a row per box, found an empty file")
    names, body = [name.strip() for name in rows[0]], rows[1:]
    for number, row in enumerate(body, 2):
        if len(row) != len(names):
            raise bad(f"{source.path}: row {number}", f"expected {len(names)} fields, found {len(row)}")
    return _table(source, dict(zip(names, zip(*body, strict=True), strict=True)) if body else dict.fromkeys(names, ()))


def read_parquet(source: Source) -> BoxTable:
    """The same from a Parquet file; needs pyarrow."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise bad(source.path, "expected pyarrow to read Parquet, found none", "pip install pyarrow") from None
    try:
        table = parquet.read_table(source.path)
        return _table(source, {name: table[name].to_pylist() for name in table.column_names})
    except (ArrowException, OSError) as error:
        raise bad(source.path, f"expected Parquet, found: {error}") from None


def _table(source: Source, columns: Mapping[str, Sequence[Any]]) -> BoxTable:
    chosen, units = _choose(source, list(columns))
    form = next((form for form in FORMS if all(name in chosen for name in form)), None)
    if form is None or "image" not in chosen:
        needed = "an image column and x1, y1, x2, y2, or x, y, w, h, or cx, cy, w, h"
        found = f"expected {needed}, found {', '.join(columns)}"
        raise bad(source.path, found, "say which is which: --columns image=File,x1=Left,y1=Top,x2=Right,y2=Bottom")
    a, b, c, d = (_numbers(source, chosen[name], columns[chosen[name]]) for name in form)
    if form[0] == "cx":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif form[2] == "w":
        c, d = a + c, b + d
    boxes = np.stack([a, b, c, d], axis=1)
    images = {name: source.images.find(str(name)) for name in set(columns[chosen["image"]])}
    scores = _numbers(source, chosen["score"], columns[chosen["score"]]).tolist() if "score" in chosen else None
    labels, ids = (
        [_whole(value) for value in columns[chosen[name]]] if name in chosen else None for name in ("label", "id")
    )
    inside = len(boxes) > 0 and bool((boxes >= 0).all() and (boxes <= 1).all() and (boxes != np.rint(boxes)).any())
    return table_of_rows(
        [images[name] for name in columns[chosen["image"]]], boxes, labels, scores, ids,
        relative=units == "relative" or (not units and inside),
    )  # fmt: skip


def _choose(source: Source, names: list[str]) -> tuple[dict[str, str], str]:
    """Which column is what, and the units if they are said."""
    given: dict[str, str] = {}
    for part in source.settings.columns.split(",") if source.settings.columns else ():
        what, equals, name = part.partition("=")
        what, name = what.strip(), name.strip()
        if not equals or what not in (*KNOWN, "units"):
            expected = f"expected WHAT=NAME with one of {', '.join(KNOWN)}, units"
            raise ConfigError("config-value", f"columns: {expected}, found {part!r}")
        if name not in (UNITS if what == "units" else names):
            raise bad(
                source.path,
                f"columns: expected one of {', '.join(UNITS if what == 'units' else names)}, found {name!r}",
            )
        given[what] = name
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    guessed = {
        what: plain[alias] for what, aliases in KNOWN.items() for alias in reversed(aliases) if alias in plain
    }  # the first alias wins
    units = given.pop("units", "")
    return {**guessed, **given}, units


def _numbers(source: Source, name: str, values: Sequence[Any]) -> npt.NDArray[np.float64]:
    """A column as numbers, or InputError naming the row."""
    try:
        return np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        found = []
    for number, value in enumerate(values, 2):
        text = value.replace(",", ".") if isinstance(value, str) and DECIMAL_COMMA.fullmatch(value) else value
        try:
            found.append(float(text))
        except (ValueError, TypeError, OverflowError):
            raise bad(f"{source.path}: row {number}", f"{name}: expected a number, found {value!r}") from None
    return np.array(found, np.float64)


def _whole(value: Any) -> int | str:
    """A label or id: whole numbers as such, everything else as text."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text) else text
    if isinstance(value, int):
        return int(value)
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else str(value)
