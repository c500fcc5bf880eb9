"""Time RoI Align on the CPU against torchvision, onnxruntime and OpenVINO, in one process, alternating; medians.

    python benchmarks/cpu.py [--runs 9] [--json benchmarks/results/cpu.json]

Maps are those of an 800 x 1344 image at strides 4, 16 and 32; box sides are log-uniform from 32 to 512 pixels. Every call
allocates its output, except in the column `out=`. torchvision gets its best layout (NCHW); ours gets channels-last, which a
backbone in channels-last format returns, and NCHW. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision

from roialign_cli import roi_align


@dataclass(frozen=True)
class Case:
    channels: int
    height: int
    width: int
    rois: int
    output: int
    ratio: int
    stride: int

    def __str__(self) -> str:
        ratio = self.ratio or "adaptive"
        return (
            f"{self.channels}x{self.height}x{self.width}, {self.rois} RoIs, {self.output}x{self.output}, ratio {ratio}"
        )


CASES = [
    Case(256, 200, 336, 1000, 7, 2, 4),
    Case(256, 50, 84, 300, 7, 2, 16),
    Case(1024, 50, 84, 300, 14, 0, 16),
    Case(2048, 25, 42, 100, 7, 0, 32),
    Case(2048, 25, 42, 100, 7, 2, 32),
]


def make(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, case.channels, case.height, case.width, generator=generator)
    sides = torch.exp(math.log(32) + torch.rand(case.rois, 2, generator=generator) * math.log(512 / 32))
    room = torch.tensor([case.width, case.height]) * case.stride - sides
    corner = torch.rand(case.rois, 2, generator=generator) * room
    return features, torch.cat([torch.zeros(case.rois, 1), corner, corner + sides], 1)


def onnx_model(case: Case) -> bytes:
    from onnx import TensorProto, helper

    node = helper.make_node(
        "RoiAlign", ["x", "rois", "index"], ["y"], output_height=case.output, output_width=case.output,
        sampling_ratio=case.ratio, spatial_scale=1 / case.stride, coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    shape = [1, case.channels, case.height, case.width]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("rois", TensorProto.FLOAT, [case.rois, 4]),
        helper.make_tensor_value_info("index", TensorProto.INT64, [case.rois]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.rois, case.channels, case.output, case.output])
    graph = helper.make_graph([node], "roi_align", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    return bytes(model.SerializeToString())


def contenders(case: Case) -> dict[str, Callable[[], object]]:
    features, rois = make(case)
    last = features.contiguous(memory_format=torch.channels_last)
    settings = {"spatial_scale": 1 / case.stride, "sampling_ratio": case.ratio, "aligned": True}
    reused = roi_align(last, rois, case.output, **settings)
    args = (features, rois, case.output, 1 / case.stride, case.ratio, True)
    calls: dict[str, Callable[[], object]] = {
        "torchvision": lambda: torchvision.ops.roi_align(*args),
        "channels-last": lambda: roi_align(last, rois, case.output, **settings),
        "out=": lambda: roi_align(last, rois, case.output, out=reused, **settings),
        "NCHW": lambda: roi_align(features, rois, case.output, **settings),
    }
    feed = {"x": features.numpy(), "rois": rois[:, 1:].contiguous().numpy(), "index": np.zeros(case.rois, np.int64)}
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(onnx_model(case), options, providers=["CPUExecutionProvider"])
        calls["onnxruntime"] = lambda: session.run(None, feed)
        import openvino

        core = openvino.Core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
        compiled = core.compile_model(core.read_model(onnx_model(case)), "CPU")
        calls["openvino"] = lambda: compiled(list(feed.values()))
    except ImportError:
        pass
    return calls


def measure(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return median milliseconds of each call; they take turns in a rotating order, so that each follows every other."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 2):
        order = list(calls)
        for name in order[run % len(order) :] + order[: run % len(order)]:
            call = calls[name]
            time.sleep(0.02)  # worker threads of some peers keep spinning for a while
            begin = time.perf_counter()
            call()
            if run >= 2:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def floor_ms(case: Case, copy_gbs: float, fill_gbs: float) -> float:
    """Return the fewest bytes: every map cell read once, the output written once to memory that exists."""
    read = case.channels * case.height * case.width * 4
    written = case.rois * case.channels * case.output**2 * 4
    return (read / copy_gbs + written / fill_gbs) / 1e6


def bandwidths() -> tuple[float, float]:
    """Measure read and write bandwidth of this machine in GB/s: summing and filling 256 MB."""
    buffer = torch.ones(64 << 20)
    times = measure({"read": buffer.sum, "write": lambda: buffer.fill_(1.0)}, 5)
    return buffer.nbytes / times["read"] / 1e6, buffer.nbytes / times["write"] / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    read_gbs, write_gbs = bandwidths()
    rows = []
    for case in CASES:
        times = measure(contenders(case), options.runs)
        rows.append({"case": str(case), "floor": floor_ms(case, read_gbs, write_gbs), **times})
        print(rows[-1]["case"])
        for name, value in times.items():
            print(f"    {name:14} {value:8.1f} ms   {times['torchvision'] / value:5.1f} x torchvision")
        print(f"    {'floor':14} {rows[-1]['floor']:8.1f} ms")
    peers = [name for name in rows[0] if name not in ("case", "torchvision", "floor")]
    means = {p: math.exp(statistics.mean(math.log(r["torchvision"] / r[p]) for r in rows)) for p in peers}
    print("geometric mean over torchvision: " + ", ".join(f"{p} {v:.1f}x" for p, v in means.items()))
    machine = {
        "date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(), "read_gbs": read_gbs, "write_gbs": write_gbs,
        "torch": torch.__version__, "torchvision": torchvision.__version__,
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "milliseconds": rows, "means": means}, indent=1) + "\n")


if __name__ == "__main__":
    main()
