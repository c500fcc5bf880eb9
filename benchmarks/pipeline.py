"""Time a whole run, from images on disk to features on disk, against a script written with torchvision and h5py.

    python benchmarks/pipeline.py [--images 8] [--runs 3] [--json benchmarks/results/pipeline.json]

The script (see `extraction/benchmark.py`) decodes with Pillow, runs torchvision's detector backbone image by image with its
own transform and MultiScaleRoIAlign, and writes one group per image. Ours extracts the same images and boxes with the same
weights and threads in one run. `backbone` is the floor: our model alone on inputs that are ready, with whole maps. Building
the models is not timed. All run in one process, alternating; medians. Features are compared with the script's.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torchvision

from roialign_cli import FeatureFile
from roialign_cli.config import load
from roialign_cli.extraction.benchmark import (
    Action,
    make_data,
    make_job,
    median_seconds,
    stage_actions,
    torchvision_script,
)
from roialign_cli.extraction.run import run_job
from roialign_cli.system import allocator
from roialign_cli.system.devices import find_device

BACKBONE = "fasterrcnn_resnet50_fpn"
CASES = [(1000, "float32"), (1000, "bfloat16"), (20, "float32"), (20, "bfloat16")]


def difference(ours: Path, theirs: Path) -> float:
    """Return the largest difference of any feature over the largest value."""
    worst, scale = 0.0, 0.0
    with FeatureFile(ours) as found, h5py.File(theirs) as expected:
        for name in found.names:
            values = expected[name]["features"][:]
            worst = max(worst, float(np.abs(found[name].features - values).max()))
            scale = max(scale, float(np.abs(values).max()))
    return worst / scale


def measure(boxes: int, precision: str, folder: Path, model: Any, images: int, runs: int) -> dict[str, float]:
    device = find_device("auto")
    data, table = make_data(folder, images, boxes)
    ours, theirs = folder / "ours.h5", folder / "script.h5"
    settings = load(None, {"backbone": BACKBONE, "weights": "random", "precision": precision, "aligned": False})
    job = make_job(data, table, ours, settings)
    with allocator.retain_freed_memory():
        backbone = stage_actions(job, folder)["backbone"]

    def alone() -> None:
        with allocator.retain_freed_memory():
            backbone()

    actions: dict[str, Action] = {
        "script": lambda: torchvision_script(data, table, theirs, model, device),
        "ours": lambda: run_job(job, overwrite=True),
        "backbone": alone,
    }
    return {**median_seconds(actions, runs, device), "difference": difference(ours, theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)  # as --weights random
    model = torchvision.models.get_model(BACKBONE, weights=None, weights_backbone=None).eval().to(find_device("auto"))
    rows = []
    for boxes, precision in CASES:
        with tempfile.TemporaryDirectory() as name:
            times = measure(boxes, precision, Path(name), model, options.images, options.runs)
        case = f"{boxes} boxes per image, {precision}"
        rows.append({"case": case, **times})
        print(
            f"{case}: script {times['script']:.2f} s, ours {times['ours']:.2f} ({times['script'] / times['ours']:.2f}x), "
            f"backbone alone {times['backbone']:.2f} (ours is {times['ours'] / times['backbone']:.2f} of it), "
            f"features differ by {times['difference']:.1e} of the maximum",
            flush=True,
        )
    machine = {
        "date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        "images": options.images,
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
