"""Read YOLO, a text file per image with a line per box: class, centre x, centre y, width, height, relative to the image.

A sixth number is a score; a polygon of three corners or more (segmentation) is replaced by its bounding box. Class names
come from --classes, or from classes.txt, obj.names, *.names, data.yaml or dataset.yaml beside the labels or one folder up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roialign_cli.inputs.boxes.common import Entry, Source, format_error, table_from_entries
from roialign_cli.system.safe_read import YamlError, read_yaml, require_regular_file
from roialign_cli.types import BoxTable

OTHER_TEXT_FILES = {  # text files beside the labels that are not labels
    "classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt", "predefined_classes.txt",
}  # fmt: skip
CLASS_FILE_PATTERNS = ("classes.txt", "obj.names", "*.names", "data.yaml", "dataset.yaml")


def read(source: Source) -> BoxTable:
    """Read files sorted by path. Raises InputError.

    If some of the files have no image, their boxes are read and their images count as missing; if none of the files has
    an image, that is an error.
    """
    paths = [path for path in source.files(".txt") if path.name not in OTHER_TEXT_FILES]
    names = class_names(source)
    entries, without_image = [], []
    for path in paths:
        relative = path.relative_to(source.path) if source.path.is_dir() else Path(path.name)
        image = source.images.find_by_stem(relative.with_suffix("").as_posix())
        if image is None:
            without_image.append(relative)
        entries.append(_read_file(path, image or relative.with_suffix(".jpg").as_posix(), names))
    if len(without_image) == len(paths):
        found = f'found no image for "{without_image[0]}"' if without_image else "found no .txt file"
        raise format_error(source.path, f"expected YOLO label files of the images, {found}")
    return table_from_entries(source, entries, relative=True)


def class_names(source: Source) -> list[str]:
    """Return the class names by number, or an empty list if there is no file of class names."""
    if source.settings.classes:
        return _read_class_names(Path(source.settings.classes))
    folder = source.path if source.path.is_dir() else source.path.parent
    for candidate in (folder, folder.parent):
        for pattern in CLASS_FILE_PATTERNS:
            found = sorted(candidate.glob(pattern))
            if found:
                return _read_class_names(found[0])
    return []


def _read_class_names(path: Path) -> list[str]:
    """Read a name per line, or `names:` of a YAML file, which is a list or a mapping from numbers."""
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


def _read_file(path: Path, image: str, names: list[str]) -> Entry:
    boxes: list[list[float]] = []
    labels: list[int | str] = []
    scores: list[float] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise format_error(path, f"expected lines of numbers, found: {error}") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        expected = "expected class, centre x, centre y, width, height, relative to the image"
        try:
            values = [float(field) for field in fields]
        except ValueError:
            values = [-1.0]  # not a class, so that the check below raises
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
        class_index = int(values[0])
        if names and class_index >= len(names):
            expected = f"expected one of {len(names)} classes, numbered from 0"
            raise format_error(f"{path}: line {number}", f"{expected}, found {class_index}")
        labels.append(names[class_index] if names else class_index)
    if scores and len(scores) < len(boxes):
        raise format_error(path, "expected a score on every line or on none, found both")
    return Entry(image, np.array(boxes, np.float64).reshape(-1, 4), labels, scores or None)
