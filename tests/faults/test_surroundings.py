"""Test the surroundings of a run: full and read-only disks, vanishing files, competing processes, odd clocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.data import TABLE, Data, described
from faults.runs import FULL, STOP, Arm, Runs
from roialign_cli import FeatureFile

pytestmark = pytest.mark.timeout(1800)
TIMES = 10 if FULL else 3


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def stop_at(runs: Runs, data: Data, output: Path, call: int) -> int:
    """Start a run that stops itself at a call, and wait until it has."""
    child = runs.start(data.arguments(output), Arm(output.name, call, STOP))
    for _ in range(3000):
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return child
        time.sleep(0.01)
    raise AssertionError("it has not stopped")


def calls_of(runs: Runs, data: Data, output: Path) -> int:
    assert runs(data.arguments(output), Arm(output.name)).code == data.code
    data.fresh().clear(output)
    return runs.calls


def test_a_disk_that_is_too_small(runs: Runs, data: Data, tmp_path: Path) -> None:
    line = TABLE["full disk (tmpfs)"]
    whole = data.whole.stat().st_size // 1024
    for size in range(4, whole, 4 if FULL else whole // 4):
        with small_disk(tmp_path / "disk", f"size={size}k") as disk:
            ended = runs(data.arguments(disk / "f.h5"))
            line.runs += 1
            line.hangs += ended.hung
            assert ended.code == 6, (size, ended)
            assert "error[output" in ended.log
            assert not list(disk.glob("f.h5*")), size


def test_a_disk_that_fills_up_under_the_run(runs: Runs, data: Data, tmp_path: Path) -> None:
    line = TABLE["disk filled by others"]
    with small_disk(tmp_path / "disk", "size=400k") as disk:
        output = disk / "f.h5"
        calls = calls_of(runs, data, output)
        for i in range(TIMES):
            stop_at(runs, data, output, calls // 2 + i)
            with (disk / "other").open("wb", buffering=0) as other:
                try:
                    while True:
                        other.write(bytes(4096))
                except OSError:
                    pass
            runs.kill(signal.SIGCONT)
            line.runs += 1
            data.fresh().judge_end(output, runs.wait(), line)  # the space was reserved
            assert line.harmless
            (disk / "other").unlink(missing_ok=True)
            data.fresh().clear(output)


def test_a_limit_on_file_size(runs: Runs, data: Data, tmp_path: Path) -> None:
    output, line = tmp_path / "f.h5", TABLE["limit on file size"]
    whole = data.whole.stat().st_size
    for limit in (0, 1000, whole // 2, whole - 1):
        ended = runs(data.arguments(output), limits={"RLIMIT_FSIZE": limit})
        line.runs += 1
        line.hangs += ended.hung
        if limit:  # with none, not even the message could be written
            assert "error[output" in ended.log, (limit, ended)
            assert ended.code == 6
        assert ended.code != 0
        data.fresh().judge_end(output, runs(data.arguments(output)), line)
        assert line.harmless, (limit, line)
        data.fresh().clear(output)


def test_a_read_only_folder(runs: Runs, data: Data, tmp_path: Path) -> None:
    line = TABLE["read-only folder"]
    with small_disk(tmp_path / "disk", "size=400k,ro") as disk:
        ended = runs(data.arguments(disk / "f.h5"))
        line.runs += 1
        assert ended.code == 6
        assert "error[output-permission]" in ended.log


@pytest.mark.parametrize("harm", ["removed", "cut", "replaced"])
def test_the_output_changes_under_the_run(harm: str, runs: Runs, data: Data, tmp_path: Path) -> None:
    output, line = tmp_path / "f.h5", TABLE[f"output {harm} under the run"]
    calls = calls_of(runs, data, output)
    for i in range(TIMES):
        stop_at(runs, data, output, calls // 2 + i)
        if harm == "cut":
            os.truncate(output, output.stat().st_size // 3)
        else:
            output.unlink()
        if harm == "replaced":
            output.write_text("something else")
        runs.kill(signal.SIGCONT)
        ended = runs.wait()
        line.runs += 1
        line.hangs += ended.hung
        assert ended.code == 6, ended
        assert "under the run" in ended.log, ended.log
        if harm == "replaced":
            assert output.read_text() == "something else"
        more = [] if harm == "removed" else ["--overwrite"]
        if more:
            refused = runs(data.arguments(output))
            assert refused.code == 6, refused
        data.fresh().judge_end(output, runs(data.arguments(output, *more)), line)
        assert line.harmless, line
        data.fresh().clear(output)


def test_another_run_on_the_same_output(runs: Runs, data: Data, library: Path, tmp_path: Path) -> None:
    output, line = tmp_path / "f.h5", TABLE["second run on one output"]
    calls = calls_of(runs, data, output)
    (tmp_path / "second").mkdir()
    with Runs(library, tmp_path / "second") as others:
        for i in range(TIMES):
            stop_at(runs, data, output, calls // 3 + i)
            refused = others(data.arguments(output))
            line.runs += 1
            line.hangs += refused.hung
            assert refused.code == 6
            assert "error[output-locked]" in refused.log
            runs.kill(signal.SIGCONT)
            data.fresh().judge_end(output, runs.wait(), line)
            data.fresh().clear(output)
            # And the lock of a dead process hinders nobody.
            stop_at(runs, data, output, calls // 3 + i)
            runs.kill(signal.SIGKILL)
            runs.wait()
            line.runs += 1
            data.fresh().judge_end(output, others(data.arguments(output)), line)
            assert line.harmless, line
            data.fresh().clear(output)


def test_a_clock_that_goes_backwards(runs: Runs, data: Data, tmp_path: Path) -> None:
    output, line = tmp_path / "f.h5", TABLE["clock going backwards"]
    for step in (1, 3600, 10**6):
        line.runs += 1
        data.fresh().judge_end(output, runs(data.arguments(output), clock=step), line)
        assert line.harmless
        data.fresh().clear(output)


def table_from_entries(data: Data, folder: Path, name: str) -> Path:
    """Return the data set's boxes, and one box on another image."""
    boxes = {name: described([[0, 0, 20, 20]], 0), **json.loads((data.folder / "boxes.json").read_text())}
    path = folder / "boxes.json"
    path.write_text(json.dumps(boxes))
    (folder / "im").mkdir()
    for image in (data.folder / "im").iterdir():
        (folder / "im" / image.name).symlink_to(image)
    return path


def arguments(folder: Path, *more: str) -> list[str]:
    run = ["extract", str(folder / "im"), str(folder / "boxes.json"), "-o", str(folder / "f.h5"), "-c", "quickstart"]
    return [*run, "--output-size", "3", "--batch-size", "3", *more]


def test_an_image_that_hangs(runs: Runs, data: Data, tmp_path: Path) -> None:
    """The library of faults never opens it, as if it were on a lost network disk."""
    line = TABLE["image that hangs"]
    table_from_entries(data, tmp_path, "hang.jpg")
    Image.new("RGB", (64, 48)).save(tmp_path / "im" / "hang.jpg")
    ended = runs(arguments(tmp_path, "--image-timeout", "1", "--workers", "1"), Arm("f.h5"))
    line.runs += 1
    line.hangs += ended.hung
    assert ended.code == 7, ended
    assert 'failed: "hang.jpg": expected to read it within 1 s, found that it takes longer' in ended.log
    with FeatureFile(tmp_path / "f.h5") as file:
        assert len(file.done_names) == data.images
    assert line.harmless


def test_an_image_too_large_for_memory(runs: Runs, data: Data, tmp_path: Path) -> None:
    """Under a limit on memory only the image fails, where Python can notice it."""
    line = TABLE["image too large for memory"]
    table_from_entries(data, tmp_path, "huge.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 12000, 3), np.uint8)
    Image.fromarray(np.repeat(noise, 190, axis=0)).save(tmp_path / "im" / "huge.png", compress_level=1)
    ended = runs(arguments(tmp_path, "--max-pixels", "0"), limits={"RLIMIT_AS": -(3 << 30)})
    line.runs += 1
    line.hangs += ended.hung
    assert ended.code == 7, ended
    assert 'failed: "huge.png"' in ended.log
    assert "memory" in ended.log
    with FeatureFile(tmp_path / "f.h5") as file:
        assert len(file.done_names) == data.images
    assert line.harmless
