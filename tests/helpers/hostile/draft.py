"""Make hostile feature files from the parts of a good one, with checksums that agree."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

# What becomes of a file. Of one that is refused no command may end in success; `verify` finds the next kind, if opening
# does not; sound ones pass; of the others the format says nothing, and commands only have to end as they should.
REFUSED, FOUND, SOUND, OPEN = "refused", "found", "sound", "open"
SMALL = 1 << 20  # elements of a dataset that is read to compute checksums
NEW = ("v110", "v110")  # as the tool writes; the older kind has no checksums over HDF5's own structures

Values = npt.NDArray[Any]
Make = Callable[[h5py.File, str], object]

BOX_TABLES = ("boxes", "labels", "scores", "ids", "levels", "rotated", "points", "coverage", "area")
IMAGE_TABLES = ("name", "size", "error", "crc32", "file_size", "modified", "sha256")  # in the order of the checksum


@dataclass(frozen=True)
class Draft:
    """A feature file before it is written: attributes, datasets as arrays or functions that make them, and the rest.

    Functions in `beside` are called with the open file, those in `after` with the path when all is written.
    """

    path: Path
    attributes: dict[str, Any]
    datasets: dict[str, Values | Make]
    beside: list[Callable[[h5py.File], object]] = field(default_factory=list)
    after: list[Callable[[Path], object]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)  # of h5py.File

    @classmethod
    def read(cls, source: Path, path: Path) -> Draft:
        """Read a good file; the checksum of its attributes is computed anew when it is written to `path`."""
        datasets: dict[str, Values | Make] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                datasets[name] = item[()]

        with h5py.File(source) as file:
            file.visititems(visit)
            attributes = {name: value for name, value in file.attrs.items() if name != "attributes_crc32"}
        return cls(path, attributes, datasets)

    def array(self, name: str) -> Values:
        """Return a dataset that is still an array."""
        values = self.datasets[name]
        assert isinstance(values, np.ndarray)
        return values

    def write(self) -> None:
        """Write the file and its checksums, so that only the changed part is wrong."""
        with h5py.File(self.path, "w", **{"libver": NEW, **self.options}) as file:
            for name, value in self.attributes.items():
                if callable(value):
                    value(file, name)
                elif value is not None:
                    file.attrs[name] = value
            for name, values in self.datasets.items():
                if callable(values):
                    values(file, name)
                else:
                    store(file, name, values)
            for make in self.beside:
                make(file)
            if "attributes_crc32" not in self.attributes:
                with suppress(Exception):  # attributes that cannot be read have no checksum
                    file.attrs["attributes_crc32"] = attributes_crc32(file)
        if "linked" not in self.attributes:
            sign(self.path)
        for change in self.after:
            change(self.path)


@dataclass(frozen=True)
class Case:
    """A hostile file: what is done to a good one of the kind `base`, and what has to come of it.

    `where` is the dataset or attribute that a refusal has to name.
    """

    name: str
    change: Callable[[Draft], object]
    verdict: str = REFUSED
    base: str = "plain"
    where: str = ""


def store(
    file: h5py.File,
    name: str,
    values: Values | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    kind: Any = None,
    early: bool = True,
) -> None:
    """Make a dataset as store/layout.py does: contiguous and early allocated, or late with `early` False."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY if early else h5py.h5d.ALLOC_TIME_LATE)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5py.h5t.CSET_UTF8)
    if kind is None:
        assert values is not None
        texts = values.dtype.kind == "S"
        kind = h5py.string_dtype("utf-8", max(values.itemsize, 1)) if texts else values.dtype
    if not isinstance(kind, h5py.h5t.TypeID):
        kind = h5py.h5t.py_create(np.dtype(kind), logical=True)
    plain = not isinstance(kind, h5py.h5t.TypeVlenID) and not (
        isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    )
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER if plain else h5py.h5d.FILL_TIME_ALLOC)
    space = h5py.h5s.create_simple(values.shape if values is not None else shape or ())
    made = h5py.h5d.create(file.id, name.encode("utf-8", "surrogateescape"), kind, space, dcpl=properties, lcpl=links)
    if values is not None and values.size:
        h5py.Dataset(made)[...] = values.astype(made.dtype) if values.dtype.kind == "S" else values


def of(**options: Any) -> Make:
    """Make an empty dataset of the given shape and kind, see `store`."""
    return lambda file, name: store(file, name, **options)


def attributes_crc32(file: h5py.File) -> int:
    """Return the CRC-32 of the attributes that are text or numbers, as docs/reference/format.md has it."""
    found = {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
    found |= {
        name: value.decode("utf-8", "surrogateescape") for name, value in found.items() if isinstance(value, bytes)
    }
    plain = {name: value for name, value in found.items() if isinstance(value, str | int | float)}
    plain = {name: value for name, value in plain.items() if is_utf8(name) and is_utf8(str(value))}
    lines = (f"{name}={value}\n" for name, value in sorted(plain.items()) if name != "attributes_crc32")
    return zlib.crc32("".join(lines).encode("utf-8", "surrogateescape"))


def is_utf8(text: str) -> bool:
    """Return whether a text, which h5py may have read from any bytes, is UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sign(path: Path) -> None:
    """Compute images/crc32 and images/table_crc32 as docs/reference/format.md defines them; keep what cannot be computed."""
    with suppress(Exception), h5py.File(path, "r+") as file:
        found = {name: file[name][()] for name in _contiguous(file)}
        layers = ["features"] if "features" in found else [f"features/{name}" for name in _names(file)]
        images = range(len(found["images/status"]))
        with suppress(Exception):
            for image in images:
                if found["images/status"][image] == 1:
                    crc = 0
                    for layer in layers:
                        crc = zlib.crc32(np.ascontiguousarray(_rows(found, layer, image)).data, crc)
                    found["images/crc32"][image] = crc
            file["images/crc32"][...] = found["images/crc32"]
        for image in images:
            found["images/table_crc32"][image] = _table_crc32(found, image)
        file["images/table_crc32"][...] = found["images/table_crc32"]


def _contiguous(file: h5py.File) -> list[str]:
    """Return the datasets of the format that can be read at once."""
    names = [f"images/{name}" for name in (*IMAGE_TABLES, "offset", "status", "table_crc32")]
    names += [*BOX_TABLES, "features", "features/one", "features/two"]
    there = {name: file.get(name) for name in names}
    return [
        name
        for name, item in there.items()
        if isinstance(item, h5py.Dataset)
        and item.size is not None
        and item.size < SMALL
        and (item.id.get_offset() is not None or not item.size)
    ]


def _names(file: h5py.File) -> list[str]:
    return json.loads(file.attrs["layers"])


def _rows(found: Mapping[str, Values], name: str, image: int) -> Values:
    first, stop = found["images/offset"][image : image + 2].tolist()
    return found[name][first:stop]


def _table_crc32(found: Mapping[str, Values], image: int) -> int:
    first, stop = found["images/offset"][image : image + 2].tolist()
    crc = zlib.crc32(f"{int(found['images/status'][image])} {stop - first}".encode())
    for name in IMAGE_TABLES:
        if f"images/{name}" in found:
            crc = zlib.crc32(_bytes(found[f"images/{name}"][image : image + 1]), crc)
    for name in BOX_TABLES:
        if name in found:
            crc = zlib.crc32(_bytes(_rows(found, name, image)), crc)
    return crc


def _bytes(values: Values) -> bytes:
    return b"\0".join(values.tolist()) if values.dtype.kind == "S" else values.tobytes()
