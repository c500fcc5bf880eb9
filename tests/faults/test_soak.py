"""Test a long run: memory, open files and speed stay constant, and twenty interruptions change nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.data import TABLE, contents
from faults.runs import FULL
from roialign_cli import FeatureFile
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check
from roialign_cli.store.parts import Part

IMAGES, BOXES, RESUMES = (20_000, 10, 10) if FULL else (1500, 10, 3)


@dataclass
class Watch:
    """Record what a process did: (seconds of processor, images done, resident bytes, open files)."""

    code: int = 0
    log: str = ""
    seen: list[tuple[float, int, int, int]] = field(default_factory=list)


def make(folder: Path) -> None:
    """Make many names for a few small pictures."""
    rng = np.random.default_rng(0)
    (folder / "im").mkdir()
    sizes = [(24, 32), (32, 24), (28, 28)]
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{i}.jpg")
    table = {}
    corners = rng.uniform(0, 12, (IMAGES, BOXES, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(3, 12, (IMAGES, BOXES, 2))], axis=2).round(1).tolist()
    for i in range(IMAGES):
        name = f"{i // 1000:03}/{i:06}.jpg"
        if i % 1000 == 0:
            (folder / "im" / name).parent.mkdir()
        os.link(folder / f"{i % 3}.jpg", folder / "im" / name)
        table[name] = boxes[i]
    (folder / "boxes.json").write_text(json.dumps(table))


def run(folder: Path, output: Path, stop_at: int = IMAGES + 1) -> Watch:
    """Watch a run, and stop it after that many images."""
    command = [sys.executable, "-m", "roialign_cli", "extract", folder / "im", folder / "boxes.json", "-o", output]
    watch = Watch()
    with (folder / "log.txt").open("w+") as log:
        options = ["-c", "quickstart", "--output-size", "1", "--workers", "2"]
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        told, status = False, None
        while process.poll() is None:
            time.sleep(0.05)
            try:
                status = Part(output).map("images/status") if status is None else status
                done = int(np.count_nonzero(status))
                proc = Path(f"/proc/{process.pid}")
                resident = int((proc / "statm").read_text().split()[1]) * 4096
                spent = sum(map(int, (proc / "stat").read_text().rpartition(")")[2].split()[11:13])) / os.sysconf(
                    "SC_CLK_TCK"
                )
                watch.seen.append((spent, done, resident, len(list((proc / "fd").iterdir()))))
            except (OSError, OutputError, IndexError):  # not there yet, or just gone
                continue
            if done >= stop_at and not told:
                process.send_signal(signal.SIGTERM)
                told = True
        log.seek(0)
        watch.code, watch.log = process.returncode, log.read()
    return watch


@pytest.mark.timeout(7200)
def test_a_long_run(tmp_path: Path) -> None:
    make(tmp_path)
    whole = run(tmp_path, tmp_path / "whole.h5")
    assert whole.code == 0, whole.log
    with FeatureFile(tmp_path / "whole.h5") as file:
        assert len(file.done_names) == IMAGES
        assert check(file).problems == []
    working = [one for one in whole.seen if one[1] > 0]
    middle = [one for one in working if one[1] < IMAGES]
    if FULL:
        early = max(one[2] for one in middle if one[1] < IMAGES // 5)
        late = max(one[2] for one in middle)
        files = {one[3] for one in middle[2:-2]}
        rate = [tenth(middle, i) for i in range(10)]
        print(f"resident {early / 1e6:.0f} MB after a fifth, {late / 1e6:.0f} MB at most; open files {sorted(files)}")
        print("images per second of processor, by tenth:", " ".join(f"{value:.0f}" for value in rate))
        assert late < 1.05 * early + 20e6
        assert max(files) - min(files) <= 2
        assert min(rate[8:]) > 0.9 * max(rate[1:3]), rate
    line = TABLE["long run, interrupted and resumed"]
    seed = random.randrange(2**32)
    stops = sorted(random.Random(seed).sample(range(1, IMAGES), RESUMES))
    interrupted = 0
    for stop in [*stops, IMAGES + 1]:
        watch = run(tmp_path, tmp_path / "resumed.h5", stop)
        line.runs += 1
        assert watch.code in (0, 130, -signal.SIGTERM), watch.log  # the latter: it had just finished
        interrupted += watch.code == 130
    print(f"seed {seed}: interrupted {interrupted} times")
    assert watch.code == 0
    assert contents(tmp_path / "resumed.h5") == contents(tmp_path / "whole.h5")


def tenth(seen: list[tuple[float, int, int, int]], number: int) -> float:
    """Return images per second of processor time in a tenth of the run, which other processes do not affect."""
    low, high = IMAGES * number // 10, IMAGES * (number + 1) // 10
    inside = [one for one in seen if low <= one[1] <= high]
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])
