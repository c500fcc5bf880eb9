"""Run every command on hostile feature files: it ends soon, well or with one of our errors, and writes only its output."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.hostile import CASES, FOUND, REFUSED, SOUND, Case, Goods, make_goods
from helpers.hostile.surroundings import Surroundings, changed

from faults.data import TABLE
from faults.runs import FULL, SERVER, Ended, Runs

SECONDS = 10.0  # in which a command must end
LEFT_OUT = 7
SLICE_SECONDS = 300.0 if FULL else 60.0
FORMS = ("npz", "pt", "lmdb", "tsv", "parquet", "h5-groups", "h5")
CODES = (0, 2, 3, 6, 7)
INTERNAL = ("error[internal]", '"reference": "internal"', "Traceback")
LIMITS = {
    "RLIMIT_DATA": -(4 << 30),
    "RLIMIT_FSIZE": 1 << 30,
}  # what is claimed to be huge must not take the machine along

# What commands import is loaded once; what a hostile file makes of it happens in a child.
LOADED = """
import lmdb, pandas, PIL.Image, pyarrow.parquet, pydantic, matplotlib.backends.backend_agg, rich.progress, rich.tree
import roialign_cli.backbones.torchvision, roialign_cli.figures.sheet, roialign_cli.store.datasets
from roialign_cli.export import arrays, hdf5, tables
PIL.Image.init()
"""
READER = SERVER.replace("from roialign_cli.__main__ import main", "from helpers.hostile.reading import main")


class Server(Runs):
    """Start runs in a folder of their own, where `read FILE OTHER` is also a command."""

    def __init__(self, folder: Path, here: Path) -> None:
        self._child = 0
        self._log, self._count = folder / "log.txt", folder / "count.txt"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", LOADED + READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=here,
        )  # fmt: skip


@dataclass(frozen=True)
class Command:
    """Describe a command on a hostile file: its arguments, and the paths from the root that it may change."""

    name: str
    arguments: list[str]
    writes: tuple[str, ...] = ()


def commands(case: Case, file: Path, other: Path, goods: Goods, out: Path) -> list[Command]:
    """Return every command that opens feature files; the last may change the file itself."""
    made = str(out / "made")
    found = [
        Command("verify", ["verify", str(file)]),
        Command("inspect", ["inspect", str(file)]),
        Command("inspect --json", ["inspect", str(file), "--json"]),
        Command("python", ["read", str(file), str(other)]),
        *[Command(f"export --to {form}", ["export", str(file), "--to", form, "-o", made], ("out/made",)) for form in FORMS],
        Command("merge FILE", ["merge", str(file), "-o", made], ("out/made",)),
        Command("merge FILE FILE", ["merge", str(file), str(file), "-o", made], ("out/made",)),
        Command("merge FILE OTHER", ["merge", str(file), str(other), "-o", made], ("out/made",)),
        Command("merge --link", ["merge", str(file), str(other), "--link", "-o", made], ("out/made",)),
        Command("show --from", ["show", "--from", str(file), "-o", f"{made}.png"], ("out/made.png",)),
    ]  # fmt: skip
    return [*found, Command("extract", goods.arguments(case, file), (f"in/{file.name}",))]


def judge(case: Case, command: Command, ended: Ended) -> list[str]:
    """Return what is wrong with how a command ended."""
    if ended.hung:
        return [f"not ended after {SECONDS:.0f} s"]
    wrong = []
    last = (ended.log.strip().splitlines() or [""])[-1]
    told = next((line for line in ended.log.splitlines() if "error[" in line), last)
    if ended.code < 0:
        wrong.append(f"ended by signal {-ended.code}")
    elif any(text in ended.log for text in INTERNAL) or ended.code not in CODES:
        wrong.append(f"exit {ended.code}: {(told if 'error[' in told else last)[:200]}")
    elif ended.code == LEFT_OUT and command.name.startswith("export"):
        pass  # images of which nothing can be exported are left out with a warning
    elif ended.code and "error[" not in ended.log and '{"error": {' not in ended.log:  # as text, or as JSON
        wrong.append(f"exit {ended.code} without an error: {last[:200]}")
    if ended.code == 0 and case.verdict == REFUSED and not (case.name == "file: missing" and command.name == "extract"):
        wrong.append("exit 0 of a file that must be refused")
    if ended.code == 0 and case.verdict == FOUND and command.name == "verify":
        wrong.append("exit 0 of a file in which something is wrong")
    if ended.code not in (0, 7) and case.verdict == SOUND and command.name in ("verify", "inspect", "inspect --json"):
        wrong.append(f"exit {ended.code} of a sound file: {told[:200]}")
    return wrong


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Goods:
    return make_goods(tmp_path_factory.mktemp("goods"))


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    (tmp_path / "root" / "here").mkdir(parents=True)
    return Surroundings(tmp_path / "root")


@pytest.fixture
def server(around: Surroundings, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, around.root / "here") as server:
        yield server


def chosen() -> Iterator[Case]:
    """Yield cases in random order, as long as there is time."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    begun = time.monotonic()
    for case in random.Random(seed).sample(CASES, len(CASES)):
        if time.monotonic() - begun > SLICE_SECONDS:
            return
        yield case


def harm(case: Case, goods: Goods, around: Surroundings, server: Server) -> Iterator[tuple[str, str]]:
    """Run every command on the file of a case; yield the command and what is wrong."""
    file, other = around.begin(goods, case)
    before = around.snapshot()
    for command in commands(case, file, other, goods, around.root / "out"):
        server.start(command.arguments, limits=LIMITS)
        ended = server.wait(SECONDS)
        line = TABLE[f"hostile file, {command.name}"]
        line.runs += 1
        line.hangs += ended.hung
        for wrong in judge(case, command, ended):
            yield command.name, wrong
        strangers = changed(before, around.snapshot(), *command.writes)
        around.clear()
        if strangers:
            line.wrong_rows += 1
            yield command.name, f"changed {', '.join(strangers[:5])}"
            file, other = around.begin(goods, case)
            before = around.snapshot()


@pytest.mark.timeout(7200)
def test_commands_over_hostile_files(goods: Goods, around: Surroundings, server: Server) -> None:
    found = []
    for case in chosen():
        for command, wrong in harm(case, goods, around, server):
            found.append(
                {"case": case.name, "base": case.base, "verdict": case.verdict, "command": command, "wrong": wrong}
            )
    if path := os.environ.get("ROIALIGN_HOSTILE_FINDINGS"):
        Path(path).write_text(json.dumps(found, indent=1))
    told = [f"{one['case']} ({one['base']}), {one['command']}: {one['wrong']}" for one in found]
    assert not found, f"{len(found)} findings:\n" + "\n".join(told[:200])


def test_what_is_done_to_sound_files_is_noticed(goods: Goods, around: Surroundings, server: Server) -> None:
    """This tests the harness itself: on good files every command ends well, and a change outside is seen."""
    for case in (case for case in CASES if case.name.startswith("good: ")):
        assert case.verdict == SOUND
        assert list(harm(case, goods, around, server)) == []
    around.begin(goods, next(iter(CASES)))
    before = around.snapshot()
    (around.root / "outside" / "good.h5").write_bytes(b"x")
    (around.root / "new").touch()
    assert changed(before, around.snapshot(), "out/made") == ["new", "outside/good.h5"]
