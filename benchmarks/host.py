"""Measure the processor time of a run beside its backbone: one that only averages, beside decoding the images with Pillow.

    python benchmarks/host.py [--images 480] [--runs 7] [--json benchmarks/results/host.json]

JPEGs of 640 x 480 with 20 boxes each; milliseconds of user and system time per image of all threads of this process. The run,
Pillow, and the backbone on inputs that are ready take turns; medians count, and the first turn does not.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from roialign_cli.system.openmp import limit_spinning

limit_spinning()  # as the command line does, before torch is loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from roialign_cli.config import load  # noqa: E402
from roialign_cli.extraction.benchmark import make_data, make_job  # noqa: E402
from roialign_cli.extraction.job import Job, pending_batches  # noqa: E402
from roialign_cli.extraction.run import run_job  # noqa: E402
from roialign_cli.inputs.images import decode_image  # noqa: E402
from roialign_cli.regions.preprocessing import prepare  # noqa: E402
from roialign_cli.system import allocator  # noqa: E402

BOXES = 20  # per image
MODEL = "import torch\ndef average():\n    return torch.nn.AvgPool2d(16)\n"


def processor_milliseconds() -> float:
    """Return the user and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) * 1e3


def decode_all(paths: list[Path]) -> None:
    """Decode images one after the other, as one does by hand."""
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB"))


def backbone_action(job: Job) -> Callable[[], None]:
    """Return an action that runs the backbone as often as a run does, on the input of its first batch."""
    batches = [len(batch.images) for batch in pending_batches(job, np.zeros(job.plan.images, np.bool_))]
    pixels = [decode_image(job.images.file(name)).pixels for name in job.plan.table.names[: batches[0]]]
    inputs = prepare(pixels, job.backbone.preprocessing, job.devices[0])

    @torch.inference_mode()
    def run() -> None:
        for count in batches:
            job.backbone(inputs[:count])

    return run


def measure(images: int, runs: int) -> dict[str, float]:
    """Return the processor milliseconds per image of the run, of Pillow and of the backbone."""
    with tempfile.TemporaryDirectory() as name, allocator.retain_freed_memory():
        folder = Path(name)
        (folder / "averaging.py").write_text(MODEL)
        sys.path.insert(0, name)
        data, table = make_data(folder, images, BOXES)
        settings = load(None, {"backbone": "averaging:average", "resize": "none", "device": "cpu"})
        job = make_job(data, table, folder / "features.h5", settings)
        actions = {
            "run": lambda: run_job(job, overwrite=True),
            "pillow": lambda: decode_all(sorted(data.iterdir())),
            "backbone": backbone_action(job),
        }
        times: dict[str, list[float]] = {key: [] for key in actions}
        for turn in range(runs + 1):
            for key, action in actions.items():
                begin = processor_milliseconds()
                action()
                if turn:
                    times[key].append((processor_milliseconds() - begin) / images)
    return {key: statistics.median(values) for key, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.images, options.runs)
    over = {"run": found["run"] / found["pillow"], "beside": (found["run"] - found["backbone"]) / found["pillow"]}
    print({key: round(value, 2) for key, value in found.items()})
    print(f"the run takes {over['run']:.2f} times Pillow's decoding, {over['beside']:.2f} without its backbone")
    if options.json:
        machine = {"date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
                   "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip
        results = {"machine": machine, "milliseconds": {key: round(value, 3) for key, value in found.items()},
                   "over_pillow": {key: round(value, 2) for key, value in over.items()}}  # fmt: skip
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
