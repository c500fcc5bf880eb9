"""Test that several processes write the same features into one file, whichever of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Run
from helpers.long_runs import arguments, dataset
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import ConfigError
from roialign_cli.store.check import check

LONG_RUN_IMAGES = 900  # keep two processes busy for seconds: they record every two seconds what is done


def same_features(one: Path, other: Path) -> None:
    with FeatureFile(one) as a, FeatureFile(other) as b:
        assert not check(a).problems
        assert (a.status == b.status).all()
        x, y = np.array(a.features()), np.array(b.features())
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


def children(pid: int) -> list[int]:
    """Return the spawned processes of a run, without Python's own tracker of resources."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    seen: list[int] = []
    options = {"config_name": "quickstart", "batch_size": 1}
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "one.h5", **options)
    summary = extract(
        SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "two.h5", processes=2, **options, device="cpu",
        on_progress=lambda progress: seen.append(progress.images),
    )  # fmt: skip
    assert (summary.done, summary.finished, seen) == (5, True, [1, 2, 3, 4, 5])
    same_features(tmp_path / "two.h5", tmp_path / "one.h5")


@pytest.mark.slow
def test_stopped_when_everything_is_handed_out_is_stopped_nevertheless(tmp_path: Path) -> None:
    """Processes ask for batches ahead: they hold all six before they compute the first."""
    rng, table = np.random.default_rng(0), {}
    (tmp_path / "im").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (1500, 1500, 3), np.uint8)).save(tmp_path / "im" / f"{i}.jpg")
        table[f"{i}.jpg"] = [[0, 0, 900, 900]]
    (tmp_path / "boxes.json").write_text(json.dumps(table))
    seen: list[int] = []
    options = {"config_name": "quickstart", "batch_size": 1, "device": "cpu", "processes": 2}
    summary = extract(
        tmp_path / "im", tmp_path / "boxes.json", tmp_path / "f.h5", **options,
        on_progress=lambda progress: seen.append(progress.images), should_stop=lambda: bool(seen),
    )  # fmt: skip
    assert summary.pending > 0
    assert (summary.interrupted, summary.finished) == (True, False)
    assert extract(tmp_path / "im", tmp_path / "boxes.json", tmp_path / "f.h5", **options).done == 6


def test_fewer_processes_than_devices_and_devices_named_twice_are_refused(tmp_path: Path) -> None:
    for device, found in (("cpu,cpu", "device: expected"), ("cuda:0,0", "device: expected"), ("cpu:all", "device: ")):
        with pytest.raises(ConfigError, match=found):
            extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", config_name="quickstart", device=device)


@pytest.mark.slow
def test_an_error_in_a_process_is_the_error_of_the_run(tmp_path: Path, roialign: Run) -> None:
    (tmp_path / "im").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "im" / name).write_bytes((SAMPLE_IMAGES / "cat.jpg").read_bytes())
    broken = (tmp_path / "im" / "b.jpg").read_bytes()[:9000]  # its header is whole
    (tmp_path / "im" / "b.jpg").write_bytes(broken)
    (tmp_path / "boxes.json").write_text(json.dumps({"a.jpg": [[0, 0, 9, 9]], "b.jpg": [[0, 0, 9, 9]]}))
    command = ["extract", tmp_path / "im", tmp_path / "boxes.json", "-o", tmp_path / "f.h5", "-c", "quickstart"]
    done = roialign(*command, "--processes", "2", "--on-error", "stop")
    assert done.returncode == 3
    assert '"b.jpg"' in done.stderr
    assert "Traceback" not in done.stderr
    done = roialign(*command, "--processes", "2", "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["failures"].keys() == {"b.jpg"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("victims", [1, 2])
def test_a_process_that_is_killed_loses_nothing(tmp_path: Path, victims: int) -> None:
    """If one of two processes dies, the other does its images; if both die, the next run does them."""
    dataset(tmp_path, LONG_RUN_IMAGES)
    extract(tmp_path / "im", tmp_path / "boxes.json", tmp_path / "one.h5", config_name="quickstart", batch_size=3)
    command = [
        sys.executable,
        "-m",
        "roialign_cli",
        *arguments(tmp_path, tmp_path / "two.h5", "--processes", "2", "--json"),
    ]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if (tmp_path / "two.h5").exists() and len(workers := children(started.pid)) == 2:
            with FeatureFile(tmp_path / "two.h5") as file:
                if (file.status == 1).sum() > 10:
                    break
        time.sleep(0.02)
    for worker in workers[:victims]:
        os.kill(worker, signal.SIGKILL)
    output, errors = started.communicate(timeout=120)
    assert errors.count("died (killed by SIGKILL)") == victims, errors
    summary = json.loads(output)
    with FeatureFile(tmp_path / "two.h5") as file:
        assert not check(file).problems
    if victims == 1:
        assert (started.returncode, summary["done"]) == (0, LONG_RUN_IMAGES)
    else:
        assert (started.returncode, summary["finished"]) == (130, False)
        assert summary["pending"] > 0
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["done"] == LONG_RUN_IMAGES
    same_features(tmp_path / "two.h5", tmp_path / "one.h5")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    dataset(tmp_path, LONG_RUN_IMAGES)
    command = [sys.executable, "-m", "roialign_cli", *arguments(tmp_path, tmp_path / "f.h5", "--processes", "2")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killer = threading.Timer(60, started.kill)
    killer.start()
    while len(workers := children(started.pid)) < 2 or not (tmp_path / "f.h5").exists():
        time.sleep(0.02)
    time.sleep(3)
    started.send_signal(number)
    started.communicate()
    killer.cancel()
    assert started.returncode == (130 if number == signal.SIGINT else -number)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    with FeatureFile(tmp_path / "f.h5") as file:
        assert not check(file).problems
