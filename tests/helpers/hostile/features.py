"""Make hostile datasets: types that cannot be features, storage that is not contiguous, impossible shapes and places."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from helpers.hostile.draft import OPEN, REFUSED, SOUND, Case, Draft, Values, sign, store
from helpers.hostile.tables import as_type, change, drop, longer, make, together

SHAPE = (10, 32, 2, 2)
EARLIEST = {"libver": ("earliest", "v110")}  # HDF5's own structures without checksums, so that they can be changed


def of_features(what: str, edit: Callable[[Values], Values], base: str = "plain") -> Case:
    """Return a case for each change of the features."""
    return Case(f"features: {what}", change("features", edit), REFUSED, base, "features")


def stored(name: str, **options: object) -> Callable[[Draft], None]:
    """Store a dataset by h5py, with options of its own."""

    def edit(draft: Draft) -> None:
        values = draft.array(name)
        kind = h5py.string_dtype("utf-8", values.itemsize) if values.dtype.kind == "S" else values.dtype
        draft.datasets[name] = lambda file, name: file.create_dataset(
            name, data=values.astype(kind), dtype=kind, **options
        )

    return edit


def external(draft: Draft) -> None:
    """Keep the features in a file outside the folder."""
    values, secret = draft.array("features"), draft.path.parent.parent / "outside" / "secret.bin"
    secret.write_bytes(values.tobytes())
    draft.datasets["features"] = lambda file, name: file.create_dataset(
        name, values.shape, values.dtype, external=[(str(secret), 0, values.nbytes)]
    )


def virtual(source: str) -> Callable[[Draft], None]:
    """Take the features from another file."""

    def edit(draft: Draft) -> None:
        layout = h5py.VirtualLayout(SHAPE, "f4")
        layout[:] = h5py.VirtualSource(source, "features", SHAPE, "f4")
        draft.datasets["features"] = lambda file, name: file.create_virtual_dataset(name, layout)

    return edit


def compact(draft: Draft) -> None:
    """Keep the labels within HDF5's own structures."""
    values = draft.array("labels")

    def create(file: h5py.File, name: str) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        kind = h5py.h5t.py_create(h5py.string_dtype("utf-8", values.itemsize), logical=True)
        made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(values.shape), dcpl=properties)
        h5py.Dataset(made)[...] = values.astype(made.dtype)

    draft.datasets["labels"] = create


def committed(draft: Draft) -> None:
    """Give the features a type that has a name in the file."""
    values = draft.array("features")

    def create(file: h5py.File, name: str) -> None:
        file["kind"] = np.dtype("f4")
        store(file, name, values, kind=h5py.h5t.open(file.id, b"kind"))

    draft.datasets["features"] = create


def instead(name: str, create: Callable[[h5py.File, str], object]) -> Callable[[Draft], object]:
    """Replace a dataset by something else."""
    return lambda draft: draft.datasets.update({name: create})


def images_are_data(draft: Draft) -> None:
    """Make `images` a dataset."""
    for name in list(draft.datasets):
        if name.startswith("images/"):
            del draft.datasets[name]
    draft.datasets["images"] = np.zeros(6, np.int64)


def opaque_type() -> h5py.h5t.TypeID:
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 4)
    kind.set_tag(b"x")
    return kind


def odd_float() -> h5py.h5t.TypeID:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(100)
    return kind


def huge(draft: Draft) -> None:
    """Claim 2**50 boxes everywhere, none of them stored."""
    for name in ("features", "boxes", "labels", "scores", "ids"):
        values = draft.array(name)
        make(name, shape=(2**50, *values.shape[1:]), kind=values.dtype, early=False)(draft)
    draft.array("images/offset")[-1] = 2**50


def cut(share: float) -> Callable[[Path], None]:
    """Keep only the first part of the file."""

    def truncate(path: Path) -> None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(int(size * share))

    return truncate


def shifted(name: str, target: Callable[[h5py.File], int], size: int | None = None) -> Callable[[Draft], None]:
    """Write another place, or size, of a dataset into HDF5's own structures."""

    def patch(path: Path) -> None:
        with h5py.File(path) as file:
            old = struct.pack("<QQ", file[name].id.get_offset(), file[name].id.get_storage_size())
            new = struct.pack("<QQ", target(file), size or file[name].id.get_storage_size())
        data = path.read_bytes()
        assert data.count(old) == 1, name
        path.write_bytes(data.replace(old, new))
        sign(path)

    def edit(draft: Draft) -> None:
        draft.options.update(EARLIEST)
        draft.after.append(patch)

    return edit


def place_of(name: str, more: int = 0) -> Callable[[h5py.File], int]:
    """Return where a dataset lies."""
    return lambda file: file[name].id.get_offset() + more


TYPES = [
    of_features("float64", as_type("f8")),
    of_features("int32", as_type("i4")),
    of_features("uint16", as_type("u2")),
    of_features("bool", as_type("?")),
    of_features("complex64", as_type("c8")),
    of_features("big-endian", as_type(">f4")),
    of_features("big-endian float16", as_type(">f2"), "float16"),
    of_features("text", as_type("S8")),
    of_features("compound", lambda v: v.view([("x", "f4")])),
    of_features("compound of pairs", lambda v: v.view([("x", "f4"), ("y", "f4")])),
    *[Case(f"features: {what}", make("features", shape=shape, kind=kind), where="features") for what, shape, kind in (
        ("arrays as values", (10,), np.dtype(("f4", (32, 2, 2)))), ("opaque", SHAPE, opaque_type()),
        ("a float of its own kind", SHAPE, odd_float()), ("references", SHAPE, h5py.ref_dtype),
        ("of variable length", SHAPE, h5py.vlen_dtype("f4")), ("text of variable length", SHAPE, h5py.string_dtype()),
        ("an enumeration", SHAPE, h5py.enum_dtype({"a": 0, "b": 1}, "i4")),
    )],
    Case("features: a type with a name", committed, OPEN),
    Case("features: two layers of two types", change("features/two", as_type("f2")), OPEN, "two layers"),
]  # fmt: skip

SHAPES = [
    of_features("short", lambda v: v[:-1]),
    of_features("long", longer),
    of_features("none", lambda v: v[:0]),
    of_features("rank 1", lambda v: v[:, 0, 0, 0]),
    of_features("rank 3", lambda v: v[:, :, 0]),
    of_features("rank 5", lambda v: v[..., None]),
    of_features("a scalar", lambda v: v[0, 0, 0, 0]),
    of_features("no channels", lambda v: v[:, :0]),
    of_features("no bins", lambda v: v[:, :, :0]),
    of_features("no channels, reduced", lambda v: v[:, :0], "reduced"),
    of_features("rank 3, float16", lambda v: v[:, :, 0], "float16"),
    Case("features/two: short", change("features/two", lambda v: v[:-1]), REFUSED, "two layers", "features/two"),
    Case("features/two: missing", drop("features/two"), REFUSED, "two layers", "features/two"),
    Case("features/two: rank 2", change("features/two", lambda v: v[:, :, 0, 0]), OPEN, "two layers"),
    Case("features: nothing but a type", instead("features", lambda file, name: file.create_dataset(
        name, data=h5py.Empty("f4"))), where="features"),
    Case("boxes: nothing but a type", instead("boxes", lambda file, name: file.create_dataset(
        name, data=h5py.Empty("f4"))), where="boxes"),
    Case("features: 2**60 rows", make("features", shape=(2**50, 32, 2, 2), kind="f4", early=False), where="features"),
    Case("features: 2**60 rows of nothing", make("features", shape=(2**60, 0, 2, 2), kind="f4"), where="features"),
    Case("features: 2**60 bins", make("features", shape=(10, 0, 2**31, 2**29), kind="f4"), where="features"),
    Case("boxes: 2**60 rows of nothing", make("boxes", shape=(2**60, 0), kind="f4"), where="boxes"),
    Case("images/name: 2**50 names", make("images/name", shape=(2**50,), kind="S8", early=False)),
    Case("2**50 boxes", huge),
    Case("features: never stored", make("features", shape=SHAPE, kind="f4", early=False), where="features"),
]  # fmt: skip

STORAGE = [
    Case("features: chunked", stored("features", chunks=(5, 32, 2, 2)), where="features"),
    Case("features: compressed", stored("features", compression="gzip"), where="features"),
    Case("features: extendable", stored("features", maxshape=(None, 32, 2, 2)), where="features"),
    Case("boxes: chunked", stored("boxes", chunks=(5, 4)), where="boxes"),
    Case("images/status: compressed", stored("images/status", compression="gzip"), where="images/status"),
    Case("images/name: chunked", stored("images/name", chunks=(2,)), where="images/name"),
    Case("features: in a file outside", external, where="features"),
    Case("features: virtual", virtual("other.h5"), where="features"),
    Case("features: virtual, of itself", virtual("."), where="features"),
    Case("features: virtual, of a file outside", virtual("../outside/good.h5"), where="features"),
    Case("labels: compact", compact, where="labels"),
    Case("features: a group", instead("features", lambda file, name: file.create_group(name)), where="features"),
    Case("features: a type", instead("features", lambda file, name: file.__setitem__(name, np.dtype("f4"))),
         where="features"),
    Case("features: a layer in a group", lambda draft: draft.datasets.update(
        {"features/gabor": draft.datasets.pop("features")}), where="features"),
    Case("features/two: a group", instead("features/two", lambda file, name: file.create_group(name)),
         REFUSED, "two layers", "features/two"),
    Case("features: one dataset for two layers", lambda draft: draft.datasets.update(
        features=draft.datasets.pop("features/one"), **{"x": draft.datasets.pop("features/two")}),
         REFUSED, "two layers", "features"),
    Case("images/status: a group", instead("images/status", lambda file, name: file.create_group(name)),
         where="images/status"),
    Case("images: a dataset", images_are_data),
    Case("labels: a group", instead("labels", lambda file, name: file.create_group(name)), OPEN),
]  # fmt: skip

PLACES = [
    Case("written by the oldest HDF5", lambda draft: draft.options.update(EARLIEST), SOUND),
    Case("features: beyond the end", shifted("features", lambda file: 1 << 40)),
    Case("features: across the end", shifted("features", lambda file: file.id.get_filesize() - 8)),
    Case("features: at the last address", shifted("features", lambda file: 2**64 - 9)),
    Case("features: nowhere", shifted("features", lambda file: 2**64 - 1)),
    Case("features: less than their shape", shifted("features", place_of("features"), 8)),
    Case("features: more than their shape", shifted("features", place_of("features"), 1 << 50), OPEN),
    Case("images/name: across the end", shifted("images/name", lambda file: file.id.get_filesize() - 8)),
    Case("boxes: where the features are", shifted("boxes", place_of("features"))),
    Case("scores: where the ids are", shifted("scores", place_of("ids"))),
    Case("boxes: overlap the features", shifted("boxes", place_of("features", 2000))),
    Case("images/status: in HDF5's head", shifted("images/status", lambda file: 0)),
    Case("features: over HDF5's head", together(
        change("features", lambda v: v[:, :2]), shifted("features", lambda file: 0))),
    *[Case(f"cut to {share:.0%}", lambda draft, share=share: draft.after.append(cut(share)))
      for share in (0.1, 0.5, 0.9, 0.99)],
]  # fmt: skip

CASES = [*TYPES, *SHAPES, *STORAGE, *PLACES]
