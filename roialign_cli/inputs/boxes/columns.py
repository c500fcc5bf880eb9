"""Interpret tables with a row per box: columns are found by their usual names, or by --columns.

--columns maps some by their names, as image=File,x1=Left, or names all of them in their order, as "label score x1 y1 x2 y2",
for tables without a header.

Boxes are corners, a corner with width and height, or a centre with width and height. They are in pixels, or relative to
the image if all numbers lie in 0..1 (as in OpenImages); `units=pixels` or `units=relative` overrides this. Decimal commas
are accepted. If columns state the size of the images, the image headers are not read. Columns px1, py1,
pv1, px2, ... hold points.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers, PackedNames
from roialign_cli.errors import ConfigError, quoted
from roialign_cli.inputs.boxes.common import Column, Source, as_column, format_error, index_unique
from roialign_cli.inputs.boxes.units import Numbers, Units

COLUMN_ALIASES = {  # column names by role, as `normalise_name` returns them; the first alias that a table has wins
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
    "angle": ("angle",),
    "image_width": ("imagewidth", "imgwidth", "imagew", "imgw"),
    "image_height": ("imageheight", "imgheight", "imageh", "imgh"),
}  # fmt: skip
BOX_LAYOUTS = (("x1", "y1", "x2", "y2"), ("cx", "cy", "w", "h"), ("x1", "y1", "w", "h"), ("x", "y", "w", "h"))
IGNORED = "_"  # stands for a column that is not read
# Columns of usual tables that say nothing about a box, and are not worth a note.
UNUSED_COLUMNS = frozenset({"source", "isoccluded", "istruncated", "isgroupof", "isdepiction", "isinside", "", "index"})
POINT_ROLE = re.compile(r"p([xyv])(\d{1,4})")  # x, y or visibility of a point
SIZE_ROLES = ("image_width", "image_height")
UNITS = ("pixels", "relative")
DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+([eE][-+]?\d+)?\s*")


@dataclass(frozen=True)
class ColumnMapping:
    """The roles of a table's columns."""

    names: Mapping[str, str]  # column name by role
    layout: tuple[str, str, str, str]  # roles of the four columns of a box, one of BOX_LAYOUTS
    units: str  # one of UNITS, or empty if --columns does not say
    box_units: str  # what --box-units says, or empty
    notes: tuple[str, ...] = ()  # columns that are not read
    points: tuple[tuple[str, ...], ...] = ()  # roles of the columns of each point: x, y and perhaps visibility

    @property
    def region_roles(self) -> tuple[str, ...]:
        """Return the roles of the columns of angles and points."""
        angle = ("angle",) if "angle" in self.names else ()
        return (*angle, *(role for point in self.points for role in point))

    @property
    def states_sizes(self) -> bool:
        """Return whether columns state the size of the images."""
        return all(role in self.names for role in SIZE_ROLES)

    def units_of(self, values_look_relative: bool) -> Units:
        """Return the units of boxes; if nobody states whether they are relative, their values decide.

        Raises InputError for relative boxes with an angle: it says nothing without the sides of the image.
        """
        if self.box_units:
            return Units.parse(self.box_units)
        if "angle" in self.names and not self.units and values_look_relative:
            message = "expected x, y, w, h or cx, cy, w, h in pixels beside an angle, found shares of the image"
            raise format_error("columns", message, "--columns units=pixels reads them as pixels")
        relative = self.units == "relative" or (not self.units and "angle" not in self.names and values_look_relative)
        return Units("cxcywh" if self.layout[0] == "cx" else "xywh" if self.layout[2] == "w" else "xyxy", relative)


def map_columns(source: Source, names: list[str]) -> ColumnMapping:
    """Find the roles of the columns. Raises InputError if some are missing or ambiguous, ConfigError for bad --columns."""
    found, explicit, units = _match_columns(source, names)
    layout = next((layout for layout in BOX_LAYOUTS if all(role in found for role in layout)), None)
    if layout is None or "image" not in found:
        needed = "an image column and x1, y1, x2, y2, or x, y, w, h, or cx, cy, w, h"
        expected = f"expected {needed}, found {', '.join(names)}"
        raise format_error(
            source.path, expected, "name the columns: --columns image=File,x1=Left,y1=Top,x2=Right,y2=Bottom"
        )
    points = _point_roles(source, set(found)) if source.region == "points" else ()
    used = [
        role
        for role in (
            *(role for point in points for role in point),
            *layout,
            "image",
            "label",
            "score",
            "id",
            "angle",
            *SIZE_ROLES,
        )
        if role in found
    ]
    for role in used:
        _check_unambiguous(source, role, found[role], names, role in explicit)
    if "angle" in used and (layout[2] != "w" or units == "relative" or source.settings.box_units):
        expected = "expected x, y, w, h or cx, cy, w, h in pixels beside an angle"
        raise format_error(source.path, f"{expected}, found {', '.join(layout)}")
    known = {found[role] for role in used} | {IGNORED}
    unknown = [name for name in names if name not in known and normalise_name(name) not in UNUSED_COLUMNS]
    notes = []
    if unknown:
        example = "" if "label" in used else f"; --columns label={unknown[0]} would make one the label"
        notes.append(f"columns that are not read: {', '.join(unknown)}{example}")
    return ColumnMapping(found, layout, units, source.settings.box_units, tuple(notes), points)


def _point_roles(source: Source, found: set[str]) -> tuple[tuple[str, ...], ...]:
    """Return the roles of each point, in the order of their numbers. Raises InputError if one lacks a column."""
    numbers = sorted({int(match[2]) for role in found if (match := POINT_ROLE.fullmatch(role))})
    with_visibility = any(f"pv{number}" in found for number in numbers)
    points = tuple(tuple(f"p{what}{number}" for what in ("xyv" if with_visibility else "xy")) for number in numbers)
    missing = next((role for point in points for role in point if role not in found), None)
    if missing is not None:
        raise format_error(source.path, f"expected a column {missing} beside those of other points, found none")
    return points


def positional_columns(source: Source) -> list[str] | None:
    """Return the columns that --columns names in their order, or None if it maps columns by their names.

    Raises ConfigError for words that are not roles of columns.
    """
    text = source.settings.columns
    if not text or "=" in text:
        return None
    roles = [word for word in re.split(r"[\s,]+", text.strip()) if word]
    for role in roles:
        if role not in COLUMN_ALIASES and role != IGNORED and not POINT_ROLE.fullmatch(role):
            known = f"{', '.join(COLUMN_ALIASES)}, or {IGNORED} for a column that is not read"
            expected = f"expected WHAT=NAME,..., or all columns in order, each one of {known}"
            raise ConfigError("config-value", f"columns: {expected}; found {role!r}")
    return roles


def _check_unambiguous(source: Source, role: str, name: str, names: list[str], explicit: bool) -> None:
    """Raise InputError if two columns match a name that is used, because one of them would be ignored silently."""
    matching = [
        other for other in names if other == name or (not explicit and normalise_name(other) == normalise_name(name))
    ]
    if len(matching) > 1:
        expected = f"expected one column {name!r}, found {len(matching)}: {', '.join(matching)}"
        raise format_error(source.path, expected, f"rename one, or choose one: --columns {role}=NAME")


def normalise_name(name: str) -> str:
    """Return the lower-case letters and digits of a column name, by which it is compared with COLUMN_ALIASES."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def resolve_images(
    source: Source, names: PackedNames, owner: npt.NDArray[np.integer]
) -> tuple[PackedNames, npt.NDArray[np.integer]]:
    """Return the images that names refer to, and the image of each row; several names may refer to the same image."""
    found = source.images.find_all(names)
    if found is names:
        return names, owner
    images, index = index_unique(found)
    return images, index[owner]


class RelativeEvidence:
    """Tell from the numbers of boxes, block by block, whether they are relative: all lie in 0..1, and some are fractions."""

    def __init__(self) -> None:
        self._all_within = True
        self._has_fractions = False

    def add(self, numbers: Numbers) -> None:
        """Take the numbers of more boxes into account."""
        self._all_within = self._all_within and bool(((numbers >= 0) & (numbers <= 1)).all())
        self._has_fractions = self._has_fractions or bool((numbers != np.rint(numbers)).any())

    @property
    def looks_relative(self) -> bool:
        """Return whether the numbers so far cannot be pixels."""
        return self._all_within and self._has_fractions


def known_scores(scores: Numbers, mapping: ColumnMapping) -> tuple[Numbers | None, tuple[str, ...]]:
    """Return scores [N] and the notes of a table; if some rows have no score (NaN), none are returned, with a note."""
    missing = int(np.isnan(scores).sum())
    if not missing:
        return scores, mapping.notes
    if missing == len(scores):
        return None, mapping.notes
    note = f"scores are not read: {missing} of {len(scores)} rows have none in column {mapping.names['score']}"
    return None, (*mapping.notes, note)


def collect_sizes(
    source: Source, images: PackedNames, rows: Iterable[tuple[npt.NDArray[np.integer], Mapping[str, Numbers]]]
) -> Integers | None:
    """Return the sizes [M, 2] as (height, width) that rows state for their images, or None if some are not valid sizes.

    `rows` are blocks of rows: the image of each row, and the numbers of SIZE_ROLES. Raises InputError if two rows of an
    image disagree.
    """
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
    """Return the column name by role, the roles that --columns sets, and the units, empty if --columns does not say."""
    given: dict[str, str] = {}
    text = "" if positional_columns(source) else source.settings.columns
    for part in text.split(",") if text else ():
        role, equals, name = part.partition("=")
        role, name = role.strip(), name.strip()
        if not equals or (role not in (*COLUMN_ALIASES, "units") and not POINT_ROLE.fullmatch(role)):
            expected = f"expected WHAT=NAME with one of {', '.join(COLUMN_ALIASES)}, units"
            raise ConfigError("config-value", f"columns: {expected}, found {part!r}")
        if name not in (UNITS if role == "units" else names):
            raise format_error(
                source.path,
                f"columns: expected one of {', '.join(UNITS if role == 'units' else names)}, found {name!r}",
            )
        given[role] = name
    normalised = {normalise_name(name): name for name in reversed(names)}
    guessed = {
        role: normalised[alias]
        for role, aliases in COLUMN_ALIASES.items()
        for alias in reversed(aliases)
        if alias in normalised
    }
    guessed |= {name: original for name, original in normalised.items() if POINT_ROLE.fullmatch(name)}
    units = given.pop("units", "")
    return {**guessed, **given}, set(given), units


def number_column(
    source: Source, name: str, values: Sequence[Any], first: int = 2, *, optional: bool = False
) -> Numbers:
    """Return a column [n] as numbers; with `optional`, empty fields become NaN.

    Raises InputError naming the first wrong row, counted from `first`.
    """
    try:
        return np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        found = []
    for number, value in enumerate(values, first):
        text = value.replace(",", ".") if isinstance(value, str) and DECIMAL_COMMA.fullmatch(value) else value
        if optional and (value is None or value == ""):
            text = math.nan
        try:
            found.append(float(text))
        except (ValueError, TypeError, OverflowError):
            raise format_error(
                f"{source.path}: row {number}", f"{name}: expected a number, found {quoted(value)}"
            ) from None
    return np.array(found, np.float64)


def text_column(values: Sequence[Any]) -> Column:
    """Return a column [n] of labels or ids, as int64 if all of them are whole numbers."""
    return as_column([_integer_or_text(value) for value in values])


def _integer_or_text(value: Any) -> int | str:
    """Return a label or id as int if it is a whole number, otherwise as text, which is empty if there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text) else text
    if isinstance(value, int):
        return int(value)
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else str(value)
