"""Run the command line in a process forked from one that has torch loaded, which saves the seconds of a new Python."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

Completed = subprocess.CompletedProcess[str]
Run = Callable[..., Completed]  # of the fixture `roialign`

LOADED = ["torch", "torchvision", "torchvision.models.detection", "numba", "h5py", "matplotlib.figure", "msgspec"]
READ_LATE = {
    "HOME",
    "TORCH_HOME",
    "http_proxy",
    "https_proxy",
}  # variables that loaded modules read when they need them
SECONDS = 300
COLUMNS = {"COLUMNS": "200"}  # of the terminal


def run(arguments: list[str], env: Mapping[str, str], cwd: Path) -> Completed:
    """Return what a shell would see: exit code, stdout and stderr.

    With variables that modules read while they load, the command is a new Python.
    """
    variables = {**os.environ, **COLUMNS, **env}
    if not READ_LATE.issuperset(env) or sys.platform == "win32":
        command = [sys.executable, "-m", "roialign_cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=cwd)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        process = context.Process(target=_command, args=(arguments, variables, cwd, out, err))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, SECONDS)
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def start(arguments: list[str], folder: Path) -> BaseProcess:
    """Start a command that a test kills, in a process forked from one that has torch loaded; it logs into the folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    variables = {**os.environ, **COLUMNS}
    process = context.Process(target=_command, args=(arguments, variables, folder, folder / "out", folder / "err"))
    process.start()
    return process


def _command(arguments: list[str], env: dict[str, str], cwd: Path, out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for descriptor, path in enumerate((Path(os.devnull), out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    sys.argv = ["roialign", *arguments]
    from roialign_cli.__main__ import main

    main()
