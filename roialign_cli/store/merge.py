"""Join shards: copy them into one ordinary file, or link them by a small file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import PackedNames, decode_text
from roialign_cli.errors import OutputError
from roialign_cli.store.checksum import ATTRIBUTES, BOX_TABLES, IMAGE_VERSION_TABLES, TABLES, attributes_crc32
from roialign_cli.store.disk import DeferredErrorFile, Disk, open_disk
from roialign_cli.store.identity import table_sha256
from roialign_cli.store.layout import Layout, check_space
from roialign_cli.store.output import locked, open_output
from roialign_cli.store.parts import Part
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import LINKED, PENDING, features_path
from roialign_cli.system.atomic import check_not_input, replace_atomically
from roialign_cli.types import BoxTable, Plan

COPY_CHUNK_BYTES = 64 << 20  # copied between two checks whether to stop
SHARD_ATTRIBUTES = ("shard", "shards", "plan_sha256", "plan_images", "plan_boxes")
# Tables that are written when an image is done or failed; the last two are checksums of everything stored about it.
OUTCOME_TABLES = ("images/size", *IMAGE_VERSION_TABLES, "images/error", "images/crc32", TABLES)
CHECKSUM_TABLES = ("images/status", "images/crc32", TABLES)
NO_COPY_FILE_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


@dataclass(frozen=True)
class MergeResult:
    """Hold the result of a merge; `bytes` are those of the features."""

    output: str
    shards: int
    images: int
    failed: int
    boxes: int
    bytes: int
    finished: bool


def open_shards(paths: Sequence[Path], output: Path) -> FeatureFile:
    """Open all shards of a run as one file.

    Raises OutputError if they do not belong together, if one is missing or unfinished, or if the output is one of them or
    cannot be written.
    """
    check_space(output, 0)
    file = FeatureFile(paths)
    check_not_input(output, (part.path for part in file.parts))
    pending = {part.path.name: int((part.map("images/status") == PENDING).sum()) for part in file.parts}
    if any(pending.values()):
        listed = ", ".join(f"{count:,} of {name}" for name, count in pending.items() if count)
        message = f"{paths[0].parent}: expected shards that are finished, found images pending: {listed}"
        raise OutputError("shards-unfinished", message, "run the extract command of these shards again to finish them")
    return file


def merge(
    paths: Sequence[Path],
    output: Path,
    *,
    overwrite: bool = False,
    on_bytes: Callable[[int, int], None] = lambda _, __: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> MergeResult:
    """Copy shards into one file, in the order of the plan; the same call resumes an interrupted merge.

    First the whole file is laid out and its space reserved. Then the features of each shard are copied as one range of bytes
    and synced, and only then its images are marked as they are in the shard. `on_bytes` is called with the bytes copied so
    far and the bytes in total.
    """
    file = open_shards(paths, output)
    plan = _plan(file)
    datasets = [features_path(layer, len(file.layers)) for layer in file.layers]
    layout = Layout(
        layers={layer: file.extents[name].shape[1:] for layer, name in zip(file.layers, datasets, strict=True)},
        dtype=str(file.extents[datasets[0]].dtype),
        levels="levels" in file.extents,
        attributes=_attributes(file, plan),
        versions=all(name in file.extents for name in IMAGE_VERSION_TABLES),
        tables={name: file.extents[name].shape[1:] for name in ("coverage", "area") if name in file.extents},
    )
    rows, finished = int(file.offset[-1]), True
    copied, total = 0, layout.feature_bytes(rows)
    # One shard is synced while the next is copied.
    with locked(output), ThreadPoolExecutor(1) as recording:
        open_output(output, plan, layout, overwrite=overwrite)
        target = Part(output)
        disk = open_disk(output)
        recorded: list[Future[None]] = []
        try:
            image = row = 0
            for part in file.parts:
                if not _is_merged(part, target, image):
                    _reopen(disk, part, target, image)
                    for size in _copy(part, target, datasets, row):
                        copied += size
                        on_bytes(copied, total)
                        if should_stop():
                            finished = False
                            break
                    if not finished:
                        break
                    recorded.append(recording.submit(_record, disk, part, target, image, row))
                else:
                    copied += sum(part.extents[name].row_bytes * part.extents[name].shape[0] for name in datasets)
                image, row = image + part.images, row + part.rows
            for future in recorded:
                future.result()
            disk.sync()
        except OSError as error:
            raise OutputError("output-write", f"{output}: cannot be written: {error.strerror or error}") from None
        finally:
            recording.shutdown()
            disk.close()
    return MergeResult(str(output), len(file.parts), len(file), len(file.errors), rows, total, finished)


def link(paths: Sequence[Path], output: Path, *, overwrite: bool = False) -> MergeResult:
    """Write a small file that links shards: FeatureFile reads them through it, other programs see HDF5's virtual datasets.

    Virtual datasets read as fast as external storage, and find the shards relative to the file and not to the reader. Shards
    in other folders are named relative to the file. The small tables are copied.
    """
    file = open_shards(paths, output)
    if output.exists() and not overwrite:
        raise OutputError("output-exists", f"{output}: expected nothing there", "choose another -o, or --overwrite")
    with locked(output):
        _write_links(file, output)
    home = output.parent.resolve()
    if not all(home in part.path.resolve().parents for part in file.parts):
        text = "links files outside of its own folder; --allow-links, or FeatureFile(..., allow_links=True), reads it"
        warnings.warn(f"{output}: {text}", RuntimeWarning, stacklevel=2)
    return MergeResult(
        str(output), len(file.parts), len(file), len(file.errors), int(file.offset[-1]), 0, finished=True
    )


def _write_links(file: FeatureFile, output: Path) -> None:
    """Write the small file that links the parts of a file."""
    sources = [os.path.relpath(part.path.resolve(), output.parent.resolve()) for part in file.parts]
    attributes = {**{k: v for k, v in file.attributes.items() if k != ATTRIBUTES}, LINKED: json.dumps(sources)}
    with (
        replace_atomically(output) as partial,
        DeferredErrorFile(partial) as target,
        h5py.File(target, "w", libver=("v110", "v110")) as made,
    ):
        made.attrs.update({**attributes, ATTRIBUTES: attributes_crc32(attributes)})
        for name, extent in file.extents.items():
            if not name.startswith("features"):
                values = file.offset if name == "images/offset" else np.array(file.dataset(name))
                kind = h5py.string_dtype("utf-8", values.itemsize) if values.dtype.kind == "S" else values.dtype
                made.create_dataset(name, data=values.view(kind), dtype=kind)
                continue
            virtual = h5py.VirtualLayout((int(file.offset[-1]), *extent.shape[1:]), extent.dtype)
            first = 0
            for part, source in zip(file.parts, sources, strict=True):
                shape = part.extents[name].shape
                virtual[first : first + shape[0]] = h5py.VirtualSource(source, name, shape, extent.dtype)
                first += shape[0]
            made.create_virtual_dataset(name, virtual)


def _attributes(file: FeatureFile, plan: Plan) -> dict[str, Any]:
    """Return the attributes of the merged file: those of the run, or hashes that identify the files of several runs."""
    attributes = {k: v for k, v in file.attributes.items() if k not in (*SHARD_ATTRIBUTES, ATTRIBUTES, "layers")}
    if "shard" not in file.attributes and len(file.parts) > 1:
        each = "".join(str(part.attributes.get("boxes_sha256")) for part in file.parts)
        attributes["boxes_sha256"] = hashlib.sha256(each.encode()).hexdigest()
        attributes["table_sha256"] = table_sha256(plan.table)
    return attributes


def _plan(file: FeatureFile) -> Plan:
    """Return the tables of all shards as a plan."""

    def column(name: str) -> npt.NDArray[Any] | None:
        if name not in file.extents:
            return None
        return decode_text(np.array(file.dataset(name)))

    columns: dict[str, Any] = {name: column(name) for name in ("labels", "scores", "ids", "rotated", "points")}
    boxes = np.array(file.dataset("boxes"))
    table = BoxTable(PackedNames.from_strings(file.names), file.offset, boxes, **columns)
    return Plan(table, np.array(file.sizes), {}, unused_images=0, outside_boxes=0, empty_boxes=0)


def _copy(part: Part, target: Part, names: Sequence[str], row: int) -> Iterator[int]:
    """Copy the features of a shard to their rows; yield the bytes of each piece."""
    with part.path.open("rb") as source, target.path.open("r+b") as sink:
        for name in names:
            place = part.extents[name]
            begin, size = place.offset, place.row_bytes * place.shape[0]
            to = target.extents[name].offset + row * place.row_bytes
            done = 0
            while done < size:
                piece = _copy_range(
                    source.fileno(), sink.fileno(), begin + done, to + done, min(COPY_CHUNK_BYTES, size - done)
                )
                if piece == 0:
                    raise OutputError("file-truncated", f"{part.path}: expected {size - done:,} more bytes of {name}")
                done += piece
                yield piece


def _copy_range(source: int, sink: int, begin: int, to: int, size: int) -> int:
    """Copy bytes within the system, which may share disk blocks instead; where that fails, copy through memory."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, sink, size, begin, to)
        except OSError as error:
            if error.errno not in NO_COPY_FILE_RANGE:
                raise
    data = os.pread(source, min(size, 8 << 20), begin)
    return os.pwrite(sink, data, to) if data else 0


def _is_merged(part: Part, target: Part, image: int) -> bool:
    """Return whether the target already has the images of a shard exactly as they are in the shard."""
    names = [name for name in CHECKSUM_TABLES if name in target.extents]
    return all(np.array_equal(part.map(name), target.map(name)[image : image + part.images]) for name in names)


def _reopen(disk: Disk, part: Part, target: Part, image: int) -> None:
    """Mark the images of a shard as pending in the target, durably, before any of them is written again."""
    if (target.map("images/status")[image : image + part.images] != PENDING).any():
        place = target.extents["images/status"]
        disk.write(place.offset + image * place.row_bytes, np.full(part.images, PENDING, np.uint8))
        disk.sync()


def _record(disk: Disk, part: Part, target: Part, image: int, row: int) -> None:
    """Write everything of a shard except its features, sync, and then write which of its images are done or failed."""
    for name in (*BOX_TABLES, *OUTCOME_TABLES, "images/status"):
        if name not in target.extents:
            continue
        place = target.extents[name]
        if name == "images/status":
            disk.sync()
        values = part.map(name).astype(place.raw_dtype)  # strings may be longer in another shard
        disk.write(place.offset + (row if name in BOX_TABLES else image) * place.row_bytes, values)
