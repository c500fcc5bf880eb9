"""Interrupted, the same command goes on later. Kills at any instant are in tests/faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from roialign_cli import FeatureFile
from roialign_cli.store.check import check

IMAGES = 120


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


SETUP = "import roialign_cli.store.writer as writer; writer.CHECKPOINT_SECONDS = 0.05"  # a kill finds every state

COMMAND = [sys.executable, "-c", f"{SETUP}; from roialign_cli.__main__ import main; main()"]


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    """Batches of three, so that a run has many of them."""
    run = ["extract", str(folder / "im"), str(folder / "boxes.json"), "-o", str(output)]
    return [*run, "-c", "quickstart", "--batch-size", "3", *more]


@pytest.mark.skipif(os.name != "posix", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_and_resumed(tmp_path: Path, number: int) -> None:
    folder = dataset(tmp_path, IMAGES)
    output = tmp_path / "f.h5"
    process = subprocess.Popen(
        [*COMMAND, *arguments(folder, output, "--json")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
    done = subprocess.run([*COMMAND, *arguments(folder, output, "--json")], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["done"] == IMAGES
