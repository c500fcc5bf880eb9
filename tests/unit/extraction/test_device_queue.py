"""Test a run on a device that works while the host goes on: the same file, in any case, and nothing waits for values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.stand_in import DeviceTensor, StandInDevice

from roialign_cli import FeatureFile
from roialign_cli.backbones import load_backbone
from roialign_cli.backbones.base import Preprocessing
from roialign_cli.config import Settings, load
from roialign_cli.extraction import compute
from roialign_cli.extraction.job import pending_batches, prepare_job
from roialign_cli.extraction.plan import plan_run
from roialign_cli.extraction.worker import BatchWorker
from roialign_cli.inputs.images import open_images
from roialign_cli.regions.preprocessing import normalise, prepare
from roialign_cli.regions.values import finite_flag
from roialign_cli.store.check import check
from roialign_cli.store.output import open_output
from roialign_cli.system.device_queue import DeviceQueue, HostQueue


def run(device: DeviceQueue, output: Path, **settings: Any) -> list[int]:
    """Extract the features of the sample data on a device; return the images in the order in which they were finished."""
    chosen = load("quickstart", {"batch_size": 1, **settings})
    images = open_images(SAMPLE_IMAGES)
    job = prepare_job(plan_run(images, SAMPLE_BOXES, output, chosen), images, output, chosen)
    status = open_output(output, job.plan, job.layout, overwrite=False)
    finished: list[int] = []
    worker = BatchWorker(job, device, status == 1, finished.append)
    worker.run(pending_batches(job, status == 1), lambda: False)
    return finished


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_file_is_the_same(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(HostQueue(torch.device("cpu")), tmp_path / "host.h5", dtype=dtype)
    monkeypatch.setattr(compute, "BLOCK_BYTES_AHEAD", 1 << 18)
    monkeypatch.setattr(compute, "BLOCKS_AHEAD", 2)  # fewer than three batches need
    assert run(StandInDevice(), tmp_path / "ahead.h5", dtype=dtype) == expected
    with FeatureFile(tmp_path / "host.h5") as host, FeatureFile(tmp_path / "ahead.h5") as ahead:
        assert check(ahead).problems == []
        assert ahead.status.all()
        for layer in host.layers:
            assert np.array_equal(host.features(layer), ahead.features(layer))


def test_an_error_of_the_device_ends_the_run(tmp_path: Path) -> None:
    """It is raised when the work is finished, and images that were finished before stay valid."""

    class Breaking(StandInDevice):
        works = 0

        def submit(self, work: Any) -> Any:
            self.works += 1
            return super().submit(work if self.works < 8 else self.fail)

        def fail(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(Breaking(), tmp_path / "broken.h5")
    with FeatureFile(tmp_path / "broken.h5") as file:
        assert 0 < file.status.sum() < len(file.names)
        assert check(file).problems == []


def test_the_stand_in_sees_waiting() -> None:
    values = DeviceTensor(torch.arange(6.0))
    assert torch.equal((values * 2).host, torch.arange(6.0) * 2)
    for wait in (lambda: bool(values.sum()), lambda: values[values > 2], lambda: float(values[0]), values.nonzero):
        with pytest.raises(AssertionError, match="the host waits"):
            wait()


def test_nothing_waits_for_the_input() -> None:
    images = torch.randint(0, 256, (2, 50, 70, 3), dtype=torch.uint8)
    how = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (64, 80), multiple=32)
    found = normalise(DeviceTensor(images), how)
    expected = prepare([image.numpy() for image in images], how, torch.device("cpu"))
    assert isinstance(found, DeviceTensor)
    assert torch.equal(found.host, expected)


def test_nothing_waits_for_the_maps() -> None:
    """Not even where only the tiles of a map that RoIs touch are computed."""
    backbone = load_backbone(Settings(backbone="fasterrcnn_resnet50_fpn", weights="random:0"))
    images = torch.randn(1, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    reads = [{0: torch.tensor([[0, 2, 2, 12, 30]]), 1: torch.tensor([[0, 0, 0, 31, 31]])}]
    with torch.inference_mode():
        found, expected = backbone(DeviceTensor(images), reads=reads), backbone(images, reads=reads)
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours.host, theirs)


def test_nothing_waits_for_finiteness() -> None:
    values = torch.randn(3, 4)
    assert finite_flag(DeviceTensor(values)).host
    values[1, 2] = torch.inf
    assert not finite_flag(DeviceTensor(values)).host
