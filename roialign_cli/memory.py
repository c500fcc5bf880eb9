"""Memory that is used again instead of given back: what keeps a run on the CPU from waiting for new pages."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Of glibc's malloc.h, mallopt(3), with the defaults that are restored.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 << 10, M_TOP_PAD: 128 << 10}
KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}


@contextmanager
def kept() -> Iterator[None]:
    """Let glibc keep large blocks for the next allocation while this lasts; elsewhere nothing changes.

    By default each large tensor is new memory from the system and given back after use. A convolutional network's
    activations then cost a page fault every 4 KB, about a fifth of its time (measured, ResNet-50 with a pyramid at
    800 x 1088).
    """
    for option, value in KEPT.items():
        _glibc("mallopt", option, value)
    try:
        yield
    finally:
        for option, value in DEFAULTS.items():
            _glibc("mallopt", option, value)
        release()


def release() -> None:
    """Give back what is kept and free: blocks of one size of image seldom fit the next."""
    _glibc("malloc_trim", 0)


@cache
def _library() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "gnu_get_libc_version") else None


def _glibc(function: str, *arguments: int) -> None:
    if (library := _library()) is not None:
        getattr(library, function)(*arguments)
