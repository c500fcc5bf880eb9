"""Test what progress prints, on narrow terminals and in logs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

STEPS = """
import time
from roialign_cli.cli import progress
from roialign_cli.types import Progress
progress.LINE_SECONDS = 0
with progress.show_progress() as step:
    for images in (0, 250, 500):
        step(Progress(images, 2000, 10 * images, 20_000, 1 << 30))
        time.sleep(0.3)
"""


def printed(columns: int, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": str(columns), **variables},
    )  # fmt: skip
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stderr)


@pytest.mark.parametrize(("columns", "rates"), [(60, False), pytest.param(100, True, marks=pytest.mark.slow)])
def test_a_narrow_terminal_keeps_count_and_time(columns: int, rates: bool) -> None:
    shown = printed(columns, FORCE_COLOR="1", TERM="xterm")
    last = [line for line in re.split(r"[\r\n]+", shown) if "/2000" in line][-1]
    assert re.search(r"\b500/2000 \d:\d\d:\d\d", last), shown
    assert len(last.rstrip()) <= columns
    assert ("boxes/s" in last) == rates


def test_lines_of_a_log_have_clock_percent_and_time_left() -> None:
    lines = printed(80).splitlines()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d 500/2000 images \(25%\), 0:00:0\d left: [\d.]+ images/s, \d+ boxes/s, 1.1 GB", lines[-1]
    )
