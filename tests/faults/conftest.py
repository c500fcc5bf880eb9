"""Build the library that injects faults, start the processes it is loaded into, and count what they did."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.data import ONE_LAYER, PYRAMID, TABLE, Data, Operation, make_data, with_options
from faults.runs import Runs

HEAD = ("fault", "runs disturbed", "files read", "images decoded")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder as slow, and skip them outside Linux."""
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.slow)
            if not sys.platform.startswith("linux"):
                item.add_marker(pytest.mark.skip(reason="faults are injected by Linux's means"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("library") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", target, source, "-ldl"], check=True)
    return target


@pytest.fixture(scope="session")
def runs(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Runs(library, tmp_path_factory.mktemp("runs")) as runs:
        yield runs


@pytest.fixture(scope="session")
def data(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data") / "d", 12, runs)


@pytest.fixture(scope="session")
def pyramid(data: Data, runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Return the data run over by a feature pyramid, whose file has levels."""
    return with_options(data, tmp_path_factory.mktemp("pyramid"), runs, PYRAMID)


@pytest.fixture(scope="session")
def one_layer(data: Data, runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Data:
    return with_options(data, tmp_path_factory.mktemp("one"), runs, ONE_LAYER)


@pytest.fixture(scope="session")
def operations(data: Data, runs: Runs) -> dict[str, Operation]:
    return data.operations(runs)


def table() -> str:
    """Return what was done, as Markdown; a fault that does harm fails its test instead."""
    lines = [" | ".join(HEAD), " | ".join("---" for _ in HEAD)]
    counted = {fault: (line.runs, line.files, line.decodings) for fault, line in TABLE.items()}
    counted["all"] = tuple(map(sum, zip(*counted.values(), strict=True)))
    for fault, numbers in counted.items():
        lines.append(" | ".join([fault, *map(str, numbers)]))
    return "\n".join(f"| {line} |" for line in lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TABLE:
        terminalreporter.write_line(f"\n{table()}\n")
        if path := os.environ.get("ROIALIGN_FAULTS_TABLE"):
            Path(path).write_text(table() + "\n")
