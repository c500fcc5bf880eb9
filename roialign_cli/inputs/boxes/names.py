"""Which image a box file means: names as they are found in annotations, looked up in the image folder."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.images import ImageListing, list_images


class ImageNames:
    """The images of a folder by name, by file name without folder, and by stem."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @cached_property
    def all(self) -> set[str]:
        """Names relative to the folder."""
        return list_images(self._folder) if self._folder is not None else set()

    @cached_property
    def _ends(self) -> dict[str, list[str]]:
        """Names by everything they may be called: a/b.jpg is also b.jpg, a/b and b."""
        ends = defaultdict(list)
        for name in sorted(self.all):
            pure = PurePosixPath(name)
            for end in {pure.name, pure.with_suffix("").as_posix(), pure.stem}:
                ends[end].append(name)
        return ends

    def find(self, name: str) -> str:
        """The image of a name; of its last part, or of the same stem, where there is just one such; else the name itself."""
        plain = name.replace("\\", "/").removeprefix("./")
        pure = PurePosixPath(plain)
        if plain in self.all or not pure.name:
            return plain
        for end in (plain, pure.name, pure.with_suffix("").as_posix(), pure.stem):
            found = self._ends.get(end, [])
            if len(found) == 1:
                return found[0]
        return plain

    def find_all(self, names: PackedNames) -> PackedNames:
        """`find` of each: the very names, if they are names of images as they stand."""
        as_they_stand = self._folder is not None and ImageListing(self._folder).has(names).all()
        return names if as_they_stand else PackedNames.from_strings(map(self.find, names))

    def find_by_stem(self, stem: str) -> str | None:
        """The image of a relative path without its suffix, or None; folders count only where names alone are ambiguous."""
        parts = PurePosixPath(stem).parts
        for begin in range(len(parts)):
            found = self._ends.get("/".join(parts[begin:]), [])
            if len(found) == 1:
                return found[0]
        return None
