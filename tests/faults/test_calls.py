"""At every system call on the output: the process dies before or after it, the call fails, or does half of its work."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from faults.runs import FAIL, FULL, KILL_AFTER, KILL_BEFORE, SHORT, TABLE, Arm, Data, Runs

FAULTS = {
    "killed before a call": (KILL_BEFORE, 0),
    "killed after a call": (KILL_AFTER, 0),
    "half of a write": (SHORT, 0),
    "EIO": (FAIL, errno.EIO),
    "ENOSPC": (FAIL, errno.ENOSPC),
    "EDQUOT": (FAIL, errno.EDQUOT),
}


def count(runs: Runs, data: Data, output: Path, *, only_syncs: bool = False) -> int:
    """Calls of an undisturbed run."""
    assert runs(data.arguments(output), Arm(output.name, only_syncs=only_syncs)).code == 0
    data.clear(output)
    return runs.calls


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_call_is_harmed(fault: str, runs: Runs, data: Data, tmp_path: Path) -> None:
    output, line = tmp_path / "f.h5", TABLE[fault]
    calls = count(runs, data, output)
    seed = random.randrange(2**32)
    chosen = range(1, calls + 1) if FULL else sorted(random.Random(seed).sample(range(1, calls + 1), 6))
    print(f"{fault}: {len(chosen)} of {calls} calls, seed {seed}")
    action, code = FAULTS[fault]
    harmed = 0
    for call in chosen:
        ended = runs(data.arguments(output), Arm(output.name, call, action, code))
        line.runs += 1
        line.hangs += ended.hung
        assert "Traceback" not in ended.log, (call, ended.log)
        if action == FAIL:
            harmed += ended.code == 6
            assert ended.code in (0, 6), (call, ended)  # 0: at a call that may fail, such as reserving space
            assert ended.code == 0 or "error[output" in ended.log, (call, ended.log)
        elif action == SHORT:
            harmed += 1
            assert ended.code == 0, (call, ended)
        else:
            harmed += ended.code == -9
        data.judge(output, line)
        data.judge_end(output, runs(data.arguments(output)), line)
        assert line.harmless, (call, ended, line)
        data.clear(output)
    assert harmed > 0.7 * len(chosen), "the faults did not take place"


@pytest.mark.timeout(1800)
def test_a_sync_that_fails_is_never_taken_for_one_that_did_not(runs: Runs, data: Data, tmp_path: Path) -> None:
    output, line = tmp_path / "f.h5", TABLE["a sync fails once"]
    for call in range(1, count(runs, data, output, only_syncs=True) + 1):
        ended = runs(data.arguments(output), Arm(output.name, call, FAIL, errno.EIO, only_syncs=True))
        line.runs += 1
        line.hangs += ended.hung
        assert ended.code == 6, (call, ended)
        assert "error[output" in ended.log
        data.judge(output, line)
        data.judge_end(output, runs(data.arguments(output)), line)
        assert line.harmless, (call, ended, line)
        data.clear(output)
