"""Measure the speed of this machine: the operator, each stage of a run, the whole run, and a script written by hand.

All measurements alternate in one process, on data made here, and medians count. `benchmarks/pipeline.py` uses this, too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from roialign_cli.config import DETECTION_RESIZE, Resize, Settings
from roialign_cli.extraction.job import Job, prepare_job
from roialign_cli.extraction.plan import plan_run
from roialign_cli.extraction.run import run_job
from roialign_cli.inputs.images import decode_image, open_images
from roialign_cli.ops import roi_align
from roialign_cli.regions.levels import region_levels
from roialign_cli.regions.pooling import pool, pooled_layers
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.regions.regions import batch_regions
from roialign_cli.regions.resize import resized
from roialign_cli.system import allocator

Action = Callable[[], object]
OPERATOR_CASES = ((256, 200, 336, 4, 1000, 7, 2), (1024, 50, 84, 16, 300, 14, 0))
DATA_SIZE = (480, 640)  # (height, width) of the images of a measurement
STAGES = ("decode", "resize", "backbone", "RoI Align", "write")


@dataclass(frozen=True)
class PipelineSpeed:
    """Hold seconds per image: each stage alone, the whole run, and the script of torchvision and h5py.

    `script` is None for models other than the one that the script uses. In a run, decoding and writing overlap with the
    rest, so the whole should take little longer than the backbone alone.
    """

    stages: dict[str, float]
    whole: float
    script: float | None


def median_seconds(actions: Mapping[str, Action], runs: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each action; they take turns, and the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 1):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if run:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def operator_speed(device: torch.device, runs: int) -> list[dict[str, Any]]:
    """Return milliseconds of our operator and torchvision's on maps of an 800 x 1344 image, boxes of 32 to 512 pixels."""
    from torchvision.ops import roi_align as torchvision_roi_align

    results = []
    for channels, height, width, stride, count, output, ratio in OPERATOR_CASES:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(1, channels, height, width, generator=generator).to(device)
        sides = torch.exp(math.log(32) + torch.rand(count, 2, generator=generator) * math.log(16))
        corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) * stride - sides)
        rois = torch.cat([torch.zeros(count, 1), corner, corner + sides], 1).to(device)
        last, scale = features.contiguous(memory_format=torch.channels_last), 1 / stride
        actions = {
            "torchvision": partial(torchvision_roi_align, features, rois, output, scale, ratio, True),
            "ours": partial(roi_align, last, rois, output, spatial_scale=scale, sampling_ratio=ratio),
        }
        seconds = median_seconds(actions, runs, device)
        case = f"{channels}x{height}x{width}, {count} RoIs, {output}x{output}, ratio {ratio or 'adaptive'}"
        results.append({"case": case, **{name: value * 1e3 for name, value in seconds.items()}})
    return results


def make_data(folder: Path, images: int, boxes: int) -> tuple[Path, Path]:
    """Make JPEGs with detail on every scale, and boxes with sides log-uniform in 16..480 pixels; return folder and box file."""
    rng = np.random.default_rng(0)
    table = {}
    (folder / "images").mkdir()
    for i in range(images):
        picture = np.zeros((480, 640, 3))
        for n in (2, 8, 32, 128):
            noise = Image.fromarray(rng.integers(0, 255, (3 * n, 4 * n, 3), np.uint8))
            picture += np.asarray(noise.resize((640, 480))) / 4
        Image.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"{i:04}.jpg", quality=90)
        sides = np.exp(rng.uniform(math.log(16), math.log(480), (boxes, 2)))
        corner = rng.random((boxes, 2)) * (np.array([640, 480]) - sides)
        table[f"{i:04}.jpg"] = np.hstack([corner, corner + sides]).astype(np.float32).tolist()
    (folder / "boxes.json").write_text(json.dumps(table))
    return folder / "images", folder / "boxes.json"


def make_job(images: Path, boxes: Path, output: Path, settings: Settings) -> Job:
    """Return a job over an image folder and a box file; its output may exist."""
    found = open_images(images)
    return prepare_job(plan_run(found, boxes, output, settings), found, output, settings)


def torchvision_script(images: Path, boxes: Path, output: Path, model: Any, device: torch.device) -> None:
    """Do the same work as one would by hand with torchvision's detector: image by image, one HDF5 group for each."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.transforms.functional import to_tensor

    transform = GeneralizedRCNNTransform(*DETECTION_RESIZE, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 0)
    with h5py.File(output, "w") as file, torch.inference_mode():
        for name, rows in json.loads(boxes.read_text()).items():
            image = to_tensor(Image.open(images / name).convert("RGB")).to(device)
            target = {"boxes": torch.tensor(rows).reshape(-1, 4).to(device)}
            batch, scaled = transform([image], [target])
            features = pool(model.backbone(batch.tensors), [scaled[0]["boxes"]], batch.image_sizes)
            group = file.create_group(name)
            group["features"] = features.cpu().numpy()
            group["boxes"] = np.array(rows, np.float32)


def stage_actions(job: Job, folder: Path) -> dict[str, Action]:
    """Return each stage of a job as an action over all images, which have one size, on inputs that are ready."""
    settings, backbone, plan = job.settings, job.backbone, job.plan
    files = [job.images.file(name) for name in plan.table.names]
    pixels = [decode_image(file).pixels for file in files]
    backbone.to(job.devices[0])

    def resize() -> Tensor:
        with torch.inference_mode():
            return torch.cat([prepare([image], backbone.preprocessing, job.devices[0]) for image in pixels])

    inputs = resize()
    size = (pixels[0].shape[0], pixels[0].shape[1])
    regions = batch_regions(plan.table, [0], size, resized(size, backbone.preprocessing.resize))
    with torch.inference_mode():
        maps = backbone(inputs[:1], settings.precision)
    levels = [region_levels(regions, layer, settings) for layer in backbone.layers]

    def pool_all() -> list[Tensor]:
        with torch.inference_mode():
            for _ in pixels:
                pooled = [
                    pool(maps[one.index], backbone.layers[one.index], regions, levels[one.index], one.settings).features
                    for one in pooled_layers(backbone.layers, settings)
                ]
        return pooled

    blocks = [values.cpu().numpy() for values in pool_all()]

    def write() -> None:
        with (folder / "written").open("wb") as file:
            for _ in pixels:
                for block in blocks:
                    file.write(block.data)
            file.flush()
            os.fsync(file.fileno())

    def backbone_all() -> None:
        with torch.inference_mode():
            for i in range(len(inputs)):
                backbone(inputs[i : i + 1], settings.precision)

    return dict(
        zip(
            STAGES, (lambda: [decode_image(file) for file in files], resize, backbone_all, pool_all, write), strict=True
        )
    )


def run_speed(settings: Settings, images: int, boxes: int) -> tuple[Resize, float]:
    """Return the resize of the backbone, and the seconds per image of a whole run over data made for it.

    The regions are boxes, whichever kind the settings name: regions of another kind take about as long.
    """
    settings = dataclasses.replace(settings, region="box", region_missing="error", detect=False)
    with tempfile.TemporaryDirectory() as name, allocator.retain_freed_memory():
        data, table = make_data(Path(name), images, boxes)
        job = make_job(data, table, Path(name) / "ours.h5", settings)
        seconds = median_seconds({"run": lambda: run_job(job, overwrite=True)}, 1, job.devices[0])["run"]
    return job.backbone.preprocessing.resize, seconds / images


def pipeline_speed(settings: Settings, images: int, boxes: int, runs: int) -> PipelineSpeed:
    """Measure a run over data made for it; loading the model and laying out the file do not count."""
    with tempfile.TemporaryDirectory() as name, allocator.retain_freed_memory():
        folder = Path(name)
        data, table = make_data(folder, images, boxes)
        job = make_job(data, table, folder / "ours.h5", settings)
        actions: dict[str, Action] = {"whole": lambda: run_job(job, overwrite=True), **stage_actions(job, folder)}
        if settings.backbone == "fasterrcnn_resnet50_fpn":
            from torchvision.models import get_model

            model = get_model(settings.backbone, weights=None, weights_backbone=None).eval().to(job.devices[0])
            actions["script"] = lambda: torchvision_script(data, table, folder / "script.h5", model, job.devices[0])
        seconds = {key: value / images for key, value in median_seconds(actions, runs, job.devices[0]).items()}
    return PipelineSpeed({stage: seconds[stage] for stage in STAGES}, seconds["whole"], seconds.get("script"))
