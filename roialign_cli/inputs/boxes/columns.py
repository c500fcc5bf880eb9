"""Tables, a row per box: columns are told by their usual names, or by --columns image=Name,x1=Left,...; and CSV and TSV.

Corners, or a corner with width and height, or a centre with them; in pixels, or relative to the image where all numbers
lie in 0..1 (OpenImages), or as `units=pixels` or `units=relative` says. Decimal commas are understood. Where columns state
the size of the images, their headers need not be read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Floats, Integers, PackedNames
from roialign_cli.errors import ConfigError
from roialign_cli.inputs.boxes.common import Column, Source, column, format_error, index_unique

Numbers = npt.NDArray[np.float64]

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
    "image_width": ("imagewidth", "imgwidth", "imagew", "imgw"),
    "image_height": ("imageheight", "imgheight", "imageh", "imgh"),
}  # fmt: skip
FORMS = (("x1", "y1", "x2", "y2"), ("cx", "cy", "w", "h"), ("x1", "y1", "w", "h"), ("x", "y", "w", "h"))
SIZES = ("image_width", "image_height")
ROWS_AT_ONCE = 1 << 18
UNITS = ("pixels", "relative")
DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+([eE][-+]?\d+)?\s*")


@dataclass(frozen=True)
class ColumnMapping:
    """Which column is what, the form of the boxes among FORMS, and the units if they are said."""

    names: Mapping[str, str]
    form: tuple[str, str, str, str]
    units: str

    @property
    def states_sizes(self) -> bool:
        """Whether columns state the size of the images."""
        return all(what in self.names for what in SIZES)

    def relative(self, between: bool) -> bool:
        """Whether boxes are relative to their image, if all do or do not lie between 0 and 1."""
        return self.units == "relative" or (not self.units and between)


def map_columns(source: Source, names: list[str]) -> ColumnMapping:
    """Find the columns; InputError: some are missing, ConfigError: --columns makes no sense."""
    found, explicit, units = _match_columns(source, names)
    form = next((form for form in FORMS if all(name in found for name in form)), None)
    if form is None or "image" not in found:
        needed = "an image column and x1, y1, x2, y2, or x, y, w, h, or cx, cy, w, h"
        expected = f"expected {needed}, found {', '.join(names)}"
        raise format_error(
            source.path, expected, "say which is which: --columns image=File,x1=Left,y1=Top,x2=Right,y2=Bottom"
        )
    for what in (*form, "image", "label", "score", "id", *SIZES):
        if what in found:
            _check_once(source, what, found[what], names, what in explicit)
    return ColumnMapping(found, form, units)


def _check_once(source: Source, what: str, name: str, names: list[str], explicit: bool) -> None:
    """Raise InputError if two columns have a name that is used, so that one of them would be ignored silently."""
    unify_types = [
        other for other in names if other == name or (not explicit and normalise_name(other) == normalise_name(name))
    ]
    if len(unify_types) > 1:
        expected = f"expected one column {name!r}, found {len(unify_types)}: {', '.join(unify_types)}"
        raise format_error(source.path, expected, f"rename one, or say which is meant: --columns {what}=NAME")


def normalise_name(name: str) -> str:
    """The letters and digits of a name of a column, by which it is known."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def resolve_images(
    source: Source, names: PackedNames, owner: npt.NDArray[np.integer]
) -> tuple[PackedNames, npt.NDArray[np.integer]]:
    """The images that names mean, of which several may mean the same one."""
    found = source.images.find_all(names)
    if found is names:
        return names, owner
    images, which = index_unique(found)
    return images, which[owner]


def to_corners(form: tuple[str, str, str, str], a: Numbers, b: Numbers, c: Numbers, d: Numbers) -> Numbers:
    """Boxes [n, 4] as x1, y1, x2, y2 of four columns [n]."""
    if form[0] == "cx":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif form[2] == "w":
        c, d = a + c, b + d
    return np.stack([a, b, c, d], axis=1)


def looks_relative(boxes: Floats) -> bool:
    """Whether all numbers lie in 0..1, and not all are whole: those of no pixels."""
    fractions = False
    for begin in range(0, len(boxes), ROWS_AT_ONCE):
        some = boxes[begin : begin + ROWS_AT_ONCE]
        if not ((some >= 0) & (some <= 1)).all():
            return False
        fractions = fractions or bool((some != np.rint(some)).any())
    return fractions


def sizes_of(
    source: Source, images: PackedNames, rows: Iterable[tuple[npt.NDArray[np.integer], Mapping[str, Numbers]]]
) -> Integers | None:
    """(height, width) of each image [M, 2] as its rows state; None where some is not a size. InputError: rows disagree."""
    sizes = np.zeros((len(images), 2), np.int64)
    for owner, given in rows:
        stated = np.stack([given["image_height"], given["image_width"]], axis=1)
        if not (stated > 0).all() or not (stated == np.rint(stated)).all() or (stated >= 2**31).any():
            return None
        before = sizes[owner]
        sizes[owner] = stated
        differ = ((before > 0) & (before != stated)).any(axis=1) | (sizes[owner] != stated).any(axis=1)
        if differ.any():
            image = int(owner[differ.argmax()])
            raise format_error(source.path, f'"{images[image]}": expected one size in all its rows, found several')
    return sizes


def _match_columns(source: Source, names: list[str]) -> tuple[dict[str, str], set[str], str]:
    """Which column is what, which of those are said by --columns, and the units if they are said."""
    given: dict[str, str] = {}
    for part in source.settings.columns.split(",") if source.settings.columns else ():
        what, equals, name = part.partition("=")
        what, name = what.strip(), name.strip()
        if not equals or what not in (*KNOWN, "units"):
            expected = f"expected WHAT=NAME with one of {', '.join(KNOWN)}, units"
            raise ConfigError("config-value", f"columns: {expected}, found {part!r}")
        if name not in (UNITS if what == "units" else names):
            raise format_error(
                source.path,
                f"columns: expected one of {', '.join(UNITS if what == 'units' else names)}, found {name!r}",
            )
        given[what] = name
    plain = {normalise_name(name): name for name in reversed(names)}
    guessed = {
        what: plain[alias] for what, aliases in KNOWN.items() for alias in reversed(aliases) if alias in plain
    }  # the first alias wins
    units = given.pop("units", "")
    return {**guessed, **given}, set(given), units


def number_column(source: Source, name: str, values: Sequence[Any], first: int = 2) -> Numbers:
    """A column [n] as numbers, or InputError naming the row, counted from `first`."""
    try:
        return np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        found = []
    for number, value in enumerate(values, first):
        text = value.replace(",", ".") if isinstance(value, str) and DECIMAL_COMMA.fullmatch(value) else value
        try:
            found.append(float(text))
        except (ValueError, TypeError, OverflowError):
            raise format_error(f"{source.path}: row {number}", f"{name}: expected a number, found {value!r}") from None
    return np.array(found, np.float64)


def text_column(values: Sequence[Any]) -> Column:
    """A column [n] of labels or ids."""
    return column([_whole(value) for value in values])


def _whole(value: Any) -> int | str:
    """A label or id: whole numbers as such, everything else as text."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text) else text
    if isinstance(value, int):
        return int(value)
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else str(value)
