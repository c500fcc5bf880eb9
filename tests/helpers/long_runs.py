"""Make data sets and commands for runs that last long enough to be interrupted or killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SETUP = "import roialign_cli.store.writer as writer; writer.CHECKPOINT_SECONDS = 0.05"  # a kill finds every state

COMMAND = [sys.executable, "-c", f"{SETUP}; from roialign_cli.__main__ import main; main()"]


def dataset(folder: Path, images: int) -> Path:
    """Make photos of noise of three sizes, with a few boxes each."""
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


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    """Return a command with batches of three images, so that a run has many batches."""
    run = ["extract", str(folder / "im"), str(folder / "boxes.json"), "-o", str(output)]
    return [*run, "-c", "quickstart", "--batch-size", "3", *more]
