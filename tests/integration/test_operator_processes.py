"""Test the CPU kernel with several threads, in forked children, and with cold and read-only caches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sample_data import ROOT
from helpers.tensors import make_rois
from torch.utils.data import DataLoader, Dataset

from roialign_cli import roi_align

MAPS = torch.randn(2, 64, 40, 50, generator=torch.Generator().manual_seed(0))
ROIS = make_rois(200, batch=2, width=50, height=40)


def test_concurrent_callers_get_their_own_results() -> None:
    outputs = {size: roi_align(MAPS, ROIS, size) for size in (2, 3, 5, 7)}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: (2 + i % 4, roi_align(MAPS, ROIS, (2, 3, 5, 7)[i % 4])), range(64)))
    for i, (_, found) in enumerate(results):
        assert torch.equal(found, outputs[(2, 3, 5, 7)[i % 4]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.timeout(60)
def test_a_forked_child_can_pool() -> None:
    expected = roi_align(MAPS, ROIS, 7)  # the parent's threads exist before the fork
    for _ in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                found = roi_align(MAPS, ROIS, 7)
                code = 0 if np.array_equal(found.numpy(), expected.numpy()) else 2  # torch.equal hangs after a fork
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Pooled(Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> torch.Tensor:
        return roi_align(MAPS, ROIS, i + 1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_can_pool(method: str) -> None:
    roi_align(MAPS, ROIS, 2)
    loader = DataLoader(Pooled(), batch_size=None, num_workers=2, multiprocessing_context=method)
    for i, found in enumerate(loader):
        assert torch.equal(found, roi_align(MAPS, ROIS, i + 1))


SCRIPT = """
import torch
from roialign_cli import roi_align
from roialign_cli.ops.cpu import kernel
assert roi_align(torch.ones(1, 16, 9, 9), torch.tensor([[0., 1, 1, 8, 8]]), 4).eq(1).all()
print(kernel.__file__, sum(kernel.pool.stats.cache_hits.values()), kernel.cache_folder(), sep="|")
"""


def run_copy(package: Path, home: Path) -> list[str]:
    env = {**os.environ, "PYTHONPATH": str(package), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    env.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-P", "-c", SCRIPT], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    file, hits, folder = done.stdout.strip().split("|")
    assert file.startswith(str(package))
    return [hits, folder]


@pytest.mark.slow
def test_compiled_once_kept_on_disk_and_not_missed_where_it_cannot_be(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "roialign_cli", tmp_path / "roialign_cli", ignore=shutil.ignore_patterns("__pycache__"))
    assert run_copy(tmp_path, tmp_path)[0] == "0"
    assert run_copy(tmp_path, tmp_path)[0] != "0"
    shutil.rmtree(tmp_path / "roialign_cli" / "ops" / "cpu" / "__pycache__")
    (
        tmp_path / "roialign_cli" / "ops" / "cpu" / "__pycache__"
    ).touch()  # a file: no folder can be made there, not even by root
    (tmp_path / "home").touch()
    hits, folder = run_copy(tmp_path, tmp_path / "home")
    assert hits == "0"
    assert folder.startswith("memory only")
