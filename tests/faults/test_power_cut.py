"""The power is cut: what was synced is there, of what was only written any part may be, down to single sectors.

Writes and syncs of a real run are recorded. Files that a cut could leave are put together from them; in each, every image
that is marked done must be right, and the same command must go on to the very file of an undisturbed run. A sync that has
failed may have lost all that was written since the one before, and a later one does not bring it back.
"""

from __future__ import annotations

import errno
import random
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.data import OPERATIONS, TABLE, Data, Line, Operation
from faults.runs import FAIL, FULL, Arm, Runs

CUTS = 400 if FULL else 60  # of each operation
SECTOR = 512


@dataclass(frozen=True)
class Event:
    """w: a write; s: a sync of the file; r: it gets its name; d: a sync of the folder; S, D: such a sync that failed."""

    kind: str
    position: int
    data: bytes


def read_events(recording: Path) -> list[Event]:
    events, text, at = [], recording.read_bytes(), 0
    while at < len(text):
        kind, position, length = struct.unpack_from("<qqq", text, at)
        at += 24
        events.append(Event(chr(kind), position, text[at : at + length]))
        at += length
    return events


def after_a_cut(events: list[Event], rng: random.Random, before: bytes | None) -> bytes | None:
    """Return the file as a power cut after some event may leave it; `before` is the earlier file of that name, if any."""
    named = next((i for i, event in enumerate(events) if event.kind == "r"), 0)
    cut = rng.randrange(len(events) + 1)
    happened = events[:cut]
    renamed = any(event.kind == "r" for event in events)
    if renamed and cut <= named:
        return before
    if renamed and not any(event.kind == "d" for event in happened[named:]) and rng.random() < 0.5:
        return before  # the new name itself was not synced
    image = bytearray(b"" if renamed else before or b"")
    size = max(len(image), *(event.position + len(event.data) for event in events if event.kind == "w"))
    image += bytes(size - len(image))
    kept = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    loose: list[tuple[int, bytes]] = []
    waiting: list[Event] = []  # written and not yet synced
    for event in happened:
        if event.kind == "w":
            waiting.append(event)
        elif event.kind in "sS":
            for one in waiting:
                if event.kind == "s":
                    image[one.position : one.position + len(one.data)] = one.data
                else:  # never to be written again
                    loose += sectors(one)
            waiting = []
    for one in waiting:
        loose += sectors(one)
    rng.shuffle(loose)  # no order holds between syncs
    for begin, data in loose[: int(len(loose) * kept + rng.random())]:
        image[begin : begin + len(data)] = data
    return bytes(image)


def sectors(event: Event) -> list[tuple[int, bytes]]:
    """Cut a write where sectors end."""
    found, begin, stop = [], event.position, event.position + len(event.data)
    while begin < stop:
        end = min(stop, (begin // SECTOR + 1) * SECTOR)
        found.append((begin, event.data[begin - event.position : end - event.position]))
        begin = end
    return found


def record(runs: Runs, operation: Operation, output: Path, folder: Path, failing: int = 0) -> list[Event]:
    """Return what an operation writes and syncs; its n-th sync fails, if it has so many: checkpoints follow the clock."""
    recording = folder / "recording"
    operation.prepare(output)
    arm = Arm(output.name, failing, FAIL, errno.EIO, only_syncs=bool(failing), recording=str(recording))
    ended = runs(operation.command(output), arm if failing else Arm(output.name, recording=str(recording)))
    events = read_events(recording)
    failed = any(event.kind in "SD" for event in events)
    assert ended.code == (6 if failed else operation.code), ended
    return events if failed or not failing else []


def cut_the_power(
    runs: Runs, operation: Operation, output: Path, events: list[Event], cuts: int, line: Line, every: int = 20
) -> None:
    """Judge the files that cuts leave, and sometimes what a run makes of one of them."""
    before = operation.before.read_bytes() if operation.before else None
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for i in range(cuts):
        operation.clear(output)
        if (found := after_a_cut(events, rng, before)) is not None:
            output.write_bytes(found)
        line.runs += 1
        operation.judge(output, line)
        assert line.harmless, (seed, i, line)
        if i % every == 0:
            operation.judge_end(output, runs(operation.command(output)), line)
            assert line.harmless, (seed, i, line)
    operation.clear(output)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_power_is_cut(name: str, runs: Runs, operations: dict[str, Operation], tmp_path: Path) -> None:
    operation = operations[name]
    output = operation.output(tmp_path)
    events = record(runs, operation, output, tmp_path)
    kinds = "".join(event.kind for event in events)
    assert kinds.count("s") > (0 if operation.beside else 1), kinds
    assert "r" not in kinds or "d" in kinds[kinds.index("r") :]
    cut_the_power(runs, operation, output, events, CUTS, TABLE[f"power cut, {name}"])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_sync_has_failed_and_the_power_is_cut(
    name: str, runs: Runs, operations: dict[str, Operation], tmp_path: Path
) -> None:
    operation = operations[name]
    output = operation.output(tmp_path)
    undisturbed = "".join(event.kind for event in record(runs, operation, output, tmp_path))
    syncs = undisturbed.count("s") + undisturbed.count("d")
    chosen = range(1, syncs + 1) if FULL else sorted(random.sample(range(1, syncs + 1), min(3, syncs)))
    for failing in chosen:
        events = record(runs, operation, output, tmp_path, failing)
        named = any(event.kind == "r" for event in events) or "r" not in undisturbed
        if events and named:  # otherwise what was written never got the name
            line = TABLE[f"power cut after a failed sync, {name}"]
            cut_the_power(runs, operation, output, events, max(5, CUTS // 20), line)


@pytest.mark.timeout(3600)
def test_the_power_is_cut_under_a_pyramid(runs: Runs, pyramid: Data, tmp_path: Path) -> None:
    """Levels are also stored while the run goes on."""
    operation, output = pyramid.fresh(), tmp_path / "f.h5"
    events = record(runs, operation, output, tmp_path)
    cut_the_power(runs, operation, output, events, CUTS, TABLE["power cut, a run with levels"], every=60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["a run", "a resumed run", "merge", "merge over older shards"])
def test_a_writer_without_syncs_would_be_found_out(
    name: str, runs: Runs, operations: dict[str, Operation], tmp_path: Path
) -> None:
    """This tests the model itself: if it ignores the syncs in between, done images are wrong."""
    operation, line = operations[name], Line()
    output = tmp_path / "f.h5"
    events = record(runs, operation, output, tmp_path)
    named = next((i for i, event in enumerate(events) if event.kind == "d"), 0)
    careless = [event for i, event in enumerate(events) if event.kind != "s" or i < named]
    before = operation.before.read_bytes() if operation.before else None
    for seed in range(80):
        operation.clear(output)
        if found := after_a_cut(careless, random.Random(seed), before):
            output.write_bytes(found)
            operation.judge(output, line)
    assert line.wrong_rows
