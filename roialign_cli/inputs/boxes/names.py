"""Find the images that a box file refers to, looking up the names in annotations in the image folder."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.images import ImageListing, list_images


class ImageNames:
    """The images of a folder, by relative name, by file name without folder, and by stem."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @cached_property
    def all(self) -> set[str]:
        """Return the names of all images relative to the folder; an empty set if there is no folder."""
        return list_images(self._folder) if self._folder is not None else set()

    @cached_property
    def _ends(self) -> dict[str, list[str]]:
        """Return the names of images by their shorter forms: a/b.jpg is also found as b.jpg, a/b and b."""
        ends = defaultdict(list)
        for name in sorted(self.all):
            pure = PurePosixPath(name)
            for end in {pure.name, pure.with_suffix("").as_posix(), pure.stem}:
                ends[end].append(name)
        return ends

    def find(self, name: str) -> str:
        """Return the image with this name, or else the only image with its file name or its stem, or else the name itself."""
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
        """Return `find` of each name; the same object if all of them are exact names of images."""
        all_exact = self._folder is not None and ImageListing(self._folder).has(names).all()
        return names if all_exact else PackedNames.from_strings(map(self.find, names))

    def find_by_stem(self, stem: str) -> str | None:
        """Return the image for a relative path without suffix, or None if there is none or it is ambiguous.

        Leading folders may differ as long as the rest of the path identifies one image.
        """
        parts = PurePosixPath(stem).parts
        for begin in range(len(parts)):
            found = self._ends.get("/".join(parts[begin:]), [])
            if len(found) == 1:
                return found[0]
        return None
