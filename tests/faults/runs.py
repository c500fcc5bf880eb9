"""Run commands in separate processes that can be disturbed, killed and counted."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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
import roialign_cli.extraction.run, roialign_cli.backbones.gabor, roialign_cli.backbones.custom, roialign_cli.ops.cpu.kernel
import roialign_cli.cli.extract, roialign_cli.cli.merge, roialign_cli.store.merge, faults.two_layers
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
        os.environ.update(order["env"])
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
    """Choose a call on files of a name and what happens at it; `recording` is a file for what is written and synced."""

    text: str
    call: int = 0
    action: int = 0
    error: int = 0
    only_syncs: bool = False
    recording: str = ""


@dataclass(frozen=True)
class Ended:
    """Describe how a run ended: exit code or negative signal, output, and whether it had to be killed because it hung."""

    code: int
    log: str
    hung: bool = False


class Runs:
    """Start runs in separate processes, and wait for them or kill them."""

    def __init__(self, library: Path | None, folder: Path) -> None:
        tests = str(Path(__file__).parents[1])  # where the backbone of the runs is found
        paths = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, **({"LD_PRELOAD": str(library)} if library else {})}
        self._child = 0  # 0: none is running
        self._log, self._count = folder / "log.txt", folder / "count.txt"
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(
        self,
        run: list[str],
        arm: Arm | None = None,
        *,
        clock: int = 0,
        limits: dict[str, int] | None = None,
        env: dict[str, str] | None = None,
    ) -> int:
        """Start a run and return its process id."""
        armed = [arm.text, arm.call, arm.action, arm.error, int(arm.only_syncs), arm.recording] if arm else []
        order = {"run": run, "arm": armed, "clock": clock, "limits": limits or {}, "log": str(self._log)}
        order["env"] = env or {}
        order["count"] = str(self._count) if arm else ""
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        self._child = int(self._server.stdout.readline())
        return self._child

    def wait(self, seconds: float = HANG_SECONDS) -> Ended:
        """Return how the run ended; kill it if it does not end in time."""
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
        """Return the system calls that counted in the last run that ended by itself."""
        return int(self._count.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()  # a stopped one would be waited for for ever
        with self._server:
            self._server.stdin.close()
