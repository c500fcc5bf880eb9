"""Test other actors beside a run: dying processes, concurrent runs, readers, and changing images."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.data import TABLE, Data
from faults.runs import FAIL, FULL, KILL_AFTER, KILL_BEFORE, SHORT, Runs
from roialign_cli import FeatureFile
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check

pytestmark = pytest.mark.timeout(1800)
TIMES = 4 if FULL else 2
PROCESSES = ("--processes", "2", "--device", "cpu")


def workers_of(parent: int) -> list[int]:
    """Return the processes that a run has started to compute."""
    found = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text().split() if is_worker(int(child))]
    return found


def is_worker(process: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes()


def wait_for(what: object, seconds: float = 60.0) -> None:
    """Wait until a call returns something true."""
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("fault", "action", "code"),
    [("killed before a call", KILL_BEFORE, 0), ("killed after a call", KILL_AFTER, 0), ("half of a write", SHORT, 0),
     ("EIO", FAIL, errno.EIO), ("ENOSPC", FAIL, errno.ENOSPC)],
)  # fmt: skip
def test_a_call_of_a_process_is_disturbed(
    fault: str, action: int, code: int, runs: Runs, data: Data, tmp_path: Path
) -> None:
    """Each of the two processes meets the fault at its own n-th call."""
    run, output, line = data.fresh(*PROCESSES), tmp_path / "f.h5", TABLE[f"{fault}, in both of two processes"]
    for _ in range(TIMES):
        call = random.randrange(1, 40)
        ended = runs(run.command(output), env={"FAULTS_ARM": f"{output.name},{call},{action},{code}"})
        line.runs += 1
        line.hangs += ended.hung
        assert ended.code in {data.code, 6 if action == FAIL else 130}, (call, ended)
        assert "Traceback" not in ended.log, (call, ended)
        run.judge(output, line)
        run.judge_end(output, runs(data.arguments(output)), line)
        assert line.harmless, (call, ended, line)
        run.clear(output)


@pytest.mark.parametrize("victim", ["the parent", "one process", "both processes"])
def test_a_process_is_killed(victim: str, runs: Runs, data: Data, tmp_path: Path) -> None:
    run, output, line = data.fresh(*PROCESSES), tmp_path / "f.h5", TABLE[f"SIGKILL of {victim} of two"]
    for _ in range(TIMES):
        parent = runs.start(run.command(output))
        wait_for(lambda parent=parent: len(workers_of(parent)) == 2)
        workers = workers_of(parent)
        time.sleep(random.uniform(0, 4))
        for process in [parent] if victim == "the parent" else workers[: 1 if victim == "one process" else 2]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        ended = runs.wait()
        line.runs += 1
        line.hangs += ended.hung
        assert ended.code in {data.code, -9 if victim == "the parent" else 130}, ended
        wait_for(lambda workers=workers: not any(alive(worker) for worker in workers))  # no orphans
        run.judge(output, line)
        run.judge_end(output, runs(data.arguments(output)), line)
        assert line.harmless, (ended, line)
        run.clear(output)


def alive(process: int) -> bool:
    """Return whether a process is there and not merely a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_runs_that_start_together(runs: Runs, data: Data, library: Path, tmp_path: Path) -> None:
    """One run writes; the other is refused, or finds the file finished."""
    run, output, line = data.fresh(), tmp_path / "f.h5", TABLE["two runs started together"]
    (tmp_path / "second").mkdir()
    with Runs(library, tmp_path / "second") as others:
        for i in range(5 * TIMES):
            more = ["--overwrite"] if i % 2 else []
            runs.start(run.command(output) + more)
            others.start(run.command(output) + more)
            ended = [runs.wait(), others.wait()]
            line.runs += 2
            line.hangs += sum(one.hung for one in ended)
            assert {one.code for one in ended} in ({data.code}, {data.code, 6}), ended
            assert all("output-locked" in one.log for one in ended if one.code == 6), ended
            run.judge(output, line)
            run.judge_end(output, runs(run.command(output)), line)
            assert line.harmless, (ended, line)
            run.clear(output)


def test_reading_while_it_is_written(runs: Runs, data: Data, tmp_path: Path) -> None:
    run, output, line = data.fresh(), tmp_path / "f.h5", TABLE["read while it is written"]
    seen = set()
    for _ in range(3 * TIMES):
        runs.start(run.command(output))
        ended = threading.Event()

        def read(ended: threading.Event = ended) -> None:
            while not ended.is_set():
                with suppress(FileNotFoundError):
                    run.judge(output, line)
                with suppress(OutputError), FeatureFile(output) as file:
                    seen.add(len(file.done_names))

        reader = threading.Thread(target=read)
        reader.start()
        end = runs.wait()
        ended.set()
        reader.join()
        line.runs += 1
        run.judge_end(output, end, line)
        assert line.harmless, line
        run.clear(output)
    assert len(seen) > 2


def test_images_that_change_under_the_run(runs: Runs, data: Data, tmp_path: Path) -> None:
    """The features of an image come from one version of it, and the file names that version."""
    line = TABLE["images that change under the run"]
    shutil.copytree(data.folder / "im", tmp_path / "im")
    names = [f"{i}.jpg" for i in range(data.images) if i % 5]
    versions = {name: {hashlib.sha256((tmp_path / "im" / name).read_bytes()).digest()} for name in names}
    copy = Data(tmp_path, data.images, data.options, data.code)
    shutil.copy(data.folder / "boxes.json", tmp_path)
    output, rng = tmp_path / "f.h5", np.random.default_rng(0)
    for _ in range(5 * TIMES):
        runs.start(copy.arguments(output))
        for _ in range(30):
            name = names[rng.integers(len(names))]
            with Image.open(tmp_path / "im" / name) as image:
                size = image.size
            picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
            if rng.integers(2):
                picture.save(tmp_path / "im" / name)  # in place: it may be read half
            else:
                picture.save(tmp_path / "new.jpg")
                (tmp_path / "new.jpg").replace(tmp_path / "im" / name)
            versions[name].add(hashlib.sha256((tmp_path / "im" / name).read_bytes()).digest())
            time.sleep(rng.uniform(0, 0.03))
        ended = runs.wait()
        line.runs += 1
        line.hangs += ended.hung
        assert ended.code == copy.code, ended
        line.files += 1
        with FeatureFile(output) as file:
            assert check(file).problems == []
            stored = file.dataset("images/sha256")
            for i, name in enumerate(file.names):
                assert file.status[i] != 1 or name not in names or stored[i].tobytes() in versions[name], name
    # In the end nothing changes any more, and the same command makes what a new run makes.
    assert runs(copy.arguments(output)).code == copy.code
    assert runs(copy.arguments(copy.whole)).code == copy.code
    with FeatureFile(output) as file, FeatureFile(copy.whole) as whole:
        for layer in file.layers:
            assert np.array_equal(file.features(layer), whole.features(layer))
    assert line.harmless


def test_a_limit_on_memory(runs: Runs, data: Data, tmp_path: Path) -> None:
    """Wherever memory runs out, the run finishes or ends with one of our errors, and the next run continues."""
    run, output, line = data.fresh(), tmp_path / "f.h5", TABLE["limit on memory (ulimit -v)"]
    for step in range(5 * TIMES):
        more = 1 << 20 if step == 0 else random.randrange(1 << 20, 400 << 20)
        ended = runs(run.command(output), limits={"RLIMIT_AS": -more})
        line.runs += 1
        line.hangs += ended.hung
        assert ended.code in {data.code, 6, 5, 4, 3, 1, -6}, (more, ended)  # -6: C++ found no memory even to say so
        run.judge(output, line)
        run.judge_end(output, runs(run.command(output)), line)
        assert line.harmless, (more, ended, line)
        run.clear(output)


def test_without_shared_memory(data: Data, tmp_path: Path) -> None:
    """Containers may have no /dev/shm."""
    run, output, line = data.fresh(*PROCESSES), tmp_path / "f.h5", TABLE["no /dev/shm"]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
    script = 'mount -t tmpfs -o ro,size=4k none /dev/shm && exec "$@"'
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-m",
        "roialign_cli",
        *run.command(output),
    ]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("may not mount")
    assert done.returncode == data.code, done.stderr
    line.runs += 1
    run.judge(output, line)
    assert line.harmless, line
