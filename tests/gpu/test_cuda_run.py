"""A run on a device: nothing in it waits for the device, and its features are those of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cuda_waits import no_waiting
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.tensors import make_rois, relative_error

from roialign_cli import FeatureFile, extract, roi_align
from roialign_cli.backbones.base import Preprocessing
from roialign_cli.config import load
from roialign_cli.extraction.benchmark import make_job
from roialign_cli.extraction.job import pending_batches
from roialign_cli.extraction.worker import BatchWorker
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.store.check import check
from roialign_cli.store.output import open_output
from roialign_cli.system.device_queue import open_queue

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backbone", ["gabor", "fasterrcnn_resnet50_fpn"])
def test_a_run_does_not_wait_and_equals_the_cpu(backbone: str, device: torch.device, tmp_path: Path) -> None:
    given = {"backbone": backbone, "weights": "DEFAULT" if backbone == "gabor" else "random:0", "batch_size": 1}
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "cpu.h5", device="cpu", **given)
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "first.h5", **given)  # compiles, allocates
    job = make_job(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "cuda.h5", load(None, given))
    assert job.devices == (device,)
    open_output(job.output, job.plan, job.layout, overwrite=True)
    done = np.zeros(job.plan.images, np.bool_)
    worker = BatchWorker(job, open_queue(device), done, lambda _: None)  # moves the model, for which it waits
    with no_waiting():
        worker.run(pending_batches(job, done), lambda: False)
    with FeatureFile(tmp_path / "cpu.h5") as cpu, FeatureFile(tmp_path / "cuda.h5") as cuda:
        assert check(cuda).problems == []
        assert cuda.status.all()
        for name in cpu.names:
            assert relative_error(torch.tensor(cuda[name].features), torch.tensor(cpu[name].features)) < 1e-4


@pytest.mark.parametrize("size", [(480, 640), (37, 91), (1, 1)])
@pytest.mark.parametrize("antialias", [True, False])
def test_the_input_is_that_of_the_cpu(size: tuple[int, int], antialias: bool, device: torch.device) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i in range(2)]
    for short in (20, 600):
        how = Preprocessing((0.4, 0.5, 0.6), (1.0, 1.0, 1.0), (short, 2 * short), antialias, 32)
        expected, found = prepare(images, how, torch.device("cpu")), prepare(images, how, device)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert (found.cpu() - expected).abs().max() <= 1 / 255


def test_two_streams_at_once(device: torch.device) -> None:
    maps = torch.randn(2, 64, 50, 84, device=device)
    rois = make_rois(200, batch=2, width=84, height=50).to(device)
    expected = [roi_align(maps, rois, size) for size in (7, 14)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(device) for _ in expected]
    found = []
    for _ in range(5):
        for stream, size in zip(streams, (7, 14), strict=True):
            with torch.cuda.stream(stream):
                found.append(roi_align(maps, rois, size, validate=False))
    torch.cuda.synchronize()
    for i, features in enumerate(found):
        assert torch.equal(features, expected[i % 2])
