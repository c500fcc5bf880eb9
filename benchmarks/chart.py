"""Draw the chart of the README from benchmarks/results/*.json, for light and dark pages.

python benchmarks/chart.py [--folder docs/assets]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
INKS = {"light": "#1f2328", "dark": "#e6edf3"}
OURS, PEERS = "#0072b2", "#8c959f"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "svg.hashsalt": "roialign",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def operator_speeds() -> dict[str, float]:
    """Return the speed of RoI Align on the CPU over torchvision's, the geometric mean of the cases.

    With gradients, it is that of a forward and a backward pass over both of torchvision's.
    """
    means = read("cpu")["means"]
    return {
        "OpenVINO": means["openvino"], "torchvision": 1.0, "onnxruntime": means["onnxruntime"],
        "roialign": means["channels-last"], "roialign, into out=": means["out="],
        "roialign, with gradients": read("gradients")["means"]["roialign"],
    }  # fmt: skip


def tool_speeds() -> dict[str, float]:
    """Return the speed of parts of the tool over what is usually taken for them."""
    runs = {case["case"]: case for case in read("pipeline")["seconds"]}
    boxes = read("boxes")["seconds"]
    # The copying reader: a mapped read that touches no bytes is 25 times as fast, but says nothing of a training loop.
    reads = {case["case"]: case for case in read("reader")["microseconds"]}["DataLoader, 0 workers"]
    speeds = {
        f"whole run in {name} / script in float32": runs[f"20 boxes per image, {name}"]["script"]
        / runs[f"20 boxes per image, {name}"]["ours"]
        for name in ("float32", "bfloat16")
    }
    speeds["random reads, DataLoader / group per image"] = reads["group per image"] / reads["ours"]
    speeds["reading COCO boxes / pycocotools"] = boxes["pycocotools"] / boxes["ours"]
    return speeds


def draw_bars(axes: Axes, speeds: dict[str, float], title: str, ink: str) -> None:
    colours = [PEERS if name in ("OpenVINO", "torchvision", "onnxruntime") else OURS for name in speeds]
    bars = axes.barh(list(speeds), list(speeds.values()), color=colours, height=0.65)
    axes.bar_label(
        bars, [f"{speed:.1f}x" if speed < 10 else f"{speed:.0f}x" for speed in speeds.values()], padding=3, color=ink
    )
    axes.set_title(title, loc="left", fontsize=10, color=ink)
    axes.set_xlim(0, 1.15 * max(speeds.values()))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(ink)
    axes.tick_params(axis="y", length=0, colors=ink)


def draw(ink: str) -> Figure:
    figure = Figure(figsize=(10, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_bars(left, operator_speeds(), "RoI Align on the CPU, speed relative to torchvision", ink)
    draw_bars(right, tool_speeds(), "Other parts, relative to the usual way", ink)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / "docs" / "assets")
    folder = parser.parse_args().folder
    for theme, ink in INKS.items():
        with rc_context(STYLE):
            draw(ink).savefig(folder / f"benchmarks-{theme}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
