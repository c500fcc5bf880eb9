"""Test batches that exceed memory: they are halved, computed again, and stored with checksums that match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.extraction import compute
from roialign_cli.store.check import check
from roialign_cli.system.device_queue import HostQueue

BACKBONE = """
import torch

class TwoLayers(torch.nn.Module):
    def forward(self, images):
        return {"fine": images[:, :, ::4, ::4], "coarse": images[:, :, ::8, ::8]}

def make():
    return TwoLayers()
"""


@pytest.mark.parametrize("depth", [0, 2])
def test_memory_that_runs_out_again_and_again(depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of features that were taken for the images that failed are used for those that follow."""
    monkeypatch.setattr(HostQueue, "depth", depth)
    monkeypatch.setattr(compute, "BLOCKS_AHEAD", 3)
    (tmp_path / "im").mkdir()
    for i in range(8):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "im" / f"{i}.png")
    calls, roi_align = [], torchvision.ops.roi_align

    def roi_align_without_memory(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) <= 6:
            raise MemoryError
        return roi_align(*arguments)

    monkeypatch.setattr(torchvision.ops, "roi_align", roi_align_without_memory)
    given: dict[str, Any] = {"backbone": "gabor", "grid": "1x1", "batch_size": 1, "kernel": "torchvision"}
    summary = extract(tmp_path / "im", None, tmp_path / "f.h5", **given)
    assert (summary.done, summary.failed) == (2, 6)
    assert all("not enough memory" in reason for reason in summary.failures.values())
    again = extract(tmp_path / "im", None, tmp_path / "f.h5", **given)
    assert (again.done, again.failed) == (8, 0)


@pytest.mark.parametrize("depth", [0, 2])
def test_memory_that_runs_out_between_two_layers(depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the first layer are already written, or will be; the checksums must count them once."""
    monkeypatch.setattr(HostQueue, "depth", depth)
    (tmp_path / "two_layers_of_a_test.py").write_text(BACKBONE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "im").mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "im" / f"{i}.png")
    given: dict[str, Any] = {
        "backbone": "two_layers_of_a_test:make", "grid": "2x2", "output_size": 2, "batch_size": 2, "kernel": "torchvision",
    }  # fmt: skip
    extract(tmp_path / "im", None, tmp_path / "whole.h5", **given)

    calls, roi_align = [], torchvision.ops.roi_align

    def roi_align_without_memory(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 6:  # the second layer of the last batch
            raise MemoryError
        return roi_align(*arguments)

    monkeypatch.setattr(torchvision.ops, "roi_align", roi_align_without_memory)
    with pytest.warns(RuntimeWarning, match="not enough memory for 2 images of 96 x 64 at a time, halved"):
        summary = extract(tmp_path / "im", None, tmp_path / "halved.h5", **given)
    assert (summary.done, summary.failed) == (6, 0)
    assert len(calls) == 6 + 2 * 2
    with FeatureFile(tmp_path / "halved.h5") as file, FeatureFile(tmp_path / "whole.h5") as whole:
        assert check(file).problems == []
        for layer in ("fine", "coarse"):
            assert np.array_equal(file.features(layer), whole.features(layer))
