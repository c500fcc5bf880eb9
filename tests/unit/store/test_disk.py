"""Test that writes past the page cache store the same bytes as others, and give way where the system refuses them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roialign_cli.store import disk
from roialign_cli.store.disk import BLOCK_BYTES, DIRECT_IO_CHUNK_BYTES, DIRECT_IO_MIN_BYTES, Disk

MEMORY = np.random.default_rng(0).integers(0, 256, 2 * DIRECT_IO_CHUNK_BYTES + 5 * BLOCK_BYTES, np.uint8)
START = -MEMORY.ctypes.data % BLOCK_BYTES  # of a block in memory


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk") / "file"


def write(path: Path, position: int, data: npt.NDArray[np.uint8]) -> bool:
    """Check that a write changes only its bytes; return whether later writes still go past the cache."""
    before = np.full(len(MEMORY) + BLOCK_BYTES, 170, np.uint8)
    path.write_bytes(before.tobytes())
    opened = Disk(path)
    opened.write(position, data)
    opened.sync()
    direct = opened._direct is not None
    opened.close()
    before[position : position + len(data)] = data
    assert path.read_bytes() == before.tobytes()
    return direct


@settings(max_examples=60)
@given(
    st.integers(0, BLOCK_BYTES),
    st.one_of(
        st.integers(0, 2 * BLOCK_BYTES),
        st.integers(DIRECT_IO_MIN_BYTES - BLOCK_BYTES, DIRECT_IO_MIN_BYTES + 2 * BLOCK_BYTES),
        st.integers(DIRECT_IO_CHUNK_BYTES, 2 * DIRECT_IO_CHUNK_BYTES),
    ),
    st.one_of(st.integers(0, BLOCK_BYTES), st.sampled_from([0, 512, 1024])),
)
def test_the_same_bytes_wherever_they_lie(path: Path, position: int, length: int, shift: int) -> None:
    write(path, position, MEMORY[START + shift : START + shift + length])


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT on this system")
def test_what_the_system_refuses_goes_through_the_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SECTOR_BYTES", 1)  # so that memory at odd addresses is tried
    write(path, 0, MEMORY[START + 1 : START + 1 + 2 * DIRECT_IO_MIN_BYTES])
    monkeypatch.delattr(os, "O_DIRECT")  # a system that knows nothing of it
    assert not write(path, 0, MEMORY[START : START + 2 * DIRECT_IO_MIN_BYTES])


def test_no_sync_succeeds_after_one_failed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path.write_bytes(bytes(BLOCK_BYTES))
    opened = Disk(path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            opened.sync()
    with pytest.raises(OSError, match="Input/output error"):  # though the system would now report a success
        opened.sync()
    opened.close()
