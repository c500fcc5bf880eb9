"""Send signals at random instants: the same command continues, and the file ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from faults.data import TABLE, Data, make_data
from faults.runs import FULL, Ended, Runs

SIGNALS = {
    "SIGKILL": 100,
    "SIGTERM": 40,
    "SIGINT": 40,
    "SIGHUP": 40,
    "SIGSTOP": 40,
}  # how many of each in the full run
ENDS = {"SIGKILL": {-9}, "SIGTERM": {130}, "SIGINT": {130}, "SIGHUP": {130}, "SIGSTOP": set[int]()}  # or as ever


@pytest.fixture(scope="module")
def data(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Make enough images that a run takes a while."""
    return make_data(tmp_path_factory.mktemp("data") / "d", 120, runs)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_at_any_instant(name: str, runs: Runs, data: Data, tmp_path: Path) -> None:
    output, line = tmp_path / "f.h5", TABLE[name + (" and SIGCONT" if name == "SIGSTOP" else "")]
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    started = time.monotonic()
    assert runs(data.arguments(output)).code == data.code
    duration = time.monotonic() - started
    data.fresh().clear(output)
    partial = signals = 0
    while signals < (SIGNALS[name] if FULL else SIGNALS[name] // 8):
        runs.start(data.arguments(output))
        time.sleep(rng.uniform(0, duration))
        runs.kill(getattr(signal, name))
        if name == "SIGSTOP":
            time.sleep(rng.uniform(0, 0.2))
            runs.kill(signal.SIGCONT)
        ended: Ended = runs.wait()
        signals += 1
        line.runs += 1
        line.hangs += ended.hung
        assert ended.code in ENDS[name] | {data.code}, ended
        assert "Traceback" not in ended.log, ended.log
        partial += ended.code != data.code and output.exists()
        data.fresh().judge(output, line)
        if ended.code == data.code:
            data.fresh().judge_end(output, ended, line)
            data.fresh().clear(output)
        assert line.harmless, (seed, ended)
    print(f"{name}: seed {seed}, {signals} signals, {partial} found a file filled in part")
    assert name == "SIGSTOP" or partial > 0 or not FULL  # of a few, all may have come too early
    data.fresh().judge_end(output, runs(data.arguments(output)), line)
    assert line.harmless
    assert not Path(f"{output}.partial").exists()
