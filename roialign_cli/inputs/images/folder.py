"""Images in files of their own: all of a folder, or a selection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from roialign_cli.arrays import PackedNames
from roialign_cli.errors import InputError
from roialign_cli.inputs.images.file import ImageFile
from roialign_cli.inputs.images.image_set import ImageSet, has_image_suffix


class ImageFolder(ImageSet):
    """The image files below a folder. Nothing is read before the names are asked for."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder.absolute()  # processes on other machines work in other folders

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folder."""
        return (self._folder,)

    def encoded_names(self) -> Iterator[bytes]:
        """Yield the names of files with a suffix of images. Raises InputError if the folder does not exist."""
        if not self._folder.is_dir():
            found = "a file" if self._folder.exists() else "nothing there"
            raise InputError("images-folder", f"{self.where}: expected a folder of images, found {found}")
        for parent, _, files in os.walk(os.fsencode(self._folder)):
            relative = Path(os.fsdecode(parent)).relative_to(self._folder).as_posix()
            prefix = b"" if relative == "." else os.fsencode(relative) + b"/"
            for file in files:
                if has_image_suffix(file.rpartition(b"/")[2]):
                    yield prefix + file

    def file(self, name: str) -> ImageFile:
        """Return the file of an image."""
        return ImageFile(self._folder / name)


class SelectedImages(ImageSet):
    """Files that the user selected by name, pattern or list; their names are relative to `root`."""

    selected = True

    def __init__(self, where: str, root: Path, names: PackedNames) -> None:
        self.where = where
        self._root = root.absolute()
        self._names = names

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folder that the names are relative to."""
        return (self._root,)

    def encoded_names(self) -> Iterator[bytes]:
        """Yield the names in the order in which they were selected."""
        return self._names.encoded()

    def file(self, name: str) -> ImageFile:
        """Return the file of an image."""
        return ImageFile(self._root / name)
