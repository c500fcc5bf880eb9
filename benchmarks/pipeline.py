"""A whole run, images on disk to features on disk, against the script that one would write with torchvision and h5py.

    python benchmarks/pipeline.py [--images 6] [--runs 3] [--json benchmarks/results/pipeline.json]

The script decodes with Pillow, runs the backbone image by image as torchvision's detectors do (their transform, their
pyramid, MultiScaleRoIAlign) and writes one group per image. Ours is `roialign extract` on the same images, boxes, weights
and threads. `backbone` is the floor: our model alone, on inputs that are ready. Building a model is timed for neither. All run
in one process, alternating; medians. Features are compared with the script's before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms.functional import to_tensor

from roialign_cli import FeatureFile
from roialign_cli.config import load
from roialign_cli.filling import Job
from roialign_cli.pipeline import prepare_job, run_job
from roialign_cli.planning import plan_run

SAMPLES = Path(__file__).parent.parent / "sample_data" / "images"
BACKBONE = "fasterrcnn_resnet50_fpn"


@dataclass(frozen=True)
class Case:
    boxes: int
    precision: str

    def __str__(self) -> str:
        return f"{self.boxes} boxes per image, {self.precision}"


CASES = [Case(1000, "float32"), Case(1000, "bfloat16"), Case(20, "float32"), Case(20, "bfloat16")]


def make_data(folder: Path, images: int, boxes: int) -> tuple[Path, Path]:
    """Photographs of 640 x 480 cut from the sample images, and boxes of 16 to 480 pixels, log-uniform."""
    rng = np.random.default_rng(0)
    pictures = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.iterdir()) if path.suffix != ".md"]
    table = {}
    (folder / "images").mkdir()
    for i in range(images):
        picture = pictures[i % len(pictures)]
        picture.resize((640, 480)).save(folder / "images" / f"{i:04}.jpg", quality=90)
        sides = np.exp(rng.uniform(math.log(16), math.log(480), (boxes, 2)))
        corner = rng.random((boxes, 2)) * (np.array([640, 480]) - sides)
        table[f"{i:04}.jpg"] = np.hstack([corner, corner + sides]).astype(np.float32).tolist()
    (folder / "boxes.json").write_text(json.dumps(table))
    return folder / "images", folder / "boxes.json"


def script(images: Path, boxes: Path, output: Path, model: Any) -> None:
    """The researcher's script."""
    transform = GeneralizedRCNNTransform(800, 1333, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 0)
    with h5py.File(output, "w") as file, torch.inference_mode():
        for name, rows in json.loads(boxes.read_text()).items():
            image = to_tensor(Image.open(images / name).convert("RGB"))
            target = [{"boxes": torch.tensor(rows).reshape(-1, 4), "labels": torch.zeros(len(rows), dtype=torch.int64)}]
            batch, scaled = transform([image], target)
            maps = model.backbone(batch.tensors)
            features = pool(maps, [scaled[0]["boxes"]], batch.image_sizes)
            group = file.create_group(name)
            group["features"] = features.numpy()
            group["boxes"] = np.array(rows, np.float32)


def prepare(images: Path, boxes: Path, output: Path, precision: str) -> Job:
    settings = load(None, {"backbone": BACKBONE, "weights": "random", "precision": precision, "aligned": False})
    return prepare_job(plan_run(images, boxes, output, settings), images, output, settings)


def backbone_alone(job: Job, count: int) -> None:
    """The very model of the job, on inputs that are ready."""
    precision = getattr(torch, job.settings.precision)
    inputs = torch.randn(1, 3, 800, 1088).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        for _ in range(count):
            job.backbone(inputs)


def measure(actions: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 1):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            if run:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def difference(ours_path: Path, script_path: Path) -> float:
    """Largest difference of any feature over the largest value."""
    worst, scale = 0.0, 0.0
    with FeatureFile(ours_path) as found, h5py.File(script_path) as expected:
        for name in found.names:
            theirs = expected[name]["features"][:]
            worst = max(worst, float(np.abs(found[name].features - theirs).max()))
            scale = max(scale, float(np.abs(theirs).max()))
    return worst / scale


def run(case: Case, folder: Path, model: Any, count: int, runs: int) -> dict[str, float]:
    images, boxes = make_data(folder, count, case.boxes)
    theirs, mine = folder / "script.h5", folder / "ours.h5"
    begin = time.perf_counter()
    job = prepare(images, boxes, mine, case.precision)
    setup = time.perf_counter() - begin
    actions: dict[str, Callable[[], object]] = {
        "script": lambda: script(images, boxes, theirs, model),
        "ours": lambda: run_job(job, overwrite=True),
        "backbone": lambda: backbone_alone(job, count),
    }
    times = measure(actions, runs)
    return {"difference": difference(mine, theirs), "setup": setup, **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = torchvision.models.get_model(BACKBONE, weights=None, weights_backbone=None).eval()
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            times = run(case, Path(name), model, options.images, options.runs)
        rows.append({"case": str(case), **times})
        print(
            f"{case}: script {times['script']:.2f} s, ours {times['ours']:.2f} ({times['script'] / times['ours']:.2f}x), "
            f"backbone alone {times['backbone']:.2f} (ours is {times['ours'] / times['backbone']:.3f} of it), "
            f"features differ by {times['difference']:.1e} of the maximum; setup {times['setup']:.1f} s"
        )
    machine = {
        "date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "torchvision": torchvision.__version__,
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
