"""The power is cut: what was synced is there, of what was only written any part may be, down to single sectors.

Writes and syncs of a real run are recorded. Files that a cut could leave are put together from them; in each, every image
that is marked done must be right, and the same command must go on to the very file of an undisturbed run.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.runs import FULL, TABLE, Arm, Data, Runs

CUTS = 2000 if FULL else 150
SECTOR = 512


@dataclass(frozen=True)
class Event:
    """w: a write; s: a sync of the file; r: it gets its name; d: a sync of the folder."""

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


def after_a_cut(events: list[Event], rng: random.Random) -> bytes | None:
    """The file as a cut after some event may leave it; None: none has the name yet."""
    named = next(i for i, event in enumerate(events) if event.kind == "r")
    cut = rng.randrange(named, len(events) + 1)
    happened = events[:cut]
    if not any(event.kind == "d" for event in happened[named:]) and rng.random() < 0.5:
        return None  # the name itself was not synced
    synced = max((i for i, event in enumerate(happened) if event.kind == "s"), default=0)
    size = max(event.position + len(event.data) for event in events if event.kind == "w")
    image = bytearray(size)
    kept = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    loose = []
    for i, event in enumerate(happened):
        if event.kind == "w" and i < synced:
            image[event.position : event.position + len(event.data)] = event.data
        elif event.kind == "w":
            begin, stop = event.position, event.position + len(event.data)
            while begin < stop:
                end = min(stop, (begin // SECTOR + 1) * SECTOR)
                loose.append((begin, event.data[begin - event.position : end - event.position]))
                begin = end
    rng.shuffle(loose)  # no order holds between syncs
    for begin, data in loose[: int(len(loose) * kept + rng.random())]:
        image[begin : begin + len(data)] = data
    return bytes(image)


@pytest.mark.timeout(3600)
def test_the_power_is_cut(runs: Runs, data: Data, tmp_path: Path) -> None:
    output, recording, line = tmp_path / "f.h5", tmp_path / "recording", TABLE["power cut"]
    assert runs(data.arguments(output), Arm(output.name, recording=str(recording))).code == 0
    events = read_events(recording)
    kinds = "".join(event.kind for event in events)
    assert kinds.count("s") > 4, kinds  # it was synced in between, too
    assert "d" in kinds[kinds.index("r") :]
    seed = random.randrange(2**32)
    print(f"seed {seed}; {len(events)} events, {kinds.count('s')} syncs")
    rng = random.Random(seed)
    absent = 0
    for i in range(CUTS):
        data.clear(output)
        found = after_a_cut(events, rng)
        line.runs += 1
        absent += found is None
        if found is not None:
            output.write_bytes(found)
        data.judge(output, line)
        assert line.harmless, i
        if i % 20 == 0:
            data.judge_end(output, runs(data.arguments(output)), line)
            assert line.harmless, i
    assert absent < CUTS / 2


@pytest.mark.timeout(600)
def test_a_writer_without_syncs_would_be_found_out(runs: Runs, data: Data, tmp_path: Path) -> None:
    """The model itself is tested: with the syncs in between left out of account, done images are wrong."""
    output, recording, line = tmp_path / "f.h5", tmp_path / "recording", TABLE.default_factory()
    assert runs(data.arguments(output), Arm(output.name, recording=str(recording))).code == 0
    events = read_events(recording)
    named = next(i for i, event in enumerate(events) if event.kind == "d")
    careless = [event for i, event in enumerate(events) if event.kind != "s" or i < named]
    for seed in range(50):
        data.clear(output)
        if found := after_a_cut(careless, random.Random(seed)):
            output.write_bytes(found)
            data.judge(output, line)
    assert line.wrong_rows
