"""Time the operators for rotated boxes, masks and moved bins against their peers, and measure the usual practice for masks.

    python benchmarks/regions.py [--runs 9] [--json benchmarks/results/regions.json]

One process, alternating, medians. The case is the first of cpu.py: a map of 256 x 200 x 336 at stride 4, 1000 RoIs of 32 to 512
pixels, 7 x 7 bins, 2 x 2 samples in each. torchvision and OpenVINO get NCHW, ours gets channels-last, and NCHW
where maps are copied anyway. The masks are ellipses
with holes, compressed run lengths as COCO has them. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from cpu import CASES, make, measure

from roialign_cli import deform_roi_align, ps_roi_align, roi_align, roi_align_masked, roi_align_rotated
from roialign_cli.shapes import encode_bitmap

CASE = CASES[0]
SCALE, SIZE = 1 / CASE.stride, CASE.output
PS_CHANNELS = 5  # of the output of position-sensitive pooling, which reads SIZE * SIZE times as many


def openvino_rotated(features: torch.Tensor, rois: torch.Tensor) -> Callable[[], object] | None:
    """Return a call of OpenVINO's ROIAlignRotated on [K, 6] RoIs, or None if OpenVINO is not installed."""
    try:
        import openvino
        from openvino import opset15
    except ImportError:
        return None
    boxes = torch.cat([rois[:, 1:5], torch.deg2rad(rois[:, 5:])], dim=1).float().numpy()
    arrays = [features.numpy(), boxes, rois[:, 0].long().numpy()]
    inputs = [opset15.parameter(array.shape, array.dtype) for array in arrays]
    node = opset15.roi_align_rotated(*inputs, SIZE, SIZE, CASE.ratio, SCALE, False)
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
    request = core.compile_model(openvino.Model([node], inputs), "CPU").create_infer_request()
    return lambda: request.infer(arrays)


def make_masks(rois: torch.Tensor) -> list[dict[str, Any]]:
    """Return a mask for each box: an ellipse with holes, over the whole image, as run lengths."""
    height, width = CASE.height * CASE.stride, CASE.width * CASE.stride
    rows, columns = np.mgrid[:height, :width] + 0.5
    holes = np.sin(columns / 9) * np.cos(rows / 7) < 0.8
    masks = []
    for x1, y1, x2, y2 in rois[:, 1:].tolist():
        across, down = (columns - (x1 + x2) / 2) / (x2 - x1), (rows - (y1 + y2) / 2) / (y2 - y1)
        masks.append({"size": [height, width], "counts": encode_bitmap((across**2 + down**2 < 0.25) & holes)})
    return masks


def usual_practice(masks: torch.Tensor, stride: int) -> torch.Tensor:
    """Return masks [K, H, W] resized to a map and thresholded, as scripts do: [K, H / stride, W / stride]."""
    size = (masks.shape[1] // stride, masks.shape[2] // stride)
    resized = torch.nn.functional.interpolate(masks[:, None].float(), size=size, mode="bilinear", align_corners=False)
    return resized[:, 0] > 0.5


def mask_errors(count: int = 300, stride: int = 4, side: int = 120) -> dict[str, float]:
    """Return the median relative errors of one vector per mask, over random maps, and how many small discs vanish."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] + 0.5
    places, axes = rng.uniform(30, side - 30, (count, 2)), rng.uniform(12, 18, (count, 2))
    ellipses = [
        ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1 for (x, y), (a, b) in zip(places, axes, strict=True)
    ]
    discs = [
        (columns - x) ** 2 + (rows - y) ** 2 < r**2
        for (x, y), r in zip(places, rng.uniform(0.5, 1, count), strict=True)
    ]
    discs = [d if d.any() else (np.floor(rows) == int(y)) & (np.floor(columns) == int(x))
             for d, (x, y) in zip(discs, places, strict=True)]  # fmt: skip
    features = torch.rand(1, 64, side // stride, side // stride, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0, 0, side, side]]).repeat(count, 1)

    def errors(masks: list[Any]) -> tuple[float, float, int, int]:
        exact, coverage = roi_align_masked(
            features.double(), boxes, masks, 1, spatial_scale=1 / stride, kernel="reference"
        )
        found, _ = roi_align_masked(features, boxes, masks, 1, spatial_scale=1 / stride)
        usual = usual_practice(torch.from_numpy(np.stack(masks)), stride).flatten(1).double()
        means = usual @ features[0].flatten(1).double().T / usual.sum(1, keepdim=True)
        kept = usual.any(1)
        exact = exact.flatten(1)
        ours = ((found.flatten(1) - exact).norm(dim=1) / exact.norm(dim=1)).median()
        theirs = (
            ((means[kept] - exact[kept]).norm(dim=1) / exact[kept].norm(dim=1)).median() if kept.any() else torch.nan
        )
        return float(ours), float(theirs), int((coverage == 0).sum()), int((~kept).sum())

    ours, usual, _, _ = errors(ellipses)
    _, _, lost, usual_lost = errors(discs)
    return {
        "error of ours on ellipses of 30 pixels": ours, "error of the usual practice": usual,
        "discs of 1 to 2 pixels": count, "of them lost by ours": lost, "lost by the usual practice": usual_lost,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    features, rois = make(CASE)
    ours = features.contiguous(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    angle = torch.rand(len(rois), 1, generator=generator) * 360
    turned = torch.cat([rois[:, :1], (rois[:, 1:3] + rois[:, 3:]) / 2, rois[:, 3:] - rois[:, 1:3], angle], dim=1)
    offsets = torch.randn(len(rois), 2, SIZE, SIZE, generator=generator)
    masks = make_masks(rois)
    own = features[:, : PS_CHANNELS * SIZE * SIZE].contiguous()
    given: dict[str, Any] = {"spatial_scale": SCALE, "sampling_ratio": CASE.ratio}
    calls: dict[str, Callable[[], object]] = {
        "torchvision roi_align": lambda: torchvision.ops.roi_align(features, rois, SIZE, SCALE, CASE.ratio, True),
        "roi_align": lambda: roi_align(ours, rois, SIZE, **given),
        "roi_align exact": lambda: roi_align(ours, rois, SIZE, spatial_scale=SCALE, mode="exact"),
        "roi_align_rotated": lambda: roi_align_rotated(ours, turned, SIZE, **given),
        "roi_align_rotated exact": lambda: roi_align_rotated(ours, turned, SIZE, spatial_scale=SCALE, mode="exact"),
        "deform_roi_align": lambda: deform_roi_align(ours, rois, offsets, SIZE, **given),
        "roi_align_masked": lambda: roi_align_masked(ours, rois, masks, SIZE, spatial_scale=SCALE),
        "torchvision ps_roi_align": lambda: torchvision.ops.ps_roi_align(own, rois, SIZE, SCALE, CASE.ratio),
        "ps_roi_align": lambda: ps_roi_align(own, rois, SIZE, **given),
        "roi_align of its maps": lambda: roi_align(own, rois, SIZE, **given),
    }
    peer = openvino_rotated(features, turned)
    times = measure(calls, options.runs)
    ratios = {
        "rotated, times faster than torchvision's axis-parallel": times["torchvision roi_align"]
        / times["roi_align_rotated"],
        "deformable, times the time of roi_align": times["deform_roi_align"] / times["roi_align"],
        "masked, times the time of roi_align exact": times["roi_align_masked"] / times["roi_align exact"],
        "masked, times the time of roi_align": times["roi_align_masked"] / times["roi_align"],
        "position-sensitive, times the time of roi_align of its maps": times["ps_roi_align"]
        / times["roi_align of its maps"],
        "position-sensitive, times faster than torchvision's": times["torchvision ps_roi_align"]
        / times["ps_roi_align"],
    }
    if peer is not None:  # it takes long: a run of its own, against ours
        both = measure({"OpenVINO": peer, "ours": calls["roi_align_rotated"]}, 3)
        times["OpenVINO rotated"] = both["OpenVINO"]
        ratios["rotated, times faster than OpenVINO's"] = both["OpenVINO"] / both["ours"]
    errors = mask_errors()
    for name, value in {**times, **ratios, **errors}.items():
        print(f"{name:62} {value:10.4g}")
    if options.json:
        machine = {
            "date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        }  # fmt: skip
        result = {"machine": machine, "case": str(CASE), "milliseconds": times, "ratios": ratios, "masks": errors}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
