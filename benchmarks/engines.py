"""Measure the overhead of Ray: a run by one of its workers against the same run without Ray.

    python benchmarks/engines.py [--images 60] [--boxes 20] [--shards 16 64] [--runs 3] [--json benchmarks/results/engines.json]

Both run the command line, alternating. The time starts when the first output or shard is laid out and ends with the command:
it excludes the start of Python, Ray and the backbone, and includes merging the shards and ending Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from roialign_cli.cluster.connection import Cluster

SAMPLES = Path(__file__).parent.parent / "sample_data" / "images"


def make_data(folder: Path, images: int, boxes: int) -> None:
    """Make images of 640 x 480 and random boxes."""
    rng = np.random.default_rng(0)
    samples = sorted(SAMPLES.glob("*.jpg"))
    (folder / "images").mkdir()
    table = {}
    for i in range(images):
        with Image.open(samples[i % len(samples)]) as photo:
            photo.convert("RGB").resize((640, 480)).save(folder / "images" / f"{i:05}.jpg")
        corner = rng.uniform(0, 1, (boxes, 2)) * (500, 360)
        table[f"{i:05}.jpg"] = np.hstack([corner, corner + rng.uniform(16, 140, (boxes, 2))]).round(1).tolist()
    (folder / "boxes.json").write_text(json.dumps(table))


def seconds(folder: Path, first: str, *options: str) -> float:
    """Return seconds from the first file to the end of the command."""
    for path in folder.glob("f*.h5*"):
        path.unlink()
    inputs = [folder / "images", folder / "boxes.json", "-o", folder / "f.h5", "--weights", "random", *options]
    command = [sys.executable, "-m", "roialign_cli", "extract", *map(str, inputs)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (folder / first).exists() and process.poll() is None:
            time.sleep(0.01)
        begun = time.perf_counter()
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - begun


def main() -> None:
    """Print the result, and write it to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--shards", type=int, nargs="+", default=[0, 64], help="0: as many as by default")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kinds = {"local": ("f.h5",)}
    for shards in arguments.shards:
        count = Cluster(shards=shards).shards_of(arguments.images)
        kinds[f"ray, {count} shards"] = (f"f-0001-of-{count:04}.h5", "--engine", "ray", "--num-shards", str(shards))
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(dir=".") as name:
        make_data(Path(name), arguments.images, arguments.boxes)
        for _ in range(arguments.runs):
            for kind, (first, *options) in kinds.items():
                found[kind].append(seconds(Path(name), first, *options))
    local = found["local"]
    result = {
        "machine": f"{os.cpu_count()} cores of {platform.machine()}", "images": arguments.images, "boxes": arguments.boxes,
        "seconds": {kind: round(statistics.median(values), 2) for kind, values in found.items()},
        "over local": {
            kind: round(statistics.median(a / b for a, b in zip(values, local, strict=True)), 3)
            for kind, values in found.items()
        },
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
