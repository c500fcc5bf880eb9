"""Make hostile links: within a file by HDF5's means, and from a linked file to others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from helpers.hostile.attributes import DEEP, attribute, each, raw, reference
from helpers.hostile.draft import FOUND, OPEN, REFUSED, SOUND, Case, Draft
from helpers.hostile.features import instead
from helpers.hostile.good import linked_features
from helpers.hostile.tables import put

MANY = 3000


def beside(make: Callable[[h5py.File], object]) -> Callable[[Draft], object]:
    """Add something unknown to the file."""
    return lambda draft: draft.beside.append(make)


def linked_to(*names: object) -> Callable[[Draft], None]:
    """Name these files; those that begin with `outside` by an absolute path."""

    def edit(draft: Draft) -> None:
        root = draft.path.parent.parent
        draft.attributes["linked"] = json.dumps(
            [str(root / name) if isinstance(name, str) and name.startswith("outside") else name for name in names]
        )

    return edit


def alias(name: str, target: str) -> Callable[[Draft], object]:
    """Make a dataset a second name of another."""

    def edit(draft: Draft) -> None:
        del draft.datasets[name]
        draft.beside.append(lambda file: file.__setitem__(name, file[target]))

    return edit


def deep(file: h5py.File) -> None:
    """Nest groups within groups."""
    group = file
    for _ in range(4 * MANY):
        group = group.create_group("x")


def wide(file: h5py.File) -> None:
    """Add thousands of groups."""
    for i in range(MANY):
        file.create_group(f"g{i}")


def hard_cycle(file: h5py.File) -> None:
    """Add a group that contains itself."""
    file["images/all"] = file["/"]


def spread(draft: Draft) -> None:
    """Keep the tables of images in a group of another name, to which a link leads."""
    for name in [name for name in draft.datasets if name.startswith("images/")]:
        draft.datasets[name.replace("images", "elsewhere")] = draft.datasets.pop(name)
    draft.beside.append(lambda file: file.__setitem__("images", h5py.SoftLink("/elsewhere")))


def fifo(draft: Draft) -> None:
    os.mkfifo(draft.path.with_name("fifo.h5"))
    linked_to("plain.h5", "fifo.h5")(draft)


def fifo_within(draft: Draft) -> None:
    os.mkfifo(draft.path.with_name("fifo.h5"))
    draft.datasets["features"] = lambda file, name: linked_features(file, name, ("fifo.h5", "other.h5"))


def symbolic(target: str) -> Callable[[Draft], None]:
    def edit(draft: Draft) -> None:
        draft.path.with_name("symbolic.h5").symlink_to(target)
        linked_to("plain.h5", "symbolic.h5")(draft)

    return edit


def in_folder(draft: Draft) -> None:
    """Keep the linked files in a folder of their own, within that of the file."""
    folder = draft.path.with_name("parts")
    folder.mkdir()
    for name in ("plain.h5", "other.h5"):
        draft.path.with_name(name).rename(folder / name)
    linked_to("parts/plain.h5", "parts/other.h5")(draft)
    draft.datasets["features"] = lambda file, name: linked_features(file, name, ("parts/plain.h5", "parts/other.h5"))


def chain(back: bool) -> Callable[[Draft], None]:
    """Link to a linked file, which may lead back."""

    def edit(draft: Draft) -> None:
        second = Draft(draft.path.with_name("second.h5"), dict(draft.attributes), dict(draft.datasets))
        if back:
            linked_to("f.h5")(second)
        second.write()
        linked_to("second.h5")(draft)

    return edit


def part(edit: Callable[[Draft], object]) -> Callable[[Draft], None]:
    """Harm one of the files that a sound one links to."""

    def change(draft: Draft) -> None:
        path = draft.path.with_name("other.h5")
        disturbed = Draft.read(path, path)
        edit(disturbed)
        disturbed.write()

    return change


def part_is(content: bytes | None) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        path: Path = draft.path.with_name("other.h5")
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return change


WITHIN = [
    Case("boxes: a soft link", instead("boxes", lambda file, name: file.__setitem__(name, h5py.SoftLink("/features"))),
         where="boxes"),
    Case("boxes: a soft link to nothing", instead("boxes", lambda file, name: file.__setitem__(
        name, h5py.SoftLink("/nothing"))), where="boxes"),
    Case("boxes: a soft link to itself", instead("boxes", lambda file, name: file.__setitem__(
        name, h5py.SoftLink("/boxes"))), where="boxes"),
    Case("boxes: in another file", instead("boxes", lambda file, name: file.__setitem__(
        name, h5py.ExternalLink("other.h5", "/boxes"))), where="boxes"),
    Case("features: a link to another file", instead("features", lambda file, name: file.__setitem__(
        name, h5py.ExternalLink("other.h5", "/features"))), where="features"),
    Case("features: a link to a file outside", instead("features", lambda file, name: file.__setitem__(
        name, h5py.ExternalLink("../outside/good.h5", "/features"))), where="features"),
    Case("images: in another file", lambda draft: (
        [draft.datasets.pop(name) for name in list(draft.datasets) if name.startswith("images/")],
        draft.beside.append(lambda file: file.__setitem__("images", h5py.ExternalLink("other.h5", "/images"))),
    )),
    Case("images: a soft link to a group", spread, OPEN),
    Case("images/table_crc32: a second name of crc32", alias("images/table_crc32", "images/crc32"), FOUND),
    Case("ids: a second name of images/offset", alias("ids", "images/offset")),
    Case("unknown: a second name of the features", beside(lambda file: file.__setitem__("x", file["features"])), OPEN),
    Case("unknown: a soft link to nothing", beside(lambda file: file.__setitem__("x", h5py.SoftLink("/nothing"))), SOUND),
    Case("unknown: a link to a missing file", beside(lambda file: file.__setitem__(
        "x", h5py.ExternalLink("missing.h5", "/x"))), SOUND),
    Case("unknown: a group that has all within", beside(hard_cycle), OPEN),
    Case("unknown: groups 12,000 deep", beside(deep), OPEN),
    Case("unknown: 3000 groups", beside(wide), OPEN),
    Case("unknown: a group called by markup", beside(lambda file: file.create_dataset("[/bold]/[red]x", data=[1])), OPEN),
    Case("unknown: a dataset called by no UTF-8", beside(lambda file: file.create_dataset(b"\xff\xfe", data=[1])), OPEN),
    Case("unknown: a dataset that is chunked", beside(lambda file: file.create_dataset("x", data=[1], chunks=(1,))), OPEN),
    Case("unknown: a dataset of pairs", beside(lambda file: file.create_dataset(
        "x", data=np.zeros(2, [("a", "i4"), ("b", "f8")]))), OPEN),
    Case("unknown: a dataset of references", beside(lambda file: file.create_dataset("x", data=[1], dtype="i4").attrs.create(
        "r", file["images"].ref, dtype=h5py.ref_dtype)), SOUND),
    Case("unknown: a dataset", beside(lambda file: file.create_dataset("more/x", data=np.arange(3))), SOUND),
    Case("unknown: a scalar", beside(lambda file: file.create_dataset("x", data=5)), OPEN),
    Case("unknown: a type", beside(lambda file: file.__setitem__("x", np.dtype("f4"))), SOUND),
]  # fmt: skip

LINKED = [
    Case("linked: as it should be", lambda draft: None, SOUND, "linked"),
    Case("linked: in a folder within", in_folder, SOUND, "linked"),
    *[Case(f"linked: {what}", linked_to(*names), REFUSED, "linked", "linked") for what, names in {
        "outside": ("outside/good.h5",), "one of two outside": ("plain.h5", "outside/good.h5"),
        "up": ("plain.h5", "../outside/good.h5"), "up and down": ("plain.h5", "../in/../outside/good.h5"),
        "numbers": (1, 2), "lists": (["plain.h5"],), "null in a list": ("plain.h5", None), "no name": ("",),
        "a device": ("plain.h5", "/dev/zero"), "standard input": ("plain.h5", "/dev/stdin"), "NUL": ("plain.h5", "a\0b"),
    }.items()],
    *[Case(f"linked: {what}", linked_to(*names), REFUSED, "linked") for what, names in {
        "itself": ("f.h5",), "itself besides": ("plain.h5", "f.h5"), "missing": ("plain.h5", "missing.h5"),
        "its folder": (".",), "twice": ("plain.h5", "plain.h5"), "a pattern": ("*.h5",),
        "half a surrogate": ("plain.h5", "\ud800"), "a long name": ("x" * 5000,), "10,000 times": ("plain.h5",) * 10_000,
    }.items()],
    *each("linked", {
        "no JSON": "{nonsense", "too deep": DEEP, "a text": '"plain.h5"', "an object": '{"plain.h5": 1}',
        "a number in JSON": "5", "a number": 5, "texts": ["plain.h5", "other.h5"], "empty": "",
        "a reference": reference, "no UTF-8": raw(b'["\xff"]'), "NaN": "NaN",
    }, REFUSED, "linked"),
    *each("linked", {"null": "null", "false": "false", "no file": "[]"}, REFUSED, "linked", where=""),
    Case("linked: a FIFO", fifo, REFUSED, "linked"),
    Case("linked: features from a FIFO", fifo_within, OPEN, "linked"),
    Case("linked: a symbolic link outside", symbolic("../outside/good.h5"), OPEN, "linked"),
    Case("linked: a symbolic link to itself", symbolic("symbolic.h5"), REFUSED, "linked"),
    Case("linked: a symbolic link to the file", symbolic("f.h5"), REFUSED, "linked"),
    Case("linked: a linked file", chain(back=False), REFUSED, "linked"),
    Case("linked: a file that links back", chain(back=True), REFUSED, "linked"),
    Case("linked: no HDF5", part_is(b"no HDF5 at all"), REFUSED, "linked"),
    Case("linked: removed", part_is(None), REFUSED, "linked"),
    Case("linked: one with a negative offset", part(put("images/offset", 2, -3)), REFUSED, "linked", "images/offset"),
    Case("linked: one with NaN boxes", part(put("boxes", (1, 2), np.nan)), FOUND, "linked"),
    Case("linked: one named outside", part(put("images/name", 0, b"/x.jpg")), REFUSED, "linked", "images/name"),
    Case("linked: one of other layers", part(attribute("layers", '["x"]')), REFUSED, "linked"),
    Case("linked: one of another type", part(lambda draft: draft.datasets.update(
        features=draft.array("features").astype("f2"))), REFUSED, "linked"),
    Case("linked: one of another shape", part(lambda draft: draft.datasets.update(
        features=draft.array("features")[:, :, :1])), REFUSED, "linked"),
    Case("linked: one without labels", part(lambda draft: draft.datasets.pop("labels")), REFUSED, "linked"),
    Case("linked: one with labels of another kind", part(lambda draft: draft.datasets.update(
        labels=np.arange(10))), OPEN, "linked"),
    Case("linked: tables that disagree", put("images/status", 0, 2), OPEN, "linked"),
    Case("linked: from a file with features", linked_to("other.h5"), OPEN),
]  # fmt: skip

CASES = [*WITHIN, *LINKED]
