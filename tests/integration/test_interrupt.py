"""Interrupt a command and let the same command go on later; tests/faults kills it at any instant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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


def test_a_signal_that_an_extension_module_prints_ends_the_command() -> None:
    """Some modules written in C print the error of an import, by `sys.excepthook`, and go on."""
    script = """
import os, signal, sys
from roialign_cli.system.signals import Interrupt, Stop
stop = Stop()
stop.running = True
try:
    os.kill(os.getpid(), signal.SIGTERM)
except Interrupt as error:
    sys.excepthook(type(error), error, error.__traceback__)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
