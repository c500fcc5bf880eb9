"""Measure the processor time of the first screen: `extract sample_data -c quickstart`, beside `import torch` alone.

    python benchmarks/startup.py [--runs 7] [--json benchmarks/results/startup.json]

All are new Python processes that take turns; medians of user and system time. One run before them fills the caches of
bytecode and machine code. The rest beside torch is importing numba, h5py, Pillow and this package, reading and decoding five
images, and computing them with a filter bank. The first use after an installation has an empty cache of machine code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
FIRST_USE = "extract, first use"


def processor_seconds(command: list[str], cache: str | None = None) -> float:
    """Return the user and system time of a process, which keeps its machine code in `cache` or where the package does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = cache
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = ["extract", "sample_data/images", "sample_data/boxes.json", "-c", "quickstart", "--overwrite"]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "extract": [sys.executable, "-m", "roialign_cli", *run, "-o", f"{folder}/f.h5"],
            FIRST_USE: [sys.executable, "-m", "roialign_cli", *run, "-o", f"{folder}/f.h5"],
            "--help": [sys.executable, "-m", "roialign_cli", "--help"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(options.runs + 1):
            for name, command in commands.items():
                cache = f"{folder}/cache{turn}" if name == FIRST_USE else None
                seconds = processor_seconds(command, cache)
                if turn:
                    times[name].append(seconds)
    found = {name: round(statistics.median(values), 3) for name, values in times.items()}
    ratio = found["extract"] / found["import torch"]
    print(f"{found}; extract is {ratio:.2f} times import torch")
    if options.json:
        machine = {"date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine(),
                   "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip
        options.json.write_text(json.dumps({"machine": machine, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
