"""YOLO: a text file per image, a line per box: class, centre x, centre y, width, height, relative to the image.

A sixth number is a score; a class with three corners or more (segmentation) counts by its bounding box. Class names come
from --classes or, beside or above the labels, classes.txt, obj.names, *.names or data.yaml.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roialign_cli.inputs.boxes.common import Entry, Source, format_error, table_from_entries
from roialign_cli.system.safe_read import YamlError, read_yaml, require_regular_file
from roialign_cli.types import BoxTable

NOT_LABELS = {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt", "predefined_classes.txt"}


def read(source: Source) -> BoxTable:
    """Files in order of their names; those that no image belongs to are errors only if none has one."""
    paths = [path for path in source.files(".txt") if path.name not in NOT_LABELS]
    names = class_names(source)
    entries, strangers = [], []
    for path in paths:
        inside = path.relative_to(source.path) if source.path.is_dir() else Path(path.name)
        image = source.images.find_by_stem(inside.with_suffix("").as_posix())
        if image is None:
            strangers.append(inside)
        entries.append(_file(path, image or inside.with_suffix(".jpg").as_posix(), names))
    if len(strangers) == len(paths):
        found = f'found no image called as "{strangers[0]}"' if strangers else "found no .txt file"
        raise format_error(source.path, f"expected YOLO label files of the images, {found}")
    return table_from_entries(source, entries, relative=True)


def class_names(source: Source) -> list[str]:
    """Names by class number, or none."""
    if source.settings.classes:
        return _names(Path(source.settings.classes))
    folder = source.path if source.path.is_dir() else source.path.parent
    for place in (folder, folder.parent):
        for pattern in ("classes.txt", "obj.names", "*.names", "data.yaml", "dataset.yaml"):
            found = sorted(place.glob(pattern))
            if found:
                return _names(found[0])
    return []


def _names(path: Path) -> list[str]:
    """A name per line, or `names:` of a YAML file, a list or numbered."""
    try:
        if path.suffix not in (".yaml", ".yml"):
            return [
                line.strip()
                for line in require_regular_file(path).read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        names = read_yaml(path)["names"]
        return [str(names[i]) for i in range(len(names))]
    except YamlError as error:
        raise format_error(path, str(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise format_error(path, f"expected class names, found: {error}") from None
    except (TypeError, KeyError) as error:
        raise format_error(path, f"expected `names:`, a list or numbered from 0, found: {error!r}") from None


def _file(path: Path, image: str, names: list[str]) -> Entry:
    boxes: list[list[float]] = []
    labels: list[int | str] = []
    scores: list[float] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise format_error(path, f"expected lines of numbers, found: {error}") from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        expected = "expected class, centre x, centre y, width, height, relative to the image"
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = [-1.0]
        if not values[0].is_integer() or values[0] < 0:
            raise format_error(f"{path}: line {number}", f"{expected}, found {line.strip()[:80]!r}")
        if len(values) in (5, 6):
            _, x, y, width, height = values[:5]
            boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            scores += values[5:]
        elif len(values) >= 7 and len(values) % 2:
            xs, ys = values[1::2], values[2::2]
            boxes.append([min(xs), min(ys), max(xs), max(ys)])
        else:
            raise format_error(f"{path}: line {number}", f"{expected}, found {len(values)} numbers")
        kind = int(values[0])
        if names and kind >= len(names):
            raise format_error(f"{path}: line {number}", f"expected one of {len(names)} classes, from 0, found {kind}")
        labels.append(names[kind] if names else kind)
    if scores and len(scores) < len(boxes):
        raise format_error(path, "expected a score on every line or on none, found both")
    return Entry(image, np.array(boxes, np.float64).reshape(-1, 4), labels, scores or None)
