"""Make hostile names of images: names that lead out of a folder, that collide, or that are not text."""

from __future__ import annotations

from collections.abc import Callable

import h5py
import numpy as np

from helpers.hostile.draft import OPEN, REFUSED, SOUND, Case, Draft, store
from helpers.hostile.tables import change, longer, make, put


def named(*names: bytes) -> Callable[[Draft], None]:
    """Give the first images these names."""

    def edit(draft: Draft) -> None:
        old = draft.array("images/name").tolist()
        draft.datasets["images/name"] = np.array([*names, *old[len(names) :]])

    return edit


def leading_out(suffix: str) -> Callable[[Draft], None]:
    """Call an image by the absolute path of a place beside the folder of the file."""
    return lambda draft: named(str(draft.path.parent.parent / "outside" / suffix).encode())(draft)


def ascii_names(draft: Draft) -> None:
    values = draft.array("images/name")
    kind = h5py.string_dtype("ascii", values.itemsize)
    draft.datasets["images/name"] = lambda file, name: store(file, name, values, kind=kind)


def of_names(what: str, *names: bytes, verdict: str = REFUSED) -> Case:
    return Case(f"images/name: {what}", named(*names), verdict, where="images/name" if verdict == REFUSED else "")


CASES = [
    Case("images/name: absolute", leading_out("x.jpg"), where="images/name"),
    Case("images/name: absolute, in a new folder", leading_out("new/x.jpg"), where="images/name"),
    of_names("of the folder above", b"../x.jpg"),
    of_names("of the folder above that", b"../../x.jpg"),
    of_names("of a folder and up again", b"a/../../../x.jpg"),
    of_names("of a folder and up again, inside", b"a/../x.jpg"),
    of_names("only dots", b".."),
    of_names("dots at the end", b"a/.."),
    of_names("a backslash", b"a\\x.jpg"),
    of_names("up by backslashes", b"..\\..\\x.jpg"),
    of_names("NUL within", b"a\0b.jpg"),
    of_names("empty", b""),
    of_names("twice", b"im-3.png"),
    of_names("root", b"/"),
    of_names("two slashes first", b"//x.jpg"),
    of_names("a drive", b"C:/x.jpg", verdict=OPEN),
    of_names("a dot", b".", verdict=OPEN),
    of_names("dots and slashes", b"./im-3.png", verdict=OPEN),
    of_names("two slashes", b"sub//x.jpg", verdict=OPEN),
    of_names("a slash at the end", b"sub/", verdict=OPEN),
    of_names("three dots", b"...", verdict=SOUND),
    of_names("dots within", b"a..b/..x.jpg", verdict=SOUND),
    of_names("a colliding pair, normalised", b"x/./y.jpg", b"x/y.jpg", verdict=OPEN),
    of_names("no UTF-8", b"\xff\xfe.jpg", verdict=SOUND),
    of_names("half a character", b"a/\xc3", verdict=SOUND),
    of_names("control characters", b"\x1b[2J\r\nx\t.jpg", verdict=SOUND),
    of_names("markup", b"[/bold]x[red].jpg", verdict=SOUND),
    of_names("a folder of another", b"a.jpg", b"a.jpg/b.jpg", verdict=SOUND),
    of_names("a folder of another, the other way round", b"a.jpg/b.jpg", b"a.jpg", b"a.jpg/b.jpg/c", verdict=SOUND),
    of_names("a folder of npz", b"a", b"x", b"a.npz/b", verdict=SOUND),
    of_names("a folder of pt", b"a", b"x", b"a.pt/b", verdict=SOUND),
    of_names("a dataset of another's group", b"a.jpg", b"x", b"a.jpg/features", verdict=SOUND),
    of_names("a dataset of another's group, first", b"a.jpg/boxes", b"x", b"a.jpg", verdict=SOUND),
    of_names("the key of LMDB", b"keys", verdict=SOUND),
    of_names("longer than file names", b"x" * 300, verdict=SOUND),
    of_names("longer than paths", b"x/" * 3000 + b"x", verdict=SOUND),
    of_names("longer than LMDB's keys", b"x" * 600, verdict=SOUND),
    *[Case(f"images/name: {what}", change("images/name", edit), where="images/") for what, edit in {
        "short": lambda v: v[:-1], "long": longer, "none": lambda v: v[:0], "two-dimensional": lambda v: v[:, None],
        "integers": lambda v: np.arange(len(v)), "floats": lambda v: np.zeros(len(v)), "a scalar": lambda v: v[0],
        "bytes": lambda v: v.view("u1").reshape(len(v), -1),
    }.items()],
    Case("images/name: of variable length", make("images/name", shape=(6,), kind=h5py.string_dtype()), REFUSED),
    Case("images/name: all the same", put("images/name", slice(None), b"x"), where="images/name"),
    Case("images/name: said to be ASCII", ascii_names, OPEN),
]  # fmt: skip
