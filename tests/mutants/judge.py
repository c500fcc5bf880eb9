"""Put faults into the storage code on purpose, one at a time, and see whether the quick tests notice: `make mutants`.

The faults are in mutants.toml: a text of a file, and what it becomes. Each is put into a copy of the tree, over which the tests
run until one fails. The score is printed, and with --table written as Markdown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from helpers.commands import LOADED

ROOT = Path(__file__).parents[2]
TESTS = [  # of the quick suite, those of what the mutants are put into: a mutant that they miss has survived
    "integration/test_resume.py", "unit/store/test_writer.py", "unit/store/test_check.py", "unit/store/test_identity.py",
    "unit/store/test_merge.py", "unit/store/test_feature_file.py", "unit/store/test_structure.py",
    "unit/store/test_region_tables.py", "unit/extraction/test_layout.py",
    "unit/extraction/test_shards.py", "unit/extraction/test_worker.py", "integration/test_sharding.py",
    "unit/export/test_export_safety.py", "integration/test_extract.py",
]  # fmt: skip
FIRST = {  # by module, the test that is likely to notice
    "writer": "unit/store/test_writer.py", "checksum": "unit/store/test_writer.py",
    "check": "unit/store/test_check.py", "identity": "unit/store/test_identity.py",
    "merge": "unit/store/test_merge.py", "parts": "integration/test_sharding.py",
    "structure": "unit/store/test_structure.py", "output": "unit/export/test_export_safety.py",
    "folder": "unit/export/test_export_safety.py", "atomic": "unit/export/test_export_safety.py",
    "layout": "unit/store/test_feature_file.py", "disk": "unit/store/test_feature_file.py",
    "shards": "unit/extraction/test_shards.py", "processes": "integration/test_processes.py",
}  # fmt: skip
TEST_SECONDS, SECONDS = 60, 1200  # a mutant that hangs is found, too


@dataclass(frozen=True)
class Mutant:
    """Replace in `file` the text `old`, which occurs once, by `new`; `same` says why that changes nothing, if it does not."""

    file: str
    old: str
    new: str
    what: str
    same: str = ""


@dataclass(frozen=True)
class Verdict:
    """Name the test that noticed a mutant, or no test."""

    mutant: Mutant
    killer: str
    seconds: float


def read_mutants() -> list[Mutant]:
    """Read all mutants, and check that each can be put in its place."""
    with (Path(__file__).with_name("mutants.toml")).open("rb") as file:
        mutants = [Mutant(**entry) for entry in tomllib.load(file)["mutant"]]
    for mutant in mutants:
        count = (ROOT / mutant.file).read_text().count(mutant.old)
        if count != 1:
            sys.exit(f"{mutant.file}: expected once, found {count} times: {mutant.old!r} ({mutant.what})")
    return mutants


def run_tests(tree: Path, tests: list[str], log: Path) -> None:
    """Run tests in this process, which has the slow imports loaded."""
    os.chdir(tree)
    os.environ["PYTHONPATH"], sys.path[0] = str(tree), str(tree)
    sys.dont_write_bytecode = True
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    import pytest

    options = [
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:unraisableexception",
        "--timeout",
        str(TEST_SECONDS),
    ]
    sys.exit(pytest.main([*options, *tests]))


def judge(mutant: Mutant, tree: Path) -> Verdict:
    """Run the tests over a tree with the mutant in it."""
    path = tree / mutant.file
    original = path.read_text()
    path.write_text(original.replace(mutant.old, mutant.new))
    first = FIRST.get(Path(mutant.file).stem, TESTS[0])
    tests = [f"tests/{name}" for name in dict.fromkeys([first, *TESTS])]
    context, log = multiprocessing.get_context("forkserver"), tree.with_name(tree.name + ".log")
    context.set_forkserver_preload(LOADED)
    begun = time.monotonic()
    process = context.Process(target=run_tests, args=(tree, tests, log))
    try:
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        lines = log.read_text(errors="replace").splitlines()
        failed = [line.split()[1] for line in lines if line.startswith(("FAILED", "ERROR"))]
        killer = (failed or [f"exit code {process.exitcode}"])[0] if process.exitcode else ""
    finally:
        path.write_text(original)
    return Verdict(mutant, killer.removeprefix("tests/"), time.monotonic() - begun)


def judge_all(mutants: list[Mutant], jobs: int) -> list[Verdict]:
    """Judge mutants, some at a time, each in its own tree."""
    left: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        left.put(mutant)
    verdicts: list[Verdict] = []

    def work(folder: Path) -> None:
        ignored = shutil.ignore_patterns(".git", ".venv", "demo", "__pycache__", ".*_cache")
        tree = shutil.copytree(ROOT, folder, ignore=ignored)
        while not left.empty():
            try:
                mutant = left.get_nowait()
            except queue.Empty:
                return
            verdict = judge(mutant, tree)
            verdicts.append(verdict)
            word = f"killed by {verdict.killer}" if verdict.killer else "SURVIVED"
            print(f"{len(verdicts)}/{len(mutants)} {mutant.what}: {word} ({verdict.seconds:.0f} s)", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        threads = [threading.Thread(target=work, args=(Path(folder) / str(i),)) for i in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return verdicts


def summary(verdicts: list[Verdict]) -> str:
    """Return the score by file, and the mutants that survived, as Markdown."""
    lines = ["| file | mutants | killed |", "| --- | --- | --- |"]
    files = sorted({verdict.mutant.file for verdict in verdicts})
    for file in files:
        mine = [verdict for verdict in verdicts if verdict.mutant.file == file]
        lines.append(f"| {file} | {len(mine)} | {sum(bool(one.killer) for one in mine)} |")
    killed = sum(bool(verdict.killer) for verdict in verdicts)
    lines.append(f"| all | {len(verdicts)} | {killed} ({killed / len(verdicts):.0%}) |")
    survivors = [verdict.mutant for verdict in verdicts if not verdict.killer]
    lines += ["", *(f"- survived: {one.what} ({one.file}): {one.same or 'not equivalent'}" for one in survivors)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--only", default="", help="only mutants whose file or description has this text")
    parser.add_argument("--table", type=Path, help="where to write the summary")
    arguments = parser.parse_args()
    chosen = [one for one in read_mutants() if arguments.only in one.file or arguments.only in one.what]
    text = summary(judge_all(sorted(chosen, key=lambda one: one.file), arguments.jobs))
    print(text)
    if arguments.table:
        arguments.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
