"""Share fixtures between all tests: the command line in a process of its own, images, and their boxes."""

from __future__ import annotations

import os

# Before torch loads: waiting threads that spin slow the others down on a busy machine.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers import commands
from helpers.commands import Completed, Run
from helpers.cuda_shim import LAUNCHES
from helpers.images import paint
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.small_runs import IMAGES
from hypothesis import settings
from PIL import Image

from roialign_cli import extract

settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("untimed")

# A shell makes background jobs ignore signals, and the tested commands would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", None), signal.SIG_DFL)):
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture
def roialign() -> Run:
    """Run the command line as a user does; return exit code, stdout and stderr."""

    def run(*arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Completed:
        return commands.run(list(map(str, arguments)), env or {}, cwd or Path.cwd())

    return run


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """Make twelve small images of three sizes in subfolders, and a box file: 0 to 6 boxes each, some across the border."""
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


@pytest.fixture(scope="session")
def sample_features_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract the features of the sample data once; tests read the file but leave it as it is."""
    path = tmp_path_factory.mktemp("sample") / "f.h5"
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, path, config="quickstart")
    return path


@pytest.fixture
def sample_features(sample_features_once: Path, tmp_path: Path) -> Path:
    """Copy the features of the sample data to a file that a test may harm."""
    return Path(shutil.copy(sample_features_once, tmp_path / "f.h5"))


@pytest.fixture
def five_images(tmp_path: Path) -> Path:
    """Paint five images of one size in the folder `im`; each differs from the others."""
    (tmp_path / "im").mkdir()
    for i in range(IMAGES):
        paint(tmp_path / "im" / f"{i}.png", i)
    return tmp_path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Report how many launches of the CUDA kernel on the CPU conform to the reference."""
    launches = config.stash.get(LAUNCHES, 0)
    if launches:
        terminalreporter.write_line(f"CUDA kernel on the CPU: {launches} launches conform")
