"""Time a whole run that finds its own boxes against torchvision's detector alone, in one process, alternating; medians.

    python benchmarks/detect.py [--images 6] [--runs 3] [--json benchmarks/results/detect.json]

Ours reads JPEGs, detects, pools 7 x 7 bins of each box and writes them. torchvision's model only detects, on images that are
decoded already, and its backbone is ours, with folded batch norms. Both have the same random weights, keep boxes of any score
and the 36 best of each image. `parts` are milliseconds per image of what comes after the backbone.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from roialign_cli.config import load
from roialign_cli.extraction.benchmark import make_data, make_job, median_seconds
from roialign_cli.extraction.run import run_job
from roialign_cli.inputs.images import decode_image
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.regions.resize import resized

BOXES = 36  # as bottom-up attention has
CHOSEN = {"detect": True, "weights": "random:0", "min_score": 0.0, "max_boxes": BOXES}
NAMES = ("fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2")


class Folded(nn.Module):
    """A backbone of ours under torchvision's names of its levels."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.model, self.names = backbone.model, backbone.detector.names

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.model(images.contiguous(memory_format=torch.channels_last))
        return OrderedDict((key, maps[name]) for key, name in self.names.items())


def measure(name: str, folder: Path, images: int, runs: int) -> dict[str, Any]:
    data, _ = make_data(folder, images, 1)
    job = make_job(data, None, folder / "ours.h5", load(None, {"backbone": name, **CHOSEN}))
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    heads = model.roi_heads if hasattr(model, "roi_heads") else model
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.0, job.settings.nms, BOXES
    model.backbone = Folded(job.backbone)
    pixels = [decode_image(job.images.file(image)).pixels for image in job.plan.table.names]
    tensors = [torch.tensor(one).permute(2, 0, 1) / 255 for one in pixels]

    def detect_all() -> None:
        with torch.inference_mode():
            for one in tensors:
                model([one])

    seconds = median_seconds(
        {"torchvision": detect_all, "ours": partial(run_job, job, overwrite=True)}, runs, torch.device("cpu")
    )
    return {"model": name, **seconds, "parts": parts(job, pixels[0])}


def parts(job: Any, pixels: Any) -> dict[str, float]:
    """Return milliseconds of the backbone and of each part of the detector on one image."""
    backbone, detector = job.backbone, job.backbone.detector
    size = resized(pixels.shape[:2], backbone.preprocessing.resize)
    found: dict[str, float] = {}

    def timed(module: nn.Module, name: str) -> None:
        began: list[float] = []
        module.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))
        module.register_forward_hook(lambda *_: found.update({name: 1e3 * (time.perf_counter() - began.pop())}))

    timed(backbone.model, "backbone")
    timed(detector, "detector")
    if detector.is_two_stage:
        timed(detector.model.rpn.head, "proposals: convolutions")
        for name in ("box_roi_pool", "box_head", "box_predictor"):
            timed(getattr(detector.model.roi_heads, name), name)
    else:
        timed(detector.model.head, "head")
    with torch.inference_mode():
        for _ in range(2):
            backbone.with_detections(prepare([pixels], backbone.preprocessing, torch.device("cpu")), "float32", size)
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder), options.images, options.runs))
        row = rows[-1]
        print(
            f"{name}: torchvision's detector alone {row['torchvision']:.2f} s, our whole run {row['ours']:.2f} s "
            f"({row['ours'] / row['torchvision']:.2f}); ms per image: {row['parts']}",
            flush=True,
        )
    if options.json:
        machine = {"date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
                   "threads": torch.get_num_threads(), "torch": torch.__version__, "images": options.images}  # fmt: skip
        options.json.write_text(json.dumps({"machine": machine, "seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
