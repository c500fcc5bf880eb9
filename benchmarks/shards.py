"""Time merging shards against `cp`, and planning 10 million images from a Parquet file and a folder to shards.

    python benchmarks/shards.py [--megabytes 1500 6000] [--runs 3] [--images 10000000] [--json benchmarks/results/shards.json]

`cp` copies the shards as they are, once without a sync and once with its target synced, as a merge does. For the plan, the
images are links to a few empty files in folders of 50,000, and a box file with 7 boxes per image states their sizes; making
and removing 10 million of them takes some minutes each.
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

from roialign_cli.arrays import PackedNames
from roialign_cli.config import Settings
from roialign_cli.extraction.plan import plan_run
from roialign_cli.extraction.shards import estimate_work, split_plan
from roialign_cli.inputs.images import open_images
from roialign_cli.store.layout import Layout, create_file
from roialign_cli.store.merge import merge
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.writer import FeatureWriter
from roialign_cli.types import BoxTable, Plan

SHARDS, BOXES, SHAPE = 8, 100, (256, 7, 7)
IN_FOLDER = 50_000  # links to one file; file systems allow about 65,000
CORNERS, SIZES = ("x1", "y1", "x2", "y2"), ("image_width", "image_height")


def plan_of(first: int, images: int, boxes: int) -> Plan:
    """Return a plan of images of 640 x 480 with a number of boxes each."""
    names = PackedNames.from_strings(f"{i:08}.jpg" for i in range(first, first + images))
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
        create_file(path, plan_of(i * images, images, BOXES), Layout({"fpn": SHAPE}, "float32", False, about))
        with FeatureFile(path) as file, FeatureWriter(path, file.extents) as writer:
            for image in range(images):
                writer.features("features", image, image * BOXES, values)
                writer.done(image)
        paths.append(path)
    return paths


def copying(folder: Path, paths: list[Path], runs: int) -> dict[str, float]:
    """Return gigabytes per second."""
    import torch  # planning does not need it

    from roialign_cli.extraction.benchmark import median_seconds

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


def image_name(i: int) -> str:
    return f"{i // IN_FOLDER:03}/{i:08}.jpg"


def make_large(folder: Path, images: int) -> None:
    """Make links in `images`, and boxes.parquet in the order of the images."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        [("image", pa.string()), *((c, pa.float32()) for c in CORNERS), *((c, pa.int32()) for c in SIZES)]
    )
    with parquet.ParquetWriter(folder / "boxes.parquet", schema) as writer:
        for first in range(0, images, IN_FOLDER):
            names = [image_name(i) for i in range(first, min(first + IN_FOLDER, images))]
            (folder / "images" / names[0]).parent.mkdir(parents=True)
            (folder / "images" / names[0]).touch()
            for name in names[1:]:
                os.link(folder / "images" / names[0], folder / "images" / name)
            rng = np.random.default_rng(first)
            corner = rng.integers(0, 1200, (7 * len(names), 2)) / 4
            boxes = np.hstack([corner, corner + rng.integers(1, 600, corner.shape) / 4]).astype(np.float32)
            sizes = np.repeat(rng.integers(470, 640, (len(names), 2)), 7, axis=0)
            columns = [np.repeat(np.array(names), 7), *boxes.T, *sizes.T]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))


def large_plan(folder: Path) -> dict[str, float]:
    """Return seconds to read boxes and folder, and to divide into 64 shards and hash; and peak memory in gigabytes."""
    begun = time.perf_counter()
    plan = plan_run(open_images(folder / "images"), folder / "boxes.parquet", folder / "f.h5", Settings())
    made = time.perf_counter()
    whole = split_plan(plan, 64, (800, 1333))
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    work = estimate_work(plan.sizes, np.diff(plan.table.offset), (800, 1333))
    parts = np.add.reduceat(work, whole.ends[:-1])
    return {
        "images": plan.images, "boxes": plan.rows, "plan": made - begun, "split and hash": done - made,
        "peak GB": peak, "slowest of 64 by mean": float(parts.max() / parts.mean()),
    }  # fmt: skip


def main() -> None:
    """Print the result, and write it to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[1500, 6000], help="less and more than memory takes in"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--plan", type=Path, help="only the plan, of what is in a folder already, in this process")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.plan:
        print(json.dumps(large_plan(arguments.plan)))
        return
    with tempfile.TemporaryDirectory(dir=".") as name:
        make_large(Path(name), arguments.images)
        command = [sys.executable, __file__, "--plan", name]
        alone = subprocess.run(command, check=True, capture_output=True, text=True)
    plan = json.loads(alone.stdout)
    print("plan:", ", ".join(f"{k} {v:.4g}" for k, v in plan.items()))
    speeds = {}
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory(dir=".") as name:
            speed = copying(Path(name), make_shards(Path(name), megabytes), arguments.runs)
        speeds[f"{megabytes} MB"] = speed
        print(f"GB/s of {megabytes} MB:", ", ".join(f"{k} {v:.2f}" for k, v in speed.items()))
    if arguments.json:
        result = {"machine": platform.processor() or platform.machine(), "plan": plan, "gigabytes_per_second": speeds}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
