"""Killed at any instant, the same command goes on, and the file ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import h5py
import numpy as np
import pytest
from PIL import Image

from roialign_cli import FeatureFile
from roialign_cli.store.check import check

KILLS, IMAGES = 30, 120


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

# Imports take seconds, so one process does them and forks a child for every run; it answers with pid and wait status.
SERVER = f"""
import json, os, sys
{SETUP}
import roialign_cli.pipeline, roialign_cli.backbones.gabor, roialign_cli.ops.cpu_kernels
from roialign_cli.__main__ import main
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        sys.argv = ["roialign", *json.loads(line)]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


COMMAND = [sys.executable, "-c", f"{SETUP}; from roialign_cli.__main__ import main; main()"]


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    """Batches of three, so that a run has many of them."""
    run = ["extract", str(folder / "im"), str(folder / "boxes.json"), "-o", str(output)]
    return [*run, "-c", "quickstart", "--batch-size", "3", *more]


class Runs:
    """Starts runs in processes of their own and waits for them or kills them."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, run: list[str]) -> int:
        self.server.stdin.write(json.dumps(run) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(int(self.server.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.server:
            self.server.stdin.close()


def contents(path: Path) -> dict[str, bytes]:
    with h5py.File(path) as file:
        names = ["features", "boxes", *(f"images/{name}" for name in file["images"])]
        return {name: file[name][()].tobytes() for name in names}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_killed_at_random_and_resumed(tmp_path: Path) -> None:
    folder = dataset(tmp_path, IMAGES)
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    output, kills, partial, runs = tmp_path / "killed.h5", 0, 0, 0
    with Runs() as server:
        server.start(arguments(folder, tmp_path / "warm.h5"))
        assert server.wait() == 0
        started = time.monotonic()
        server.start(arguments(folder, tmp_path / "whole.h5"))
        assert server.wait() == 0
        whole, duration = contents(tmp_path / "whole.h5"), time.monotonic() - started
        print(f"seed {seed}, uninterrupted {duration:.1f} s")
        while kills < KILLS:
            runs += 1
            process = server.start(arguments(folder, output))
            time.sleep(rng.uniform(0, duration))
            with suppress(ProcessLookupError):  # it was faster
                os.kill(process, signal.SIGKILL)
            kills += server.wait() == -signal.SIGKILL
            if output.exists():
                with FeatureFile(output) as file:
                    report = check(file)
                assert report.problems == []
                partial += 0 < report.done < IMAGES
                if report.done == IMAGES:
                    assert contents(output) == whole
                    output.unlink()
        server.start(arguments(folder, output))
        assert server.wait() == 0
    assert contents(output) == whole
    print(f"{kills} kills in {runs} runs, {partial} of them found a file filled in part")
    assert partial >= 3
    assert not Path(f"{output}.partial").exists()


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
