"""What the tests share: sample data, boxes of every kind, the command line in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from PIL import Image

from roialign_cli import FeatureFile
from roialign_cli.store.check import check

ROOT = Path(__file__).parent.parent
SAMPLE_IMAGES = ROOT / "sample_data" / "images"
SAMPLE_BOXES = ROOT / "sample_data" / "boxes.json"

# A shell has signals ignored in what it runs in the background, and so the commands that are tested would ignore them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", None), signal.SIG_DFL)):
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

LAUNCHES = pytest.StashKey[int]()

Completed = subprocess.CompletedProcess[str]
Run = Callable[..., Completed]


@pytest.fixture
def roialign() -> Run:
    """Run the command line as a user does; returns exit code, stdout and stderr."""

    def run(*arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Completed:
        return commands.run(
            list(map(str, arguments)), {**os.environ, "COLUMNS": "200", **(env or {})}, cwd or Path.cwd()
        )

    return run


def make_rois(count: int, batch: int, width: float, height: float, seed: int = 0) -> torch.Tensor:
    """Boxes inside, across and outside an image, small and huge, with the awkward ones first."""
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor([
        [0, 0, 0, width, height], [0, 3, 3, 3, 3], [0, -1e4, -1e4, 1e4, 1e4], [0, -50, -50, -20, -20],
        [0, width, height, width + 9, height + 9], [0, 1.5, 0, 1.5, height], [0, 0, 0, 1e-3, 1e-3],
        [0, width - 1, 0, width, 1], [0, -0.5, -0.5, 0.5, 0.5],
    ])  # fmt: skip
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 1.2 - 0.1 * width
    size = torch.rand(count, 2, generator=generator).pow(2) * torch.tensor([width, height])
    index = torch.randint(0, batch, (count, 1), generator=generator)
    return torch.cat([special, torch.cat([index, corner, corner + size], dim=1)])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value; anything but a number counts as infinite."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return float("inf")
    scale = expected.double().abs().max().clamp_min(1e-30)
    return float((found.double() - expected.double()).abs().max() / scale)


def layouts(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values in every memory layout that users come with."""
    n, c, h, w = maps.shape
    wide = torch.zeros(n, 2 * c, h + 3, 2 * w, dtype=maps.dtype)
    wide[:, ::2, 1 : h + 1, ::2] = maps
    return {
        "NCHW": maps.contiguous(),
        "channels-last": maps.contiguous(memory_format=torch.channels_last),
        "sliced": wide[:, ::2, 1 : h + 1, ::2],
        "transposed": maps.transpose(2, 3).contiguous().transpose(2, 3),
        "channels-last window": wide.contiguous(memory_format=torch.channels_last)[:, :c, 1 : h + 1, :w],
    }


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve small images of three sizes in subfolders, and a box file: 0 to 6 boxes each, some across the border."""
    rng = np.random.default_rng(0)
    folder, boxes = tmp_path / "photos", {}
    for i in range(12):
        height, width = ((64, 96), (96, 64), (75, 50))[i % 3]
        name = f"{'ab'[i % 2]}/{'höhe' if i == 3 else 'img'} {i}.{'png' if i % 4 else 'jpg'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 255, width)[None, :, None] * rng.random(3) + rng.integers(0, 60, (height, width, 3))
        Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(folder / name)
        corner = rng.uniform(-5, 40, (i % 7, 2))
        boxes[name] = np.hstack([corner, corner + rng.uniform(1, 50, (i % 7, 2))]).round(2).tolist()
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    return folder, path


def make_noise(folder: Path, images: int) -> None:
    """Photos of noise of three sizes in `im`, 20 boxes each, and one image that is not there in `boxes.json`."""
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


def assert_same(found: Path, expected: Path) -> None:
    """Two feature files, or patterns of shards, hold the same: features to 1e-6 of the maximum, everything else exactly."""
    with FeatureFile(found) as file, FeatureFile(expected) as right:
        assert check(file).problems == []
        assert file.names == right.names
        assert file.errors == right.errors
        assert file.layers == right.layers
        tables = {name for name in right.extents if not name.startswith("features")}
        assert tables == {name for name in file.extents if not name.startswith("features")}
        for name in tables - {"images/crc32", "images/table_crc32", "images/offset"}:
            assert np.array_equal(file.dataset(name), right.dataset(name)), name
        assert np.array_equal(file.offset, right.offset)
        for layer in right.layers:
            for name in right.done_names:
                mine, theirs = (one[name].features for one in (file, right))
                mine, theirs = (mine, theirs) if len(right.layers) == 1 else (mine[layer], theirs[layer])
                assert np.abs(mine - theirs).max(initial=0) <= 1e-6 * np.abs(theirs).max(initial=0), name


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What a user of a machine without a GPU wants to know of the CUDA kernel."""
    launches = config.stash.get(LAUNCHES, 0)
    if launches:
        terminalreporter.write_line(f"CUDA kernel on the CPU: {launches} launches conform")
