"""Measure the cost of durability: runs with and without syncs to disk, alternating.

    python benchmarks/durability.py [--images 4] [--runs 5] [--json benchmarks/results/durability.json]

The job is that of `benchmarks/pipeline.py`: default backbone, float32, images of 640 x 480 scaled to 800, made here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

from roialign_cli.config import Settings
from roialign_cli.extraction.benchmark import make_data, make_job, median_seconds
from roialign_cli.extraction.run import run_job


def without_syncs(action: Callable[[], object]) -> None:
    """Run an action in which nothing waits for the disk."""
    sync = os.fsync
    os.fsync = lambda _: None
    try:
        action()
    finally:
        os.fsync = sync


def main() -> None:
    """Print seconds per image, and write them to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for boxes in (100, 1000):
            folder = Path(name) / str(boxes)
            folder.mkdir()
            data, table = make_data(folder, arguments.images, boxes)
            job = make_job(data, table, folder / "f.h5", Settings(weights="random"))

            def run(job: object = job) -> object:
                return run_job(job, overwrite=True)  # type: ignore[arg-type]

            actions = {"with syncs": run, "without": lambda run=run: without_syncs(run)}
            seconds = median_seconds(actions, arguments.runs, job.devices[0])
            found[str(boxes)] = {what: value / arguments.images for what, value in seconds.items()}
            ratio = seconds["with syncs"] / seconds["without"]
            print(f"{boxes} boxes: {found[str(boxes)]['with syncs']:.3f} s an image with syncs, {ratio:.3f} of without")
    if arguments.json:
        result = {"machine": platform.processor() or platform.machine(), "seconds_per_image": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
