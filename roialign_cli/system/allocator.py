"""Memory that is used again instead of given back: what keeps a run on the CPU from waiting for new pages."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

# Of glibc's malloc.h, mallopt(3), with the defaults that are restored.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 << 10, M_TOP_PAD: 128 << 10}
RETAINING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Let glibc keep large blocks for the next allocation while this, or another such, lasts; elsewhere nothing changes.

    By default each large tensor is new memory from the system and given back after use. A convolutional network's
    activations then cost a page fault every 4 KB, about a fifth of its time (measured, ResNet-50 with a pyramid at
    800 x 1088).
    """
    _keep(1)
    try:
        yield
    finally:
        _keep(-1)


def restore_mmap_threshold() -> None:
    """Let glibc give blocks of more than 128 KB back to the system at once, as it does at first; elsewhere nothing changes.

    By and by it takes "large" to mean 32 MB. What is read in parts then leaves holes, half as much again as is kept (measured,
    a plan of 2 million images).
    """
    _glibc("mallopt", M_MMAP_THRESHOLD, 128 << 10)


def trim_for_size(size: tuple[int, int]) -> None:
    """Images of this size come next: give back what is kept of another, whose blocks seldom fit."""
    if _state.size not in (None, size):
        release()
    _state.size = size


def release() -> None:
    """Give back what is kept and free."""
    _state.size = None
    _glibc("malloc_trim", 0)


@dataclass
class _State:
    """The allocator is the process's, and so is what was asked of it: for how many, and what size it is used to."""

    users: int = 0
    size: tuple[int, int] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_state = _State()


def _keep(more: int) -> None:
    with _state.lock:
        before, _state.users = _state.users, _state.users + more
        if before and _state.users:
            return
        for option, value in (RETAINING if _state.users else DEFAULTS).items():
            _glibc("mallopt", option, value)
        if not _state.users:
            release()


@cache
def _library() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "gnu_get_libc_version") else None


def _glibc(function: str, *arguments: int) -> None:
    if (library := _library()) is not None:
        getattr(library, function)(*arguments)
