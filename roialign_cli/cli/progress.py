"""Progress on stderr: a live bar on a terminal, one plain line now and then elsewhere; and what Ctrl-C does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from roialign_cli.cli.console import human_bytes, stderr
from roialign_cli.system.signals import not_ignored
from roialign_cli.types import Progress

EVERY_SECONDS = 10.0
STDERR = 2


@contextmanager
def show_progress(doing: str = "extracting") -> Iterator[Callable[[Progress], None]]:
    """What to call with each step of the progress."""
    begun = time.monotonic()
    earlier: list[Progress] = []  # what a former run had done, but for the first image of this one

    def rates(progress: Progress) -> str:
        if not earlier:
            earlier.append(progress)
        seconds = max(time.monotonic() - begun, 1e-3)
        images, boxes = (progress.images - earlier[0].images) / seconds, (progress.boxes - earlier[0].boxes) / seconds
        size = f", {human_bytes(progress.bytes)}" if progress.bytes else ""
        return f"{images:.1f} images/s, {boxes:.0f} boxes/s{size}"

    if stderr.is_terminal:
        columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rates]}"))
        with Bar(*columns, TimeRemainingColumn(), console=stderr, transient=True) as bar:
            task = bar.add_task("", total=None, rates="")
            yield lambda p: bar.update(task, total=p.total_images, completed=p.images, rates=rates(p))
        return

    told = [time.monotonic()]

    def tell(progress: Progress) -> None:
        text = rates(progress)
        if time.monotonic() - told[0] > EVERY_SECONDS:
            told[0] = time.monotonic()
            stderr.print(f"{progress.images}/{progress.total_images} images: {text}", highlight=False)

    yield tell


@contextmanager
def stop_on_interrupt(consequence: str = "the same command goes on later") -> Iterator[Callable[[], bool]]:
    """Yield a call that tells whether a Ctrl-C, SIGTERM or SIGHUP has asked to stop after the current batch.

    A second one stops at once.
    """
    asked: list[int] = []
    notice = f"stopping after the current batch; {consequence} (again: stop at once)\n".encode()

    def ask(number: int, frame: FrameType | None) -> None:
        """Runs between any two steps of anything, an import or a lock that is held: no printing by rich, no locks."""
        asked.append(number)
        if len(asked) > 1:
            earlier = previous[signal.Signals(number)]
            if callable(earlier):
                earlier(number, frame)
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(STDERR, notice)

    previous = {number: signal.getsignal(number) for number in not_ignored()}
    for number in previous:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
