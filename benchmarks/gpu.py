"""Check and time RoI Align on a CUDA device against torchvision's operator, in one process, alternating.

    python benchmarks/gpu.py [--rounds 15] [--json benchmarks/results/gpu.json]

Uses the maps and boxes of benchmarks/cpu.py and a five-level pyramid of eight 800 x 1333 images, with random data and enough
input sets in rotation to exceed the L2 cache. The calls on all sets are captured in a CUDA graph, so that the device is timed
and not Python (`eager` is one call from Python, for comparison); medians of the rounds. torchvision gets its best layout
(NCHW), and float16 where it has no bfloat16. The floor is moving every map and the output once at the bandwidth of a large
copy.
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
from pathlib import Path

import torch
import torchvision
from cpu import CASES, Case, make

from roialign_cli import roi_align
from roialign_cli.ops.cuda import launch, nvrtc
from roialign_cli.ops.cuda import run as cuda
from roialign_cli.regions.rois import assign_levels

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
STRIDES = (4, 8, 16, 32, 64)
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


def pyramid(dtype: torch.dtype, device: torch.device) -> Inputs:
    batch, count, height, width = 8, 1000, 800, 1333
    generator = torch.Generator().manual_seed(0)
    sides = torch.exp(math.log(16) + torch.rand(count, 2, generator=generator) * math.log(700 / 16))
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    boxes = torch.cat([corner, corner + sides], 1)
    index = torch.randint(0, batch, (count, 1), generator=generator)
    maps = [torch.randn(batch, 256, -(-height // s), -(-width // s), device=device).to(dtype) for s in STRIDES]
    levels = assign_levels(boxes, STRIDES, 4, 224)
    return Inputs(maps, torch.cat([index, boxes], 1).to(device), levels.to(device), [1 / s for s in STRIDES])


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

    return {
        "torchvision": torchvision_call,
        "channels-last": lambda: roi_align(last, given.rois, output, **settings),
        "NCHW": lambda: roi_align(given.maps, given.rois, output, **settings),
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


def capture(calls: list[Callable[[], torch.Tensor]]) -> torch.cuda.CUDAGraph:
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def measure(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return median milliseconds of each action by events; they take turns in a rotating order."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for turn in range(rounds + 3):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            actions[name]()
            end.record()
            end.synchronize()
            if turn >= 3:
                times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def copy_gbs(device: torch.device) -> float:
    """Return the bytes that a copy of 2 GB reads and writes per second, in GB/s."""
    source = torch.randn(512 << 20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure({"copy": lambda: target.copy_(source)}, 9)["copy"] / 1e6


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
    options = parser.parse_args()
    device = torch.device("cuda", 0)
    properties = torch.cuda.get_device_properties(device)
    seconds, bandwidth = compile_seconds(cuda.capability(device)), copy_gbs(device)
    print(f"{properties.name}: copy {bandwidth:.0f} GB/s; " + ", ".join(f"{k} {v:.3f} s" for k, v in seconds.items()))
    cases: list[tuple[str, int, int, Callable[[torch.dtype], Inputs]]] = [
        (str(case), case.output, case.ratio, lambda dtype, case=case: single(case, dtype, device)) for case in CASES
    ]
    cases.append(
        ("5 levels x 256, 8 images 800x1333, 1000 RoIs, 7x7, ratio 2", 7, 2, lambda dtype: pyramid(dtype, device))
    )
    rows = []
    for name, output, ratio, build in cases:
        for dtype in DTYPES:
            first = build(dtype)
            size = sum(m.nbytes for m in first.maps)
            sets = [first, *(build(dtype) for _ in range(min(2 * properties.L2_cache_size // size, 15)))]
            calls = [contenders(given, output, ratio) for given in sets]
            found = calls[0]["channels-last"]()
            error = check(first, output, ratio, found)
            if not error < TOLERANCE[dtype]:
                raise SystemExit(f"{name}, {dtype}: error {error:.1e}, more than {TOLERANCE[dtype]:.1e}")
            graphs = {peer: capture([call[peer] for call in calls]) for peer in calls[0]}
            times = measure({peer: graph.replay for peer, graph in graphs.items()}, options.rounds)
            times = {peer: value / len(sets) for peer, value in times.items()}
            eager = measure(calls[0], options.rounds)
            floor = (size + found.nbytes) / bandwidth / 1e6
            rows.append({
                "case": name, "type": str(dtype).removeprefix("torch."), "sets": len(sets), "error": error,
                "floor": floor, "fraction": floor / times["channels-last"], **times,
                **{f"eager {peer}": value for peer, value in eager.items()},
            })  # fmt: skip
            ours, theirs = times["channels-last"], times["torchvision"]
            print(
                f"{name}, {rows[-1]['type']}: torchvision {theirs:.3f} ms, channels-last {ours:.3f} ({theirs / ours:.1f}x), "
                f"NCHW {times['NCHW']:.3f} ({theirs / times['NCHW']:.1f}x), floor {floor:.3f} ({floor / ours:.0%}); "
                f"eager {eager['torchvision']:.3f}, {eager['channels-last']:.3f}, {eager['NCHW']:.3f}; error {error:.1e}"
            )
            del sets, calls, graphs
            torch.cuda.empty_cache()
    means = {
        peer: math.exp(statistics.mean(math.log(row["torchvision"] / row[peer]) for row in rows))
        for peer in ("channels-last", "NCHW")
    }
    print("geometric mean over torchvision: " + ", ".join(f"{peer} {value:.1f}x" for peer, value in means.items()))
    if options.json:
        about = {"date": time.strftime("%Y-%m-%d"), "device": properties.name, "torch": torch.__version__,
                 "copy_gbs": bandwidth, "compile_seconds": seconds}  # fmt: skip
        options.json.write_text(json.dumps({"machine": about, "milliseconds": rows, "means": means}, indent=1) + "\n")


if __name__ == "__main__":
    main()
