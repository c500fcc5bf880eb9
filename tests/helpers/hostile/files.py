"""Make things that are no feature files, or that stand in unusual places."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import h5py

from helpers.hostile.draft import OPEN, SOUND, Case, Draft
from helpers.hostile.good import KINDS


def becomes(replace: Callable[[Path], object]) -> Callable[[Draft], None]:
    """Replace the file by something else."""

    def change(draft: Draft) -> None:
        draft.after.extend([Path.unlink, replace])

    return change


def empty_hdf5(path: Path) -> None:
    h5py.File(path, "w").close()


def only_format(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "roialign-features", "format_version": 1})


def listening(path: Path) -> None:
    """Make a socket, bound from its folder because names of sockets must be short."""
    descriptor, here = os.open(path.parent, os.O_RDONLY), os.open(".", os.O_RDONLY)
    try:
        os.fchdir(descriptor)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(descriptor)
        os.close(here)


def append(content: bytes) -> Callable[[Path], None]:
    def add(path: Path) -> None:
        with path.open("ab") as file:
            file.write(content)

    return add


def overwrite(begin: int, content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(begin)
            file.write(content)

    return write


def after(change: Callable[[Path], object]) -> Callable[[Draft], object]:
    return lambda draft: draft.after.append(change)


CASES = [
    *[Case(f"file: {what}", becomes(make)) for what, make in {
        "empty": Path.touch, "text": lambda path: path.write_text("no HDF5"), "a folder": Path.mkdir, "FIFO": os.mkfifo,
        "missing": lambda path: None, "a socket": listening, "HDF5 with nothing in it": empty_hdf5,
        "HDF5 of the format with nothing in it": only_format, "zeros": lambda path: path.write_bytes(bytes(1 << 16)),
        "/dev/zero": lambda path: path.symlink_to("/dev/zero"), "/dev/null": lambda path: path.symlink_to("/dev/null"),
        "/dev/full": lambda path: path.symlink_to("/dev/full"), "a link to itself": lambda path: path.symlink_to(path),
        "a link to nothing": lambda path: path.symlink_to("nothing"), "a link to a folder": lambda path: path.symlink_to("."),
    }.items()],
    Case("file: HDF5's head alone", after(lambda path: os.truncate(path, 48))),
    Case("file: HDF5's head of another version", after(overwrite(8, b"\xff"))),
    Case("file: HDF5's head of a wild size of offsets", after(overwrite(9, b"\xff"))),
    Case("file: with a block of the user's before it", lambda draft: draft.options.update(userblock_size=512), OPEN),
    Case("file: with more at its end", after(append(b"x" * 5000)), OPEN),
    Case("file: HDF5 twice", after(lambda path: append(path.read_bytes())(path)), OPEN),
    Case("file: a symbolic link", after(lambda path: path.symlink_to(path.rename(path.with_name("real.h5")))), OPEN),
    *[Case(f"good: {base}", lambda draft: None, SOUND, base) for base in [*KINDS, "shards"]],
]  # fmt: skip
