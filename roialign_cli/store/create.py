"""Make a feature file from boxes and features of one's own, laid out and checked as those of `roialign extract`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import PackedNames, is_text, unsafe_name
from roialign_cli.errors import InputError, OutputError, quoted
from roialign_cli.store.identity import table_sha256
from roialign_cli.store.layout import Layout, check_space, create_file
from roialign_cli.store.schema import features_path
from roialign_cli.store.writer import open_writer
from roialign_cli.system.atomic import replace_atomically
from roialign_cli.types import BoxTable, Plan
from roialign_cli.version import __version__

Features = npt.ArrayLike | Mapping[str, npt.ArrayLike]  # of one image; with several layers, by their names
Column = Mapping[str, Sequence[Any]]  # by image
ONE_LAYER = "features"


def create(
    path: Path,
    boxes: Mapping[str, npt.ArrayLike],
    features: Mapping[str, Features] | Iterable[tuple[str, Features]],
    sizes: Mapping[str, tuple[int, int]],
    columns: Mapping[str, Column | None],
    attributes: Mapping[str, str],
    *,
    overwrite: bool,
) -> None:
    """Write a feature file; see `FeatureFile.create`."""
    if path.exists() and not overwrite:
        raise OutputError("output-exists", f"{path}: expected nothing there, found a file", "overwrite=True")
    table = _table(boxes, columns)
    plan = Plan(table, _sizes(table.names, sizes), {}, 0, 0, 0, table_sha256=table_sha256(table))
    items = iter(features.items() if isinstance(features, Mapping) else features)
    first = next(items, None)
    if first is None:
        raise InputError("features-own", f"{path}: expected features of at least one image, found none")
    example = _by_layer(*first)
    layout = Layout(
        layers={layer: rows.shape[1:] for layer, rows in example.items()},
        dtype=str(next(iter(example.values())).dtype),
        levels=False,
        attributes={**_attributes(plan, example), **attributes},
        versions=False,
    )
    check_space(path, layout.feature_bytes(plan.rows))
    with replace_atomically(path) as partial:
        create_file(partial, plan, layout)
        _fill(partial, plan, layout, chain([first], items))


def _fill(path: Path, plan: Plan, layout: Layout, items: Iterator[tuple[str, Features]]) -> None:
    """Write the features of every image, which come in any order; images without boxes need none."""
    table, dtype = plan.table, np.dtype(layout.dtype)
    left = {name: i for i, name in enumerate(table.names)}
    with open_writer(path) as writer:
        for name, given in items:
            image = left.pop(name, None)
            if image is None:
                raise _error(name, "an image that has boxes, once", "another, or one twice")
            rows, found = table.rows_of(image), _by_layer(name, given)
            expected = {layer: (rows.stop - rows.start, *shape) for layer, shape in layout.layers.items()}
            shapes = {layer: values.shape for layer, values in found.items()}
            if shapes != expected or any(values.dtype != dtype for values in found.values()):
                kinds = sorted({str(values.dtype) for values in found.values()})
                raise _error(name, f"{_listed(expected)} of {dtype}", f"{_listed(shapes)} of {', '.join(kinds)}")
            writer.begin(image)
            for layer in layout.layers:
                writer.features(features_path(layer, len(layout.layers)), image, rows.start, found[layer])
            wrong = sum(int((~np.isfinite(values)).sum()) for values in found.values())
            writer.done(image, f"{wrong} values not finite" if wrong else "")
        counts = np.diff(table.offset)
        for name, image in left.items():
            if counts[image]:
                raise _error(name, f"features of its {counts[image]} boxes", "none")
            writer.done(image)


def _by_layer(name: str, given: Features) -> dict[str, npt.NDArray[Any]]:
    """Return copies of the features of an image by layer, since they are written later. Raises InputError."""
    layers = given if isinstance(given, Mapping) else {ONE_LAYER: given}
    found = {}
    for layer, values in layers.items():
        try:
            array = np.asarray(values).copy(order="C")
        except (TypeError, ValueError, RuntimeError) as error:  # torch's, of tensors on a GPU or with gradients
            raise _error(name, "arrays, or tensors on the CPU without gradients", str(error)) from None
        if array.dtype not in (np.float32, np.float16) or array.ndim not in (2, 4) or 0 in array.shape[1:]:
            shape = f"{list(array.shape)} of {array.dtype}"
            raise _error(name, "[boxes, C] or [boxes, C, PH, PW] of float32 or float16", shape)
        found[layer] = array
    if not found or not all(isinstance(layer, str) and layer and "/" not in layer for layer in found):
        raise _error(name, "layers with names", quoted(list(found)))
    return found


def _table(boxes: Mapping[str, npt.ArrayLike], columns: Mapping[str, Column | None]) -> BoxTable:
    """Return the table of boxes [L, 4] and their columns by image. Raises InputError."""
    names = PackedNames.from_strings(boxes)
    if (wrong := unsafe_name(names)) is not None:
        raise InputError("image-name", f"expected names of images relative to their folder, inside it, found {wrong!r}")
    of_image = []
    for name, values in boxes.items():
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _error(name, "boxes [L, 4]", str(error)) from None
        array = array.reshape(0, 4) if array.size == 0 else array
        if array.ndim != 2 or array.shape[1] != 4:
            raise _error(name, "boxes [L, 4]", f"the shape {list(array.shape)}")
        if not np.isfinite(array).all() or (array[:, 2:] < array[:, :2]).any():
            raise _error(name, "finite boxes with x1 <= x2 and y1 <= y2", quoted(array.tolist()))
        of_image.append(array)
    offset = np.cumsum([0, *map(len, of_image)], dtype=np.int64)

    counts = dict(zip(boxes, map(len, of_image), strict=True))
    joined: dict[str, Any] = {what: _join(what, given, counts) for what, given in columns.items() if given is not None}
    return BoxTable(names, offset, np.concatenate([*of_image, np.empty((0, 4), np.float32)]), **joined)


def _join(what: str, column: Column, counts: Mapping[str, int]) -> npt.NDArray[Any]:
    """Return a column [N] of all images; numbers as int64 or, of scores, float32, and everything else as text."""
    joined: list[Any] = []
    for name, count in counts.items():
        # Not as an array, which would cut text at NUL.
        values = [value.item() if hasattr(value, "item") else value for value in column.get(name, ())]
        if len(values) != count:
            raise _error(name, f"{count} {what}", str(len(values)))
        joined += values
    if what == "scores":
        return _scores(joined)
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in joined):
        return np.array(joined, np.int64)
    wrong = next((value for value in joined if not isinstance(value, str | int | float)), None)
    if wrong is not None or None in joined:
        raise InputError("features-own", f"{what}: expected numbers or text, found {quoted(wrong)}")
    text = [str(value) for value in joined]
    if not all(is_text(value) and "\0" not in value for value in text):
        raise InputError("features-own", f"{what}: expected Unicode text without NUL")
    return np.array(text)


def _scores(values: list[Any]) -> npt.NDArray[np.float32]:
    """Return scores as float32. Raises InputError for values that are no finite numbers."""
    try:
        with np.errstate(over="ignore"):
            found = np.array(values, np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError("features-own", f"scores: expected numbers, found: {error}") from None
    if not np.isfinite(found).all():
        wrong = values[int((~np.isfinite(found)).argmax())]
        raise InputError("features-own", f"scores: expected finite numbers, found {wrong}")
    return found


def _sizes(names: PackedNames, sizes: Mapping[str, tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Return (height, width) of every image [M, 2]. Raises InputError."""
    found = np.zeros((len(names), 2), np.int64)
    for i, name in enumerate(names):
        size = sizes.get(name)
        if size is None or len(size) != 2 or not all(float(side).is_integer() and 1 <= side < 2**31 for side in size):
            raise _error(name, "its size (height, width)", "none" if size is None else quoted(tuple(size)))
        found[i] = size
    return found


def _attributes(plan: Plan, example: Mapping[str, Any]) -> dict[str, str]:
    """Return the attributes that every feature file has."""
    return {
        "created_by": f"roialign {__version__}, FeatureFile.create",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": "{}",
        "backbone": "",
        "weights": "",
        "weights_sha256": "",
        "boxes_sha256": "",
        "table_sha256": plan.table_sha256,
        "strides": json.dumps({layer: [1] for layer in example}),
        "preprocessing": "{}",
        "versions": json.dumps({"numpy": version("numpy")}),
    }


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{layer} {list(shape)}" for layer, shape in shapes.items())


def _error(name: str, expected: str, found: str) -> InputError:
    return InputError("features-own", f'"{name}": expected {expected}, found {found}')
