"""Time reading a COCO-size instances file, 860,000 boxes with polygons on 118,000 images, against pycocotools.

    python benchmarks/boxes.py [--runs 3] [--json benchmarks/results/boxes.json]

Each reads it in a process of its own, alternating, until boxes and labels are arrays (pycocotools: `COCO(path)` and a pass
over its annotations). The time excludes imports; the memory is the peak of the process (Linux).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, BOXES = 118_000, 860_000
OURS = """
import sys, time
from pathlib import Path
from roialign_cli.inputs.boxes import read_boxes
begin = time.perf_counter()
table = read_boxes(Path(sys.argv[1]))
seconds = time.perf_counter() - begin
assert len(table.boxes) == {boxes} and len(table.labels) == {boxes}
"""
THEIRS = """
import sys, time, contextlib, io
import numpy as np
from pycocotools.coco import COCO
begin = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO(sys.argv[1])
found = [coco.imgToAnns[image] for image in coco.imgs]
boxes = np.array([one["bbox"] for of in found for one in of], np.float32)
labels = [coco.cats[one["category_id"]]["name"] for of in found for one in of]
seconds = time.perf_counter() - begin
assert len(boxes) == {boxes} and len(labels) == {boxes}
"""
TELL = """
print(seconds, next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1000)
"""


def make(path: Path) -> None:
    """Write a file like instances_train2017.json: polygons of 20 corners, 80 categories, fields in the same order."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write('{"images": [')
        sizes = rng.integers(300, 640, (IMAGES, 2)).tolist()
        texts = []
        for i, (height, width) in enumerate(sizes):
            image = {"license": 3, "file_name": f"{i:012}.jpg", "height": height, "width": width, "id": i}
            texts.append(json.dumps({**image, "date_captured": "2013-11-14 16:28:13"}))
        categories = json.dumps([{"id": i, "name": f"category {i}"} for i in range(80)])
        file.write(",".join(texts) + f'], "categories": {categories}, "annotations": [')
        owners = rng.integers(0, IMAGES, BOXES).tolist()
        for begin in range(0, BOXES, 10000):
            count = min(10000, BOXES - begin)
            numbers = np.round(rng.uniform(1, 300, (count, 44)), 2).tolist()
            file.write("," if begin else "")
            file.write(",".join(
                json.dumps({"segmentation": [row[4:]], "area": row[0] * row[1], "iscrowd": 0, "image_id": owners[begin + k],
                            "bbox": row[:4], "category_id": k % 80, "id": begin + k})
                for k, row in enumerate(numbers)
            ))  # fmt: skip
        file.write("]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"pycocotools": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "instances.json"
        make(path)
        size = path.stat().st_size / 1e6
        for _ in range(options.runs):
            for key, code in (("pycocotools", THEIRS), ("ours", OURS)):
                script = code.replace("{boxes}", str(BOXES)) + TELL
                done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
                seconds, megabytes = (float(word) for word in done.stdout.split())
                found[key].append((seconds, megabytes))
    seconds, megabytes = ({k: statistics.median(v[i] for v in runs) for k, runs in found.items()} for i in range(2))
    print(f"file {size:.0f} MB")
    for what, of, unit in (("time", seconds, "s"), ("peak memory", megabytes, "MB")):
        ratio = of["pycocotools"] / of["ours"]
        print(f"{what}: pycocotools {of['pycocotools']:.1f} {unit}, ours {of['ours']:.1f} {unit} ({ratio:.1f}x)")
    if options.json:
        machine = {"date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine()}
        result = {"machine": machine, "file_megabytes": size, "seconds": seconds, "peak_megabytes": megabytes}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
