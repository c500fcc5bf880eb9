"""Runs of the command in processes of their own, harmed on purpose, and the verdict on what they leave behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from PIL import Image

from roialign_cli import FeatureFile
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check

FULL = os.environ.get("ROIALIGN_FAULTS") == "full"  # all faults, as `make faults` does; otherwise a slice of them
HANG_SECONDS = 60.0
# So that every state is met, and data this small goes past the page cache, too.
OFTEN = """
import roialign_cli.store.disk as disk; disk.LONG = 4096
import roialign_cli.store.writer as writer; writer.CHECKPOINT_SECONDS = 0.02
"""

# What happens at a system call; see faults.c.
KILL_BEFORE, KILL_AFTER, FAIL, SHORT, STOP = 1, 2, 3, 4, 5

# Imports take seconds, so one process does them and forks a child for every run; it answers with pid and wait status.
SERVER = f"""
import ctypes, json, os, resource, signal, sys
{OFTEN}
import roialign_cli.pipeline, roialign_cli.backbones.gabor, roialign_cli.ops.cpu_kernels, roialign_cli.cli.extract
from roialign_cli.__main__ import main
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT}})  # until the command itself has begun
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(order["log"], os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for descriptor in (0, 1, 2):
            os.dup2(log, descriptor)
        for name, limit in order["limits"].items():
            if limit < 0:  # so much more than there is
                limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() - limit
            resource.setrlimit(getattr(resource, name), (limit, limit))
        if order["arm"]:
            text, call, action, code, only_syncs, recording = order["arm"]
            ctypes.CDLL(None).faults_arm(text.encode(), ctypes.c_long(call), action, code, only_syncs, recording.encode())
        if order["clock"]:
            ctypes.CDLL(None).faults_clock(ctypes.c_long(order["clock"]))
        sys.argv = ["roialign", *order["run"]]
        code = 0
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {{signal.SIGINT}})
            main()
        except KeyboardInterrupt:
            code = 130
        except SystemExit as end:
            code = end.code or 0
        if order["count"]:
            with open(order["count"], "w") as file:
                print(ctypes.CDLL(None).faults_count(), file=file)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass(frozen=True)
class Arm:
    """Which call on files of a name is harmed, and how; `recording` is a file for what is written and synced."""

    text: str
    call: int = 0
    action: int = 0
    error: int = 0
    only_syncs: bool = False
    recording: str = ""


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code, or minus the signal; what it printed; whether it had to be killed for hanging."""

    code: int
    log: str
    hung: bool = False


class Runs:
    """Starts runs in processes of their own, and waits for them or kills them."""

    def __init__(self, library: Path | None, folder: Path) -> None:
        environment = dict(os.environ) | ({"LD_PRELOAD": str(library)} if library else {})
        self._child = 0  # 0: none is running
        self._log, self._count = folder / "log.txt", folder / "count.txt"
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(
        self, run: list[str], arm: Arm | None = None, *, clock: int = 0, limits: dict[str, int] | None = None
    ) -> int:
        """The process id of a new run."""
        armed = [arm.text, arm.call, arm.action, arm.error, int(arm.only_syncs), arm.recording] if arm else []
        order = {"run": run, "arm": armed, "clock": clock, "limits": limits or {}, "log": str(self._log)}
        order["count"] = str(self._count) if arm else ""
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        self._child = int(self._server.stdout.readline())
        return self._child

    def wait(self, seconds: float = HANG_SECONDS) -> Ended:
        """How the run ended; one that does not in time is killed."""
        hung = not select.select([self._server.stdout], [], [], seconds)[0]
        if hung:
            self.kill()
        code = os.waitstatus_to_exitcode(int(self._server.stdout.readline()))
        self._child = 0
        return Ended(code, self._log.read_text(errors="replace"), hung)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; the process may have ended."""
        if self._child:
            with suppress(ProcessLookupError):
                os.kill(self._child, number)

    def __call__(self, run: list[str], arm: Arm | None = None, **more: Any) -> Ended:
        self.start(run, arm, **more)
        return self.wait()

    @property
    def calls(self) -> int:
        """System calls that counted in the last run that ended by itself."""
        return int(self._count.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()  # a stopped one would be waited for for ever
        with self._server:
            self._server.stdin.close()


@dataclass
class Line:
    """A line of the table: how many runs, and what went wrong in them."""

    runs: int = 0
    lost_rows: int = 0
    wrong_rows: int = 0
    unreadable: int = 0
    hangs: int = 0
    notes: set[str] = field(default_factory=set)

    @property
    def harmless(self) -> bool:
        return not (self.lost_rows or self.wrong_rows or self.unreadable or self.hangs)


TABLE: dict[str, Line] = defaultdict(Line)  # what the session found, by fault


def contents(path: Path) -> dict[str, bytes]:
    """All data of a feature file."""
    with h5py.File(path) as file:
        names = ["features", "boxes", *(f"images/{name}" for name in file["images"])]
        return {name: file[name][()].tobytes() for name in names}


@dataclass(frozen=True)
class Data:
    """A small data set, the arguments of a run over it, and the file of an undisturbed run."""

    folder: Path
    images: int
    whole: Path

    def arguments(self, output: Path, *more: str) -> list[str]:
        """Batches of three, so that a run has many of them."""
        run = ["extract", str(self.folder / "im"), str(self.folder / "boxes.json"), "-o", str(output)]
        return [*run, "-c", "quickstart", "--output-size", "3", "--batch-size", "3", *more]

    def judge(self, output: Path, line: Line) -> None:
        """What a harmed run has left must be readable, and what is marked done in it right."""
        if not output.exists():
            return
        try:
            with FeatureFile(output) as file, FeatureFile(self.whole) as whole:
                if check(file).problems:
                    line.wrong_rows += 1
                for name in file.done_names:
                    found, right = file[name], whole[name]
                    same = (found.features == right.features).all((1, 2, 3)) & (found.boxes == right.boxes).all(1)
                    line.wrong_rows += int((~same).sum())
        except OutputError:
            line.unreadable += 1

    def judge_end(self, output: Path, ended: Ended, line: Line) -> None:
        """After the same command has gone on to the end, the file is that of an undisturbed run."""
        line.hangs += ended.hung
        if ended.code != 0:
            line.unreadable += 1
            line.notes.add(ended.log[-300:])
            return
        with FeatureFile(output) as file, FeatureFile(self.whole) as whole:
            line.lost_rows += len(whole.done_rows) - len(file.done_rows)
        line.wrong_rows += contents(output) != contents(self.whole)

    def clear(self, output: Path) -> None:
        """Take away what belongs to an output."""
        for path in output.parent.glob(output.name + "*"):
            path.unlink()


def make_data(folder: Path, images: int, runs: Runs) -> Data:
    """Photos of noise, three sizes, a few boxes each."""
    rng = np.random.default_rng(0)
    table = {}
    (folder / "im").mkdir(parents=True)
    for i in range(images):
        height, width = ((48, 64), (64, 48), (40, 40))[i % 3]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / "im" / f"{i}.jpg")
        corner = rng.uniform(0, 30, (5, 2))
        table[f"{i}.jpg"] = np.hstack([corner, corner + rng.uniform(5, 20, (5, 2))]).round(1).tolist()
    (folder / "boxes.json").write_text(json.dumps(table))
    data = Data(folder, images, folder / "whole.h5")
    assert runs(data.arguments(data.whole)).code == 0
    return data
