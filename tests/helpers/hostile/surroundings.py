"""Make the folders around a hostile file; a snapshot shows what a command changed outside its output."""

from __future__ import annotations

import hashlib
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from helpers.hostile.draft import Case
from helpers.hostile.good import Goods

LARGEST = 64 << 20  # bytes of a file that are compared

Snapshot = dict[str, tuple[object, ...]]


@dataclass(frozen=True)
class Surroundings:
    """A folder with `in` for the file, `out` for what is made of it, and `outside`, which is nobody's.

    Commands run in `here`, which nobody may write to either.
    """

    root: Path

    def begin(self, goods: Goods, case: Case) -> tuple[Path, Path]:
        """Clear everything and write the file of a case; return it and a file that it could be merged with."""
        for name in ("in", "out", "outside"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(parents=True)
        shutil.copy(goods.folder / "plain.h5", self.root / "outside" / "good.h5")
        return goods.place(case, self.root / "in")

    def snapshot(self) -> Snapshot:
        """Return kind, size, time of change and content of every file, and the targets of links."""
        return {str(path.relative_to(self.root)): _state(path) for path in sorted(self.root.rglob("*"))}

    def clear(self) -> list[str]:
        """Remove what is in `out`, and return its names."""
        names = sorted(path.name for path in (self.root / "out").iterdir())
        shutil.rmtree(self.root / "out")
        (self.root / "out").mkdir()
        return names


def changed(before: Snapshot, after: Snapshot, *allowed: str) -> list[str]:
    """Return the paths that are new, gone or different, except the allowed ones and everything in them."""
    found = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return sorted(path for path in found if not any(path == one or path.startswith(f"{one}/") for one in allowed))


def _state(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return ("link", str(path.readlink()))
    if not stat.S_ISREG(found.st_mode):
        return (stat.S_IFMT(found.st_mode),)
    content = hashlib.sha256(path.read_bytes()).hexdigest() if found.st_size < LARGEST else ""
    return (found.st_size, found.st_mtime_ns, content)
