"""Allocate outputs, and use the memory of dead ones again: new pages cost more than the arithmetic that fills them.

The memory of a large output is kept when the last tensor on it dies, and the next output that fits gets it. At most
`limit_kept_outputs` is kept; the system may take it back at any time if it needs it (MADV_FREE, on Linux and macOS).
"""

from __future__ import annotations

import contextlib
import math
import mmap
import operator
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.ops.request import Request

# The type that carries each element type: NumPy has no bfloat16, so its bits are unsigned and those of float16 signed.
STORED: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.bfloat16: np.dtype(np.uint16),
    torch.float16: np.dtype(np.int16),
}
LARGE_BYTES = 1 << 20  # smaller outputs are left to NumPy, whose allocator keeps memory of this size itself
PAGE_BYTES, HUGE_PAGE_BYTES = 4096, 2 << 20
MOST_WASTE = 1.25  # a block is at most so many times as large as its output
KEPT_BYTES = 256 << 20  # kept by default: an output of 300 RoIs, 1024 channels and 14x14 bins in float32 has 241 MB


@dataclass
class _Kept:
    """The kept memory of this process, the oldest block first. Only atomic operations touch it, so it needs no lock."""

    limit: int = KEPT_BYTES
    blocks: deque[mmap.mmap] = field(default_factory=deque)


_kept = _Kept()


def new_output(request: Request) -> Tensor:
    """Return memory of the shape and type of a request's result, without values. Raises MemoryError."""
    stored = STORED[request.dtype]
    size = math.prod(request.shape) * stored.itemsize
    if size < LARGE_BYTES:
        array = np.empty(request.shape, stored)
    else:
        block = _take(size) or _new_block(size)
        array = np.frombuffer(block, stored, size // stored.itemsize).reshape(request.shape)
        # torch holds this very array for as long as any tensor uses its memory.
        weakref.finalize(array, _keep, block).atexit = False
    return torch.from_numpy(array).view(request.dtype)


def limit_kept_outputs(limit: int) -> None:
    """Keep at most so many bytes of the memory of dead outputs for the next ones; 0 keeps none.

    Memory above the limit goes back to the system at once. The limit holds for this process and is 256 MiB by default.
    Raises ValueError for a negative limit.
    """
    limit = operator.index(limit)
    if limit < 0:
        raise ValueError(f"limit: expected 0 or more bytes, found {limit}")
    _kept.limit = limit
    _drop_oldest(limit)


def kept_bytes() -> int:
    """Return how much memory of dead outputs is kept."""
    return sum(map(len, list(_kept.blocks)))


def _new_block(size: int) -> mmap.mmap:
    """Return new memory of at least a size whose pages exist.

    Threads that touch new pages at once wait for each other in the system (241 MB: 24 ms touched by one thread, 47 ms by two,
    measured), so this thread touches them first.
    """
    whole = _whole_pages(size)
    try:
        block = _map(whole)
    except OSError:  # no memory is left
        _drop_oldest(0)
        try:
            block = _map(whole)
        except OSError as error:
            raise MemoryError(f"cannot allocate {size} bytes for an output: {error.strerror}") from None
    pages: npt.NDArray[np.uint8] = np.frombuffer(block, np.uint8)
    pages[::PAGE_BYTES] = 0
    return block


def _whole_pages(size: int) -> int:
    """Return a size rounded up to pages; huge ones would waste up to half of a block that is not much larger."""
    page = HUGE_PAGE_BYTES if size >= 8 * HUGE_PAGE_BYTES else PAGE_BYTES
    return -(-size // page) * page


def _map(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # by default a fork would share it
    _advise(block, "MADV_HUGEPAGE")
    return block


def _take(size: int) -> mmap.mmap | None:
    """Return the smallest kept block that fits an output of a size well, or None."""
    for block in sorted(_kept.blocks, key=len):
        if _whole_pages(size) <= len(block) <= _whole_pages(size) * MOST_WASTE:
            try:
                _kept.blocks.remove(block)
            except ValueError:  # another thread took it meanwhile
                continue
            return block
    return None


def _keep(block: mmap.mmap) -> None:
    """Keep the memory of a dead output, and drop the oldest blocks above the bound.

    The garbage collector may call this at any instant, in any thread, so it neither waits nor raises.
    """
    _advise(block, "MADV_FREE")
    _kept.blocks.append(block)
    _drop_oldest(_kept.limit)


def _drop_oldest(limit: int) -> None:
    with contextlib.suppress(IndexError):  # another thread may take the last one
        while kept_bytes() > limit:
            _kept.blocks.popleft()


def _advise(block: mmap.mmap, name: str) -> None:
    """Give the system advice about memory where it takes such advice."""
    with contextlib.suppress(AttributeError, OSError):
        block.madvise(getattr(mmap, name))
