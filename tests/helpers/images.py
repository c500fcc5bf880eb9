"""Paint images and write their box files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def paint(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)).save(path)


def make_noise(folder: Path, images: int) -> None:
    """Make photos of noise of three sizes in `im`, with 20 boxes each; `boxes.json` also names an image that is missing."""
    (folder / "im").mkdir()
    rng = np.random.default_rng(0)
    table = {}
    for i in range(images):
        height, width = ((240, 320), (320, 240), (200, 200))[i % 3]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / "im" / f"{i}.jpg")
        corner = rng.uniform(0, 150, (20, 2))
        table[f"{i}.jpg"] = np.hstack([corner, corner + rng.uniform(5, 90, (20, 2))]).round(1).tolist()
    table["missing.jpg"] = [[0, 0, 9, 9]]
    (folder / "boxes.json").write_text(json.dumps(table))
