"""Find the images that IMAGES names: a folder, an image, a pattern, a list of paths, or archives."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from roialign_cli.arrays import PackedNames
from roialign_cli.errors import InputError
from roialign_cli.inputs.images.archive import ImageArchives
from roialign_cli.inputs.images.folder import ImageFolder, SelectedImages
from roialign_cli.inputs.images.image_set import ImageSet, has_image_suffix

ARCHIVE_SUFFIXES = frozenset({".zip", ".tar"})
COMPRESSED_TAR = re.compile(r".*\.(tgz|tbz2|txz|tar\.(gz|bz2|xz|zst))", re.IGNORECASE)
BOX_SUFFIXES = frozenset({".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xml", ".npz"})
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash, since a Path has merged two into one
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
EXPECTED = "expected a folder of images, an image, a pattern, a list of paths (.txt), or .zip and .tar archives"


def open_images(images: ImageSet | str | Path, boxes: Path | None = None) -> ImageSet:
    """Return the images that a path or pattern names. An existing path wins over a pattern.

    Raises InputError, which says so if the images and `boxes` are swapped.
    """
    if isinstance(images, ImageSet):
        return images
    path = Path(images)
    if boxes is not None and path.is_file() and path.suffix.lower() in BOX_SUFFIXES and _names_images(boxes):
        found = f"found {path} and {boxes}"
        raise InputError("images-swapped", f"expected images, then boxes, {found}", f"swap them: {boxes} {path}")
    return _open(str(images), path)


def _names_images(path: Path) -> bool:
    """Return whether a path is a folder, or a file of images."""
    return path.is_dir() or has_image_suffix(os.fsencode(path.name)) or path.suffix.lower() in ARCHIVE_SUFFIXES


def _open(text: str, path: Path) -> ImageSet:
    if path.is_dir():
        return ImageFolder(path)
    if path.exists():
        return _open_file(path)
    if ADDRESS.match(text):
        hint = "download it, or mount it as a folder"
        raise InputError("images-address", f"{text}: expected a path on this machine, found an address", hint)
    if glob.has_magic(text) or BRACES.search(text):
        return _match_pattern(text)
    raise InputError("images-folder", f"{text}: {EXPECTED}, found nothing there")


def _open_file(path: Path) -> ImageSet:
    """Return the images of a single file: itself, the members of an archive, or those of a list."""
    if path.suffix.lower() in ARCHIVE_SUFFIXES:
        return ImageArchives(str(path), [path])
    if COMPRESSED_TAR.fullmatch(path.name):
        found = "found a compressed one, whose members cannot be read one by one"
        raise InputError(
            "images-archive",
            f"{path}: expected a plain tar archive, {found}",
            f"gunzip {path}" if path.suffix == ".gz" else "decompress it to .tar",
        )
    if has_image_suffix(os.fsencode(path.name)):
        return SelectedImages(str(path), path.parent, PackedNames.from_strings([path.name]))
    if path.suffix.lower() in LIST_SUFFIXES:
        return _read_list(path)
    raise InputError("images-folder", f"{path}: {EXPECTED}, found another file")


def _match_pattern(pattern: str) -> ImageSet:
    """Return the images or archives that match a pattern of *, ?, [...], ** and {a,b} or {000..099}.

    Names of images are relative to the folder before the first such character.
    """
    patterns = list(_expand_braces(pattern))
    matched = {path for one in patterns for path in glob.glob(one, recursive=True)}  # noqa: PTH207 - Path.glob takes no ..
    paths = sorted(path for path in matched if Path(path).is_file())
    archives = [Path(path) for path in paths if Path(path).suffix.lower() in ARCHIVE_SUFFIXES]
    if archives:
        if missing := [one for one in patterns if not glob.has_magic(one) and not Path(one).exists()]:
            raise InputError(
                "images-archive", f"{pattern}: expected {len(patterns)} archives, {missing[0]} is not there"
            )
        return ImageArchives(pattern, archives)
    images = [path for path in paths if has_image_suffix(os.fsencode(Path(path).name))]
    if not images:
        raise InputError("images-folder", f"{pattern}: expected images or archives that match, found none")
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part) and "{" not in part, Path(pattern).parts[:-1])
    return _select(pattern, Path(*fixed), images)


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield a pattern for each alternative of {a,b} and each number of {000..099}, as shells and webdataset expand them."""
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    numbers = RANGE.fullmatch(found[1])
    if numbers:
        width, first, last = len(numbers[1]), int(numbers[1]), int(numbers[2])
        parts = [f"{number:0{width}}" for number in range(first, last + 1)]
    else:
        parts = found[1].split(",")
    for part in parts:
        yield from _expand_braces(pattern[: found.start()] + part + pattern[found.end() :])


def _read_list(path: Path) -> ImageSet:
    """Return the images of a file with a path per line, relative to the file or else to the working directory."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("images-list", f"{path}: expected a path per line, found: {error}") from None
    if not lines:
        raise InputError("images-list", f"{path}: expected a path per line, found an empty file")
    for number, line in enumerate(lines, 1):
        if not has_image_suffix(os.fsencode(Path(line).name)):
            found = f"expected the path of an image in line {number}, found {line[:80]!r}"
            raise InputError("images-list", f"{path}: {found}")
    beside = [path.parent / line for line in lines]
    from_here = not any(one.exists() for one in beside) and any(Path(line).exists() for line in lines)
    return _select(
        str(path), Path() if from_here else path.parent, lines if from_here else [str(one) for one in beside]
    )


def _select(where: str, root: Path, paths: list[str]) -> SelectedImages:
    """Return images by their paths; names are relative to `root`, or to the folder they share if some are outside of it."""
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - `resolve` would follow links
    base = os.path.abspath(root)  # noqa: PTH100
    if any(os.path.commonpath([base, path]) != base for path in absolute):
        base = os.path.commonpath([str(Path(path).parent) for path in absolute])
    names = [Path(os.path.relpath(path, base)).as_posix() for path in absolute]
    return SelectedImages(where, Path(base), PackedNames.from_strings(dict.fromkeys(names)))
