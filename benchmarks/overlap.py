"""Time a run on a device that is busy for a set time per image: does anything else make the run longer?

    PYTHONPATH=tests python benchmarks/overlap.py [--seconds 6] [--runs 3] [--json benchmarks/results/overlap.json]

The device is a thread that works in order, as a GPU does on a stream, while the host goes on. Reading, decoding, batches,
normalisation, RoI Align, copies, checks and writing are real; the backbone sleeps for what the thread's other work leaves
of the set time. So whatever makes the run longer is the device waiting for the host. The floor is the set time of all
images. `waiting` is the same run on a device whose results the host waits for, batch by batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from helpers.stand_in import StandInDevice
from torch import Tensor, nn

from roialign_cli.backbones.base import Backbone, Layer, Preprocessing
from roialign_cli.config import load
from roialign_cli.extraction.benchmark import make_data
from roialign_cli.extraction.job import make_job, pending_batches
from roialign_cli.extraction.plan import plan_run
from roialign_cli.extraction.worker import BatchWorker
from roialign_cli.inputs.images import open_images
from roialign_cli.store.output import open_output
from roialign_cli.system import allocator
from roialign_cli.system.device_queue import DeviceQueue, HostQueue, Submitted

T = TypeVar("T")
MILLISECONDS = (40.0, 20.0, 10.0, 5.0)  # per image
FILES, BOXES = 100, 20  # different images, and boxes of each
CHANNELS, STRIDE = 256, 16


class Sleep(nn.Module):
    """Return a map of zeros, and keep the device busy for a set time per image together with its other work."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self._worked = 0.0  # seconds that the device was busy, less those that it should have been

    def forward(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        zeros = images.new_zeros(()).expand(n, height // STRIDE, width // STRIDE, CHANNELS)
        maps = zeros.contiguous().permute(0, 3, 1, 2)
        self._worked -= self.seconds * n
        time.sleep(max(-self._worked, 0.0))
        return maps

    def count(self, work: Callable[[], T]) -> T:
        """Do work of the device, and count how long it was busy, asleep or not."""
        begin = time.perf_counter()
        try:
            return work()
        finally:
            self._worked += time.perf_counter() - begin


class Overlapping(StandInDevice):
    """Work while the host goes on."""

    def __init__(self, sleep: Sleep) -> None:
        super().__init__()
        self._sleep = sleep

    def submit(self, work: Callable[[], T]) -> Submitted[T]:
        return super().submit(lambda: self._sleep.count(work))


class Waiting(HostQueue):
    """Let the host wait for each result."""

    def __init__(self, sleep: Sleep) -> None:
        super().__init__(torch.device("cpu"))
        self._sleep = sleep

    def submit(self, work: Callable[[], T]) -> Submitted[T]:
        return super().submit(lambda: self._sleep.count(work))


def run(data: Path, boxes: Path, output: Path, sleep: Sleep, device: DeviceQueue) -> float:
    """Return the seconds that a run takes from the first batch to the last row on the disk."""
    settings = load(None, {"backbone": "gabor"})
    preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    layers = (Layer("map", CHANNELS, (STRIDE,)),)
    backbone = Backbone("sleep", sleep, layers, preprocessing, "none", "")
    images = open_images(data)
    job = make_job(plan_run(images, boxes, output, settings), images, output, settings, backbone)
    open_output(output, job.plan, job.layout, overwrite=True)
    done = np.zeros(job.plan.images, np.bool_)
    with allocator.retain_freed_memory():
        worker = BatchWorker(job, device, done, lambda _: None)
        begin = time.perf_counter()
        worker.run(pending_batches(job, done), lambda: False)
        return time.perf_counter() - begin


def link_images(data: Path, boxes: Path, images: int) -> None:
    """Give the files of a folder so many names in all, each with the boxes of the file."""
    table = json.loads(boxes.read_text())
    names = sorted(table)[:FILES]
    for i in range(images):
        name, of = f"{i:06}.jpg", names[i % FILES]
        table[name] = table[of]
        if not (data / name).exists():
            (data / name).hardlink_to(data / of)
    linked = {name: rows for name, rows in table.items() if len(name) > len(names[0])}
    boxes.with_name("linked.json").write_text(json.dumps(linked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="the floor of each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # of the device, so that the time of its one thread is all of it
    rows = []
    with tempfile.TemporaryDirectory() as name:
        data, boxes = make_data(Path(name), FILES, BOXES)
        for milliseconds in MILLISECONDS:
            images = round(options.seconds * 1e3 / milliseconds)
            link_images(data, boxes, images)
            times: dict[str, list[float]] = {"overlapping": [], "waiting": []}
            for _ in range(options.runs):
                for kind, found in times.items():
                    sleep = Sleep(milliseconds / 1e3)
                    device = Overlapping(sleep) if kind == "overlapping" else Waiting(sleep)
                    found.append(run(data, boxes.with_name("linked.json"), Path(name) / "out.h5", sleep, device))
            floor = milliseconds / 1e3 * images
            ratios = {kind: round(statistics.median(found) / floor, 3) for kind, found in times.items()}
            rows.append({"milliseconds per image": milliseconds, "images": images, **ratios})
            print(
                f"{milliseconds:g} ms per image: " + ", ".join(f"{kind} {ratio:.3f}" for kind, ratio in ratios.items())
            )
    if options.json:
        machine = {
            "date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(), "torch": torch.__version__,
        }  # fmt: skip
        options.json.write_text(json.dumps({"machine": machine, "over the sleep": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
