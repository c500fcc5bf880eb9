"""Killed at any instant, the same command goes on, and the file ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from roialign_cli import FeatureFile
from roialign_cli.store.check import check

KILLS = 30


def dataset(folder: Path, images: int) -> Path:
    """Photos of noise, three sizes, a few boxes each."""
    rng = np.random.default_rng(0)
    content = {}
    (folder / "im").mkdir()
    for i in range(images):
        height, width = ((240, 320), (320, 240), (200, 200))[i % 3]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / "im" / f"{i}.jpg")
        corner = rng.uniform(0, 150, (40, 2))
        content[f"{i}.jpg"] = np.hstack([corner, corner + rng.uniform(5, 90, (40, 2))]).round(1).tolist()
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


def command(folder: Path, output: Path, *more: str) -> list[str]:
    """Small batches and frequent checkpoints, so that a kill finds the run in every state."""
    script = "import roialign_cli.store.writer as w; w.CHECKPOINT_SECONDS = 0.05; from roialign_cli.__main__ import main; main()"
    run = [sys.executable, "-c", script, "extract", str(folder / "im"), str(folder / "boxes.json"), "-o", str(output)]
    return [*run, "-c", "quickstart", "--batch-size", "3", *more]


def contents(path: Path) -> dict[str, bytes]:
    with h5py.File(path) as file:
        names = ["features", "boxes", *(f"images/{name}" for name in file["images"])]
        return {name: file[name][()].tobytes() for name in names}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_and_resumed(tmp_path: Path) -> None:
    folder = dataset(tmp_path, 240)
    started = time.monotonic()
    subprocess.run(command(folder, tmp_path / "whole.h5"), check=True, capture_output=True)
    whole, duration = contents(tmp_path / "whole.h5"), time.monotonic() - started
    seed = random.randrange(2**32)
    print(f"seed {seed}, uninterrupted {duration:.1f} s")
    rng = random.Random(seed)
    output, kills, partial, runs = tmp_path / "killed.h5", 0, 0, 0
    while kills < KILLS:
        runs += 1
        process = subprocess.Popen(command(folder, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # After the file appears: start-up, which is most of so short a run, has nothing to lose.
            until = time.monotonic() + 60
            while not output.exists() and time.monotonic() < until and process.poll() is None:
                time.sleep(0.001)
            done_before = runs > 1
            process.wait(rng.uniform(0, duration) if done_before else rng.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if output.exists():
            with FeatureFile(output) as file:
                report = check(file)
            assert report.problems == []
            partial += 0 < report.done < 240
            if report.done == 240:
                assert contents(output) == whole
                output.unlink()
    subprocess.run(command(folder, output), check=True, capture_output=True)
    assert contents(output) == whole
    print(f"{kills} kills in {runs} runs, {partial} of them found a file filled in part")
    assert partial >= 3
    assert not Path(f"{output}.partial").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed(tmp_path: Path, number: int) -> None:
    folder = dataset(tmp_path, 120)
    output = tmp_path / "f.h5"
    process = subprocess.Popen(
        command(folder, output, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not output.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopping after the current batch" in stderr
    assert "Traceback" not in stderr
    summary = json.loads(stdout)
    assert summary["interrupted"]
    assert summary["pending"] > 0
    with FeatureFile(output) as file:
        assert check(file).problems == []
    done = subprocess.run(command(folder, output, "--json"), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["done"] == 120
