"""Test that the allocator keeps freed memory while a run lasts and gives it back afterwards."""

from __future__ import annotations

import multiprocessing
import platform
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from roialign_cli.system import allocator


def resident() -> float:
    """Return the megabytes in memory."""
    found = re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1e3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_memory_is_kept_and_then_given_back() -> None:
    """A process of its own measures it, because memory that other tests freed could be used instead of new memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as process:
        process.submit(keep_and_give_back).result()


def keep_and_give_back() -> None:
    allocator.release()  # what imports have freed would be given back later
    before = resident()
    with allocator.retain_freed_memory():
        torch.ones(64 << 20)  # 268 MB, freed at once
        assert (now := resident()) > before + 200, (now, before)
        allocator.release()
        assert (now := resident()) < before + 100, (now, before)
        with allocator.retain_freed_memory():  # a run within what keeps more than one
            torch.ones(64 << 20)
        assert (now := resident()) > before + 200, (now, before)
        allocator.trim_for_size((480, 640))
        torch.ones(64 << 20)
        allocator.trim_for_size((480, 640))
        assert (now := resident()) > before + 200, (now, before)
        allocator.trim_for_size((640, 480))
        assert (now := resident()) < before + 100, (now, before)
        torch.ones(64 << 20)
    assert (now := resident()) < before + 100, (now, before)
