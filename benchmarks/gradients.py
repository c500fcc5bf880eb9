"""Time a forward and a backward pass of RoI Align on the CPU against torchvision's, in one process, alternating; medians.

    python benchmarks/gradients.py [--runs 7] [--json benchmarks/results/gradients.json]

The cases are those of cpu.py. torchvision gets its best layout (NCHW), ours gets channels-last, which a network in
channels-last format works in. `backward` is the gradient of the maps alone; `boxes` adds that of the boxes, which torchvision
does not have. Errors are largest differences over the largest value of torchvision's gradient, in the same float32.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from cpu import CASES, Case, make, measure
from torch import Tensor

from roialign_cli import roi_align


def passes(
    pool: Callable[[Tensor, Tensor], Tensor], features: Tensor, rois: Tensor, passed: Tensor
) -> Callable[[], Tensor]:
    """Return a call that pools and derives the maps."""

    def call() -> Tensor:
        leaf = features.detach().requires_grad_()
        return torch.autograd.grad(pool(leaf, rois), leaf, passed)[0]

    return call


def contenders(case: Case) -> tuple[dict[str, Callable[[], object]], float]:
    """Return the calls to time, and the error of our gradient."""
    features, rois = make(case)
    last = features.contiguous(memory_format=torch.channels_last)
    passed = torch.randn(case.rois, case.channels, case.output, case.output, generator=torch.Generator().manual_seed(1))

    def ours(maps: Tensor, boxes: Tensor) -> Tensor:
        return roi_align(maps, boxes, case.output, spatial_scale=1 / case.stride, sampling_ratio=case.ratio)

    def theirs(maps: Tensor, boxes: Tensor) -> Tensor:
        return torchvision.ops.roi_align(maps, boxes, case.output, 1 / case.stride, case.ratio, True)

    def backward(pool: Callable[[Tensor, Tensor], Tensor], maps: Tensor) -> Callable[[], object]:
        leaf = maps.detach().requires_grad_()
        pooled = pool(leaf, rois)
        return lambda: torch.autograd.grad(pooled, leaf, passed, retain_graph=True)

    def with_boxes() -> object:
        leaf, boxes = last.detach().requires_grad_(), rois.detach().requires_grad_()
        return torch.autograd.grad(ours(leaf, boxes), (leaf, boxes), passed)

    calls: dict[str, Callable[[], object]] = {
        "torchvision": passes(theirs, features, rois, passed),
        "roialign": passes(ours, last, rois, passed),
        "roialign, NCHW": passes(ours, features, rois, passed),
        "roialign, boxes": with_boxes,
        "torchvision, backward": backward(theirs, features),
        "roialign, backward": backward(ours, last),
    }
    expected, found = passes(theirs, features, rois, passed)(), passes(ours, last, rois, passed)()
    return calls, float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for case in CASES:
        calls, error = contenders(case)
        times = measure(calls, options.runs)
        rows.append({"case": str(case), "error": error, **times})
        print(f"{case}: error {error:.1e}")
        for name, value in times.items():
            peer = times["torchvision, backward" if name.endswith("backward") else "torchvision"]
            print(f"    {name:22} {value:8.1f} ms   {peer / value:5.1f} x torchvision")
    pairs = {
        "roialign": "torchvision", "roialign, NCHW": "torchvision", "roialign, backward": "torchvision, backward",
    }  # fmt: skip
    means = {ours: math.exp(statistics.mean(math.log(r[peer] / r[ours]) for r in rows)) for ours, peer in pairs.items()}
    print("geometric mean over torchvision: " + ", ".join(f"{p} {v:.1f}x" for p, v in means.items()))
    if options.json:
        machine = {
            "date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        }  # fmt: skip
        options.json.write_text(json.dumps({"machine": machine, "milliseconds": rows, "means": means}, indent=1) + "\n")


if __name__ == "__main__":
    main()
