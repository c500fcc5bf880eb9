"""Merging shards beside `cp`, and a plan of 10 million images: cut into shards and hashed.

    python benchmarks/shards.py [--megabytes 2000] [--runs 5] [--json benchmarks/results/shards.json]

`cp` copies the shards as they are, once left to the page cache and once with its target synced, as a merge syncs. The plan is
made of tables in memory: 7 boxes an image, names of 12 letters; reading a box file of that size is not part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from roialign_cli.sharding import cuts, estimate_work, plan_sha256
from roialign_cli.store.layout import Layout, create
from roialign_cli.store.merge import merge
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.writer import FeatureWriter
from roialign_cli.structures import BoxTable, Plan

SHARDS, BOXES, SHAPE = 8, 100, (256, 7, 7)


def plan_of(first: int, images: int, boxes: int) -> Plan:
    """Images of 640 x 480 with so many boxes each."""
    names = tuple(f"{i:08}.jpg" for i in range(first, first + images))
    table = BoxTable(names, np.arange(images + 1) * boxes, np.full((images * boxes, 4), 7, np.float32))
    return Plan(table, np.tile(np.array([[480, 640]]), (images, 1)), {}, 0, 0, 0)


def make_shards(folder: Path, megabytes: int) -> list[Path]:
    images = max(1, megabytes * 10**6 // SHARDS // (BOXES * int(np.prod(SHAPE)) * 4))
    values = np.random.default_rng(0).random((BOXES, *SHAPE), np.float32)
    paths = []
    for i in range(SHARDS):
        about = {"config": "{}", "weights_sha256": "", "boxes_sha256": "", "plan_sha256": "", "shards": SHARDS}
        about |= {"shard": i + 1, "plan_images": images * SHARDS, "plan_boxes": images * SHARDS * BOXES}
        path = folder / f"f-{i + 1:04}-of-{SHARDS:04}.h5"
        create(path, plan_of(i * images, images, BOXES), Layout({"fpn": SHAPE}, "float32", False, about))
        with FeatureFile(path) as file, FeatureWriter(path, file.places) as writer:
            for image in range(images):
                writer.features("features", image, image * BOXES, values)
                writer.done(image)
        paths.append(path)
    return paths


def copying(folder: Path, paths: list[Path], runs: int) -> dict[str, float]:
    """Gigabytes a second."""
    import torch  # which the plan alone has no need of

    from roialign_cli.speed import median_seconds

    size = sum(path.stat().st_size for path in paths)
    target = folder / "target"
    target.mkdir()

    def cp(*, synced: bool) -> None:
        for path in target.iterdir():
            path.unlink()
        subprocess.run(["cp", *paths, target], check=True)
        if synced:
            for path in target.iterdir():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    actions = {
        "cp": lambda: cp(synced=False),
        "cp, synced": lambda: cp(synced=True),
        "merge": lambda: merge(paths, folder / "merged.h5", overwrite=True),
    }
    seconds = median_seconds(actions, runs, torch.device("cpu"))
    return {name: size / value / 1e9 for name, value in seconds.items()}


def large_plan(images: int) -> dict[str, float]:
    """Seconds to make a plan, to cut it into 64 shards and to hash it; gigabytes of memory at most."""
    begun = time.perf_counter()
    plan = plan_of(0, images, 7)
    made = time.perf_counter()
    work = estimate_work(plan.sizes, np.diff(plan.table.offset), (800, 1333))
    parts = np.add.reduceat(work, cuts(work, 64)[:-1])
    cut = time.perf_counter()
    plan_sha256(plan)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    skew = float(parts.max() / parts.mean())
    return {"make": made - begun, "cut": cut - made, "hash": done - cut, "peak GB": peak, "slowest of 64 by mean": skew}


def main() -> None:
    """Print what was found, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--plan", type=int, help="only the plan of so many images, in this process")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.plan:
        print(json.dumps(large_plan(arguments.plan)))
        return
    alone = subprocess.run([sys.executable, __file__, "--plan", "10000000"], check=True, capture_output=True, text=True)
    plan = json.loads(alone.stdout)
    print("plan of 10,000,000 images, 70,000,000 boxes:", ", ".join(f"{k} {v:.3g}" for k, v in plan.items()))
    with tempfile.TemporaryDirectory(dir=".") as name:
        speed = copying(Path(name), make_shards(Path(name), arguments.megabytes), arguments.runs)
    print("GB/s:", ", ".join(f"{k} {v:.2f}" for k, v in speed.items()))
    if arguments.json:
        result = {"machine": platform.processor() or platform.machine(), "plan": plan, "gigabytes_per_second": speed}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
