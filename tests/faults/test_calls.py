"""Harm every system call on the output: kill the process before or after it, let it fail, or let it do half its work."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from faults.data import OPERATIONS, TABLE, Operation
from faults.runs import FAIL, FULL, KILL_AFTER, KILL_BEFORE, SHORT, Arm, Runs

MOST = 15 if FULL else 3  # calls of an operation, at which a fault takes place
FAULTS = {
    "killed before a call": (KILL_BEFORE, 0),
    "killed after a call": (KILL_AFTER, 0),
    "half of a write": (SHORT, 0),
    "EIO": (FAIL, errno.EIO),
    "ENOSPC": (FAIL, errno.ENOSPC),
    "EDQUOT": (FAIL, errno.EDQUOT),
}


def count(runs: Runs, operation: Operation, output: Path, *, only_syncs: bool = False) -> int:
    """Return the calls of an undisturbed run."""
    operation.prepare(output)
    ended = runs(operation.command(output), Arm(output.name, only_syncs=only_syncs))
    assert ended.code == operation.code, ended
    return runs.calls


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_call_is_disturbed(
    fault: str, name: str, runs: Runs, operations: dict[str, Operation], tmp_path: Path
) -> None:
    operation, line = operations[name], TABLE[f"{fault}, {name}"]
    output = operation.output(tmp_path)
    calls = count(runs, operation, output)
    seed = random.randrange(2**32)
    most = MOST
    chosen = sorted(random.Random(seed).sample(range(1, calls + 1), min(most, calls)))
    print(f"{fault}, {name}: {len(chosen)} of {calls} calls, seed {seed}")
    action, code = FAULTS[fault]
    disturbed = 0
    for call in chosen:
        operation.prepare(output)
        ended = runs(operation.command(output), Arm(output.name, call, action, code))
        line.runs += 1
        line.hangs += ended.hung
        assert "Traceback" not in ended.log, (call, ended.log)
        if action == FAIL:
            disturbed += ended.code == 6
            # Without harm only at a call that may fail, such as reserving space.
            assert ended.code in (operation.code, 6), (call, ended)
            assert ended.code != 6 or "error[output" in ended.log, (call, ended.log)
        elif action == SHORT:
            disturbed += 1
            assert ended.code == operation.code, (call, ended)
        else:
            disturbed += ended.code == -9
        operation.judge(output, line)
        operation.judge_end(output, runs(operation.command(output)), line)
        assert line.harmless, (call, ended, line)
    operation.clear(output)
    assert disturbed > 0.6 * len(chosen), "the faults did not take place"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_sync_that_fails_is_never_taken_for_one_that_did_not(
    name: str, runs: Runs, operations: dict[str, Operation], tmp_path: Path
) -> None:
    operation, line = operations[name], TABLE[f"a sync fails once, {name}"]
    output = operation.output(tmp_path)
    for call in range(1, count(runs, operation, output, only_syncs=True) + 1):
        operation.prepare(output)
        ended = runs(operation.command(output), Arm(output.name, call, FAIL, errno.EIO, only_syncs=True))
        if runs.calls < call:  # checkpoints follow the clock: this run had fewer
            assert ended.code == operation.code, (call, ended)
            continue
        line.runs += 1
        line.hangs += ended.hung
        assert ended.code == 6, (call, ended)
        assert "error[output" in ended.log
        operation.judge(output, line)
        operation.judge_end(output, runs(operation.command(output)), line)
        assert line.harmless, (call, ended, line)
    operation.clear(output)
