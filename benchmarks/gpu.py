"""Check and time RoI Align on a CUDA device against torchvision's operator, in one process, alternating.

    python benchmarks/gpu.py [--rounds 15] [--json benchmarks/results/gpu.json] [--dry]

Uses the maps and boxes of benchmarks/cpu.py and a five-level pyramid of eight 800 x 1333 images, with random data and enough
input sets in rotation to exceed the L2 cache. The calls on all sets are captured in a CUDA graph, so that the device is timed
and not Python (`eager` is one call from Python, for comparison); medians of the rounds. torchvision gets its best layout
(NCHW), and float16 where it has no bfloat16. `3 blocks` is our kernel on channels-last maps, compiled for so many blocks per
multiprocessor instead of four. The floor is moving every map and the output once at the bandwidth of a large copy. --dry runs
two small cases on the CPU, to see that the script works.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from cpu import CASES, Case, make

from roialign_cli import roi_align
from roialign_cli.ops.cuda import launch, nvrtc
from roialign_cli.ops.cuda import run as cuda
from roialign_cli.regions.levels import assign_levels

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
STRIDES = (4, 8, 16, 32, 64)
BLOCKS = (3,)  # per multiprocessor
SOURCE = cuda.source()
Contenders = dict[str, Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class Inputs:
    """Hold one set: maps per level (NCHW), rois [K, 5] and, with several levels, the level of each."""

    maps: list[torch.Tensor]
    rois: torch.Tensor
    levels: torch.Tensor | None
    scales: list[float]


def single(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    features, rois = make(case)
    return Inputs([features.to(device, dtype)], rois.to(device), None, [1 / case.stride])


def pyramid(dtype: torch.dtype, device: torch.device, count: int, *, ordered: bool) -> Inputs:
    batch, height, width = 8, 800, 1333
    generator = torch.Generator().manual_seed(0)
    sides = torch.exp(math.log(16) + torch.rand(count, 2, generator=generator) * math.log(700 / 16))
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    boxes = torch.cat([corner, corner + sides], 1)
    index = torch.randint(0, batch, (count, 1), generator=generator)
    maps = [torch.randn(batch, 256, -(-height // s), -(-width // s), device=device).to(dtype) for s in STRIDES]
    rois, levels = torch.cat([index, boxes], 1), assign_levels(boxes, STRIDES, 4, 224)
    if ordered:  # by image, level and place
        order = torch.from_numpy(np.lexsort((boxes[:, 0], boxes[:, 1] // 64, levels, index[:, 0])))
        rois, levels = rois[order], levels[order]
    return Inputs(maps, rois.to(device), levels.to(device), [1 / s for s in STRIDES])


def contenders(given: Inputs, output: int, ratio: int) -> Contenders:
    last = [m.contiguous(memory_format=torch.channels_last) for m in given.maps]
    peer = [m.half() if m.dtype == torch.bfloat16 else m for m in given.maps]
    rois = given.rois.to(peer[0].dtype)
    settings = {"spatial_scale": given.scales, "sampling_ratio": ratio, "levels": given.levels, "validate": False}
    rows = [None] if given.levels is None else [torch.nonzero(given.levels == i)[:, 0] for i in range(len(peer))]

    def torchvision_call() -> torch.Tensor:
        if given.levels is None:
            return torchvision.ops.roi_align(peer[0], rois, output, given.scales[0], ratio, True)
        pooled = peer[0].new_empty(len(rois), peer[0].shape[1], output, output)
        for m, scale, those in zip(peer, given.scales, rows, strict=True):  # as MultiScaleRoIAlign does
            pooled[those] = torchvision.ops.roi_align(m, rois[those], output, scale, ratio, True)
        return pooled

    def bounded(blocks: int) -> Callable[[], torch.Tensor]:
        text = f"#define BLOCKS {blocks}\n{SOURCE}"

        def call() -> torch.Tensor:
            cuda.source = lambda: text
            try:
                return roi_align(last, given.rois, output, **settings)
            finally:
                cuda.source = lambda: SOURCE

        return call

    return {
        "torchvision": torchvision_call,
        "channels-last": lambda: roi_align(last, given.rois, output, **settings),
        "NCHW": lambda: roi_align(given.maps, given.rois, output, **settings),
        **{f"{blocks} blocks": bounded(blocks) for blocks in BLOCKS},
    }


def check(given: Inputs, output: int, ratio: int, found: torch.Tensor) -> float:
    """Return the largest error over the largest value, against the CPU kernel in float64 on a few dozen RoIs."""
    some = torch.arange(0, len(given.rois), max(len(given.rois) // 40, 1))
    maps = [m.cpu().double() for m in given.maps]
    levels = None if given.levels is None else given.levels.cpu()[some]
    expected = roi_align(
        maps, given.rois.cpu()[some], output, spatial_scale=given.scales, sampling_ratio=ratio, levels=levels
    )
    return float((found.cpu()[some].double() - expected).abs().max() / expected.abs().max())


def check_unwritten(given: Inputs, output: int, ratio: int, found: torch.Tensor) -> None:
    """Fail unless every element of an output is written."""
    last = [m.contiguous(memory_format=torch.channels_last) for m in given.maps]
    poisoned = torch.full_like(found, float("nan"))
    settings = {"spatial_scale": given.scales, "sampling_ratio": ratio, "levels": given.levels, "validate": False}
    if not torch.equal(roi_align(last, given.rois, output, out=poisoned, **settings), found):
        raise SystemExit("an output with other values before has other values afterwards")


def capture(calls: list[Callable[[], torch.Tensor]], device: torch.device) -> Callable[[], object]:
    """Return a function that does all calls, as a CUDA graph."""
    for call in calls:
        call()
    if device.type == "cpu":
        return lambda: [call() for call in calls]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def milliseconds(action: Callable[[], object], device: torch.device) -> float:
    """Return how long an action takes, by events of the device."""
    if device.type == "cpu":
        started = time.perf_counter()
        action()
        return 1e3 * (time.perf_counter() - started)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    action()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def measure(actions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median milliseconds of each action; they take turns in a rotating order."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for turn in range(rounds + 3):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            value = milliseconds(actions[name], device)
            if turn >= 3:
                times[name].append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def copy_gbs(device: torch.device, size: int) -> float:
    """Return the bytes that a copy of `size` float32 reads and writes per second, in GB/s."""
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure({"copy": lambda: target.copy_(source)}, 9, device)["copy"] / 1e6


def compile_seconds(capability: int) -> dict[str, float]:
    """Return seconds to the first call and to a cached start of each type's kernel, in a cache of its own."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for dtype in DTYPES:
            defines = launch.specialise(dtype, "avg", launch.LOAD_BYTES // dtype.itemsize)
            for name in ("first", "cached"):
                result[f"{name} {dtype}"] = nvrtc.compile_source(cuda.source(), defines, capability).seconds
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry", action="store_true", help="two small cases on the CPU")
    options = parser.parse_args()
    device = torch.device("cpu") if options.dry else torch.device("cuda", 0)
    name, capability, cache = "CPU, dry", 90, 1 << 20
    if not options.dry:
        properties = torch.cuda.get_device_properties(device)
        name, capability, cache = properties.name, cuda.capability(device), properties.L2_cache_size
    seconds, bandwidth = compile_seconds(capability), copy_gbs(device, (1 if options.dry else 512) << 20)
    print(f"{name}: copy {bandwidth:.0f} GB/s; " + ", ".join(f"{k} {v:.3f} s" for k, v in seconds.items()))
    cases: list[tuple[str, int, int, Callable[[torch.dtype], Inputs]]] = [
        (str(case), case.output, case.ratio, lambda dtype, case=case: single(case, dtype, device)) for case in CASES
    ]
    for count, ordered in ((1000, False), (8000, False), (8000, True)):
        about = f"5 levels x 256, 8 images 800x1333, {count} RoIs{' in order' * ordered}, 7x7, ratio 2"
        cases.append((about, 7, 2, partial(pyramid, device=device, count=count, ordered=ordered)))
    if options.dry:
        cases = [cases[1], ("5 levels", 7, 2, partial(pyramid, device=device, count=20, ordered=True))]
    rows = []
    for about, output, ratio, build in cases:
        for dtype in DTYPES:
            rows.append(run_case(about, output, ratio, dtype, build, cache, bandwidth, options.rounds, device))
    ours = [key for key in rows[0]["milliseconds"] if key != "torchvision"]
    means = {
        key: math.exp(
            statistics.mean(math.log(row["milliseconds"]["torchvision"] / row["milliseconds"][key]) for row in rows)
        )
        for key in ours
    }
    print("geometric mean over torchvision: " + ", ".join(f"{key} {value:.1f}x" for key, value in means.items()))
    if options.json:
        machine = {"date": time.strftime("%Y-%m-%d"), "device": name, "torch": torch.__version__,
                   "copy_gbs": bandwidth, "compile_seconds": seconds}  # fmt: skip
        options.json.write_text(json.dumps({"machine": machine, "cases": rows, "means": means}, indent=1) + "\n")


def run_case(
    about: str, output: int, ratio: int, dtype: torch.dtype, build: Callable[[torch.dtype], Inputs], cache: int,
    bandwidth: float, rounds: int, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Check and time one case in one type; return its row of the results."""
    first = build(dtype)
    size = sum(m.nbytes for m in first.maps)
    sets = [first, *(build(dtype) for _ in range(min(2 * cache // size, 15)))]
    calls = [contenders(given, output, ratio) for given in sets]
    found = calls[0]["channels-last"]()
    error = check(first, output, ratio, found)
    if not error < TOLERANCE[dtype]:
        raise SystemExit(f"{about}, {dtype}: error {error:.1e}, more than {TOLERANCE[dtype]:.1e}")
    check_unwritten(first, output, ratio, found)
    graphs = {key: capture([call[key] for call in calls], device) for key in calls[0]}
    times = {key: value / len(sets) for key, value in measure(graphs, rounds, device).items()}
    eager = measure(calls[0], rounds, device)
    floor = (size + found.nbytes) / bandwidth / 1e6
    name = str(dtype).removeprefix("torch.")
    theirs = times["torchvision"]
    shown = ", ".join(
        f"{key} {value:.3f} ({theirs / value:.1f}x)" for key, value in times.items() if key != "torchvision"
    )
    print(
        f"{about}, {name}: torchvision {theirs:.3f} ms, {shown}, floor {floor:.3f} ({floor / times['channels-last']:.0%}); "
        f"eager {eager['torchvision']:.3f}, {eager['channels-last']:.3f}, {eager['NCHW']:.3f}; error {error:.1e}"
    )
    if device.type == "cuda":
        del sets, calls, graphs
        torch.cuda.empty_cache()
    return {"case": about, "type": name, "error": error, "floor": floor, "milliseconds": times, "eager": eager}


if __name__ == "__main__":
    main()
