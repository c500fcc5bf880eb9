"""Test shards on a real Ray started here: two workers, one killed in the middle, a run killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.feature_files import assert_same
from helpers.images import make_noise

from roialign_cli import extract

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
IMAGES, SHARDS = 40, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make photos of noise, boxes, and the file that one process writes."""
    folder = tmp_path_factory.mktemp("ray")
    make_noise(folder, IMAGES)
    extract(folder / "im", folder / "boxes.json", folder / "whole.h5", backbone="resnet18", weights="random")
    return folder


def command(data: Path, output: Path, *more: str) -> list[str]:
    run = ["extract", str(data / "im"), str(data / "boxes.json"), "-o", str(output), "--backbone", "resnet18"]
    ray = ["--weights", "random", "--engine", "ray", "--num-shards", str(SHARDS), "--processes", "2", "--json"]
    return [sys.executable, "-m", "roialign_cli", *run, *ray, *more]


def run(data: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(data, output, *more), check=False, capture_output=True, text=True, timeout=600)


def workers() -> list[int]:
    """Return the processes of Ray's actors."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().startswith(b"ray::_Worker"):
                found.append(int(path.parent.name))
    return found


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} does not come")


def test_two_workers_make_the_same_file(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "f.h5"
    done = run(data, output)
    assert done.returncode == 7, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["failed"], summary["finished"]) == (IMAGES, 1, True)
    assert list(summary["failures"]) == ["missing.jpg"]
    assert_same(output, data / "whole.h5")
    assert list(tmp_path.iterdir()) == [output]
    again = run(data, output)
    assert again.returncode == 7
    assert json.loads(again.stdout)["done"] == IMAGES


def test_what_an_earlier_file_holds_is_taken_over(data: Path, tmp_path: Path) -> None:
    boxes = json.loads((data / "boxes.json").read_text())
    changed = [name for name, rows in boxes.items() if rows and name != "missing.jpg"][::10]
    for name in changed:
        boxes[name] = [[x1, y1, x2 + 1, y2] for x1, y1, x2, y2 in boxes[name]]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    new = [
        str(tmp_path / "boxes.json") if part == str(data / "boxes.json") else part
        for part in command(data, tmp_path / "f.h5")
    ]
    done = subprocess.run(
        [*new, "--reuse", str(data / "whole.h5")], check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 7, done.stderr
    summary = json.loads(done.stdout)
    assert summary["computed"] == {"with other boxes": len(changed)}
    assert summary["reused_images"] == sum(map(bool, boxes.values())) - len(changed) - bool(boxes.get("missing.jpg"))
    extract(data / "im", tmp_path / "boxes.json", tmp_path / "whole.h5", backbone="resnet18", weights="random")
    assert_same(tmp_path / "f.h5", tmp_path / "whole.h5")


def test_a_worker_is_killed_and_then_the_whole_run(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "f.h5"
    first = output.with_name(f"f-0001-of-{SHARDS:04}.h5")
    process = subprocess.Popen(command(data, output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(first)
    os.kill(workers()[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 7, stderr
    assert_same(output, data / "whole.h5")
    output.unlink()

    process = subprocess.Popen(command(data, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(first)
    process.kill()
    process.wait()
    assert not output.exists()
    done = run(data, output)
    assert done.returncode == 7, done.stderr
    assert_same(output, data / "whole.h5")


def test_interrupted_and_left_apart(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "f.h5"
    process = subprocess.Popen(command(data, output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(output.with_name(f"f-0001-of-{SHARDS:04}.h5"))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["pending"] > 0
    done = run(data, output, "--no-merge")
    assert done.returncode == 7, done.stderr
    assert not output.exists()
    assert_same(tmp_path / f"f-*-of-{SHARDS:04}.h5", data / "whole.h5")


def test_what_cannot_be(data: Path, tmp_path: Path) -> None:
    gpus = run(data, tmp_path / "f.h5", "--gpus-per-worker", "1")
    assert gpus.returncode == 2, gpus.stderr
    assert "expected 1 for each of 2 workers, found 0 in all" in gpus.stderr
    nobody = run(data, tmp_path / "f.h5", "--address", "127.0.0.1:1")
    assert nobody.returncode == 2, nobody.stderr
    assert "no Ray cluster at 127.0.0.1:1" in nobody.stderr
    both = run(data, tmp_path / "f.h5", "--shard", "1/2")
    assert both.returncode == 2
    assert "ray without --shard" in both.stderr
