"""The shared parts of formats with a text file per image: which files, for which images, with which class names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from roialign_cli.inputs.boxes.common import Source, format_error
from roialign_cli.system.safe_read import YamlError, read_yaml, require_regular_file

OTHER_TEXT_FILES = {  # text files beside the labels that are not labels
    "classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt", "predefined_classes.txt",
}  # fmt: skip
CLASS_FILE_PATTERNS = ("classes.txt", "obj.names", "*.names", "data.yaml", "dataset.yaml")
FOLDERS_UP = 3  # searched for class names: labels/train beside data.yaml is two below it


def label_files(source: Source) -> list[Path]:
    """Return the file itself, or the text files below the folder that hold labels, sorted by path."""
    return [path for path in source.files(".txt") if path.name not in OTHER_TEXT_FILES]


def find_image(source: Source, path: Path) -> tuple[str, bool]:
    """Return the image of a text file by its stem, and whether there is one; otherwise the name that it should have."""
    relative = path.relative_to(source.path) if source.is_folder else Path(path.name)
    image = source.images.find_by_stem(relative.with_suffix("").as_posix())
    return image or relative.with_suffix(".jpg").as_posix(), image is not None


def read_lines(source: Source, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of every line that is not empty. Raises InputError if the file is not text."""
    try:
        content = path.read_bytes() if source.is_folder else source.read()
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise format_error(path, f"expected lines of numbers, found: {error}") from None
    return ((number, fields) for number, line in enumerate(lines, 1) if (fields := line.split()))


def class_names(source: Source) -> list[str]:
    """Return the class names by number, or an empty list if there is no file of class names."""
    if source.settings.classes:
        return _read_class_names(Path(source.settings.classes))
    folder = (source.path if source.is_folder else source.path.parent).absolute()
    for candidate in (folder, *folder.parents)[:FOLDERS_UP]:
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
