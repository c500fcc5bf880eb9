"""Reuse freed memory instead of returning it to the system, so that a run on the CPU does not wait for new pages."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

# The parameters of glibc's mallopt(3), from malloc.h; sizes in bytes.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
DEFAULT_OPTIONS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 << 10, M_TOP_PAD: 128 << 10}  # glibc's own, restored later
RETAINING_OPTIONS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
DEFAULT_MMAP_THRESHOLD_BYTES = 128 << 10


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Let glibc keep large freed blocks for the next allocation until the last of these contexts ends.

    By default glibc takes the memory of each large tensor from the system and returns it after use. The activations of a
    convolutional network then cost a page fault every 4 KB, about a fifth of its time (measured, ResNet-50 with a
    pyramid at 800 x 1088). Does nothing without glibc.
    """
    _change_users(1)
    try:
        yield
    finally:
        _change_users(-1)


def restore_mmap_threshold() -> None:
    """Let glibc return freed blocks of more than 128 KB to the system at once, as a new process does.

    Otherwise glibc raises this threshold step by step to 32 MB, and a file that is read in parts leaves holes in the
    heap: half as much memory again as the data that is kept (measured, a plan of 2 million images). Does nothing
    without glibc.
    """
    _glibc("mallopt", M_MMAP_THRESHOLD, DEFAULT_MMAP_THRESHOLD_BYTES)


def trim_for_size(size: tuple[int, int]) -> None:
    """Return kept memory to the system if images of another size (height, width) come next: its blocks seldom fit them."""
    if _state.size not in (None, size):
        release()
    _state.size = size


def release() -> None:
    """Return all memory that is kept but free to the system."""
    _state.size = None
    _glibc("malloc_trim", 0)


@dataclass
class _State:
    """The state of the allocator, which is one per process."""

    users: int = 0  # open contexts of `retain_freed_memory`
    size: tuple[int, int] | None = None  # (height, width) of the images that the kept blocks fit
    lock: threading.Lock = field(default_factory=threading.Lock)


_state = _State()


def _change_users(change: int) -> None:
    """Count a user in or out; switch the options of glibc at the first one and back at the last one."""
    with _state.lock:
        before, _state.users = _state.users, _state.users + change
        if before and _state.users:
            return
        for option, value in (RETAINING_OPTIONS if _state.users else DEFAULT_OPTIONS).items():
            _glibc("mallopt", option, value)
        if not _state.users:
            release()


@cache
def _load_glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "gnu_get_libc_version") else None


def _glibc(function: str, *arguments: int) -> None:
    if (library := _load_glibc()) is not None:
        getattr(library, function)(*arguments)
