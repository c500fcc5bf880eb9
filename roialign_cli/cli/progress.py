"""Show progress on stderr, as a bar on a terminal and as occasional lines elsewhere; and stop on Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

from roialign_cli.cli.console import human_bytes, stderr
from roialign_cli.system.signals import not_ignored
from roialign_cli.types import Progress

LINE_SECONDS = 10.0  # between two lines of progress, where there is no terminal
STDERR = 2  # its file descriptor


@contextmanager
def show_progress(doing: str = "extracting") -> Iterator[Callable[[Progress], None]]:
    """Yield a function to call with each step of the progress."""
    started = time.monotonic()
    first: list[Progress] = []  # the first step of this run, which an earlier run may have advanced

    def rates(progress: Progress) -> str:
        if not first:
            first.append(progress)
        seconds = max(time.monotonic() - started, 1e-3)
        images, boxes = (progress.images - first[0].images) / seconds, (progress.boxes - first[0].boxes) / seconds
        size = f", {human_bytes(progress.bytes)}" if progress.bytes else ""
        return f"{images:.1f} images/s" + (f", {boxes:.0f} boxes/s{size}" if progress.total_boxes else "")

    if stderr.is_terminal:
        # On a narrow terminal rich cuts the columns on the right: the rates go first, the bar is narrow.
        columns = (TextColumn(doing), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        rates_column = TextColumn("{task.fields[rates]}", table_column=Column(no_wrap=True, overflow="crop", ratio=1))
        with Bar(*columns, rates_column, console=stderr, transient=True, expand=True) as bar:
            task = bar.add_task("", total=None, rates="")
            yield lambda p: bar.update(task, total=p.total_images, completed=p.images, rates=rates(p))
        return

    printed = [time.monotonic()]

    def print_line(progress: Progress) -> None:
        text = rates(progress)
        if time.monotonic() - printed[0] > LINE_SECONDS:
            printed[0] = time.monotonic()
            share = progress.images / max(1, progress.total_images)
            here = progress.images - first[0].images
            seconds = (printed[0] - started) * (progress.total_images - progress.images) / max(1, here)
            clock, left = datetime.now().strftime("%H:%M:%S"), timedelta(seconds=round(seconds))
            line = f"{clock} {progress.images}/{progress.total_images} images ({share:.0%}), {left} left: {text}"
            stderr.print(line, highlight=False)

    yield print_line


@contextmanager
def stop_on_interrupt(consequence: str = "the same command resumes") -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C, SIGTERM or SIGHUP has asked to stop after the current batch.

    A second signal stops at once.
    """
    received: list[int] = []
    notice = f"stopping after the current batch; {consequence} (again: stop at once)\n".encode()

    def handle(number: int, frame: FrameType | None) -> None:
        """Note the signal. This runs between any two steps of the program, so it neither prints by rich nor takes locks."""
        received.append(number)
        if len(received) > 1:
            earlier = previous[signal.Signals(number)]
            if callable(earlier):
                earlier(number, frame)
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(STDERR, notice)

    previous = {number: signal.getsignal(number) for number in not_ignored()}
    for number in previous:
        signal.signal(number, handle)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
