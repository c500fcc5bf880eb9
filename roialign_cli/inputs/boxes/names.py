"""Find the images that a box file refers to, whose names there may have other folders or suffixes than the images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import PurePosixPath

import numpy as np

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.images import ImageSet


class ImageNames:
    """The images of a run by relative name, by file name without folder, and by stem; empty without images."""

    def __init__(self, images: ImageSet | None) -> None:
        self.images = images

    @cached_property
    def all(self) -> set[str]:
        """Return the names of all images; an empty set if there are none to compare with."""
        return set(self.images.names()) if self.images is not None else set()

    @cached_property
    def _ends(self) -> dict[str, list[str]]:
        return _by_end(sorted(self.all), None)

    def find(self, name: str) -> str:
        """Return the image with this name, or else the only image that fits it, or else the name itself.

        An image fits if it has the same file name, or else the same stem; of several with the same file name the one fits
        that shares most folders before it.
        """
        plain = _plain(name)
        return plain if plain in self.all else _find_end(plain, self._ends) or plain

    def find_all(self, names: PackedNames) -> PackedNames:
        """Return `find` of each name; the same object if all of them are exact names of images."""
        if self.images is None:
            return PackedNames.from_strings(map(_plain, names))
        missing = np.flatnonzero(~self.images.listing.has(names)).tolist()
        if not missing:
            return names
        found = list(names)
        plain = {i: _plain(found[i]) for i in missing}
        ends = _by_end(self.images.names(), {end for name in plain.values() for end in _ends_of(name)})
        for i, name in plain.items():
            found[i] = _find_end(name, ends) or name
        return PackedNames.from_strings(found)

    def match(self, names: PackedNames) -> tuple[PackedNames, str]:
        """Return `find` of each of these different names, and a note if some are found under another name.

        Names that would become the same image are left as they are.
        """
        found = names if self.images is None else self.find_all(names)
        if found is names:
            return names, ""
        counts = Counter(found)
        result = [new if counts[new] == 1 else old for old, new in zip(names, found, strict=True)]
        changed = [(old, new) for old, new in zip(names, result, strict=True) if old != new]
        if not changed:
            return names, ""
        old, new = changed[0]
        which = "1 image is" if len(changed) == 1 else f"{len(changed)} images are"
        return PackedNames.from_strings(result), f'{which} found under another name: "{old}" is "{new}"'

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


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _ends_of(name: str) -> set[str]:
    """Return the shorter forms of a name: a/b.jpg is also b.jpg, a/b and b."""
    pure = PurePosixPath(name)
    return {pure.name, pure.with_suffix("").as_posix(), pure.stem} if pure.name else set()


def _by_end(names: Iterable[str], wanted: set[str] | None) -> dict[str, list[str]]:
    """Return the names by their shorter forms, or only by those that are wanted."""
    ends = defaultdict(list)
    for name in names:
        for end in _ends_of(name):
            if wanted is None or end in wanted:
                ends[end].append(name)
    return ends


def _find_end(name: str, ends: dict[str, list[str]]) -> str | None:
    """Return the only image that fits a name, see `ImageNames.find`, or None."""
    pure = PurePosixPath(name)
    if not pure.name:
        return None
    same_file = ends.get(pure.name, [])
    if len(same_file) > 1:
        shared = [_shared_parts(pure.parts, PurePosixPath(image).parts) for image in same_file]
        most = max(shared)
        return same_file[shared.index(most)] if most > 1 and shared.count(most) == 1 else None
    for found in (same_file, ends.get(pure.with_suffix("").as_posix(), []), ends.get(pure.stem, [])):
        if len(found) == 1:
            return found[0]
    return None


def _shared_parts(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Return how many parts at their ends two paths have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(a), reversed(b), strict=False)))
