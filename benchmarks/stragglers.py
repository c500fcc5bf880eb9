"""Simulate runs of 10 million images on 100 nodes, some of which lag or fail, with different numbers of shards.

    python benchmarks/stragglers.py [--picture docs/pictures/stragglers.png] [--json benchmarks/results/stragglers.json]

Sizes and numbers of boxes follow COCO's train2017: longest side 640, 7.3 boxes per image on average. The assumptions about
nodes are in `roialign_cli/cluster/simulation.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np

from roialign_cli.cluster.simulation import Nodes, makespans
from roialign_cli.extraction.shards import estimate_work, shard_boundaries

IMAGES, NODES, PER_SECOND = 10_000_000, 100, 30.0
SHARDS = (100, 200, 400, 800, 1600, 3200, 6400)


def work_of(images: int) -> np.ndarray:
    """Return the estimated work of images like those of COCO."""
    rng = np.random.default_rng(0)
    short = np.where(rng.random(images) < 0.75, rng.integers(424, 482, images), rng.integers(300, 640, images))
    upright = rng.random(images) < 0.3
    sizes = np.stack([np.where(upright, 640, short), np.where(upright, short, 640)], axis=1)
    return estimate_work(sizes, rng.geometric(1 / 8.3, images) - 1, (800, 1333))


def main() -> None:
    """Print and draw hours over the ideal time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ends = np.concatenate([[0.0], np.cumsum(work_of(IMAGES))])
    ideal = IMAGES / PER_SECOND / NODES
    found = []
    for count in SHARDS:
        work = np.diff(ends[shard_boundaries(np.diff(ends), count)])
        ran = makespans(work / work.sum() * IMAGES / PER_SECOND, Nodes(NODES)) / ideal
        skew = float(work.max() / work.mean())
        found.append(
            {"shards": count, "skew": skew, "median": float(np.median(ran)), "95 %": float(ran[int(0.95 * len(ran))])}
        )
        print(", ".join(f"{key} {value:.4g}" for key, value in found[-1].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.picture:
        mpl.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
        for key, style in (("median", "o-"), ("95 %", "s--")):
            axes.semilogx(
                [one["shards"] / NODES for one in found], [one[key] for one in found], style, base=2, label=key
            )
        axes.set(xlabel="shards per node", ylabel="time over ideal", title="10 million images on 100 nodes")
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False)
        figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
