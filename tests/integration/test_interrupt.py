"""Interrupt a command and let the same command go on later; tests/faults kills it at any instant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.commands import Run
from helpers.long_runs import COMMAND, arguments, dataset

from roialign_cli import FeatureFile
from roialign_cli.store.check import check

IMAGES = 45


@pytest.mark.skipif(os.name != "posix", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_and_resumed(tmp_path: Path, roialign: Run, number: int) -> None:
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
    done = roialign(*arguments(folder, output, "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == IMAGES
