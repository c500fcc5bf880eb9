"""Fill one file from several processes: this one hands out batches, each of the others computes them on its own device.

The processes write disjoint rows of the same file. When a process dies, the images that it has not marked as done or failed
are handed out to the others; if no process is left, they stay pending for the next run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from roialign_cli.backbones import load_backbone
from roialign_cli.errors import RoialignError
from roialign_cli.extraction.batches import Batch
from roialign_cli.extraction.job import Job, pending_batches
from roialign_cli.extraction.progress import ProgressTracker
from roialign_cli.extraction.worker import BatchWorker
from roialign_cli.inputs.images import limit_pixels
from roialign_cli.regions.values import ValueReport
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import PENDING
from roialign_cli.system import allocator
from roialign_cli.system.device_queue import open_queue
from roialign_cli.system.signals import STOPPING

POLL_SECONDS = 0.2  # how soon a request to stop is noticed

Order = tuple[Batch, tuple[int, ...]]  # a batch, and which of its images are finished already
# Messages to a process: an Order; NOTHING_NOW, write what is left and report it; RESUME, there is more work; STOP.
NOTHING_NOW, RESUME, STOP = "nothing now", "resume", "stop"
# Messages from a process, each with a value: an image is finished; it wants an order; all it had is on the disk; it failed.
FINISHED, WANT, IDLE, FAILED = "finished", "want", "idle", "failed"


@dataclass
class _Worker:
    """Hold a process as its parent sees it."""

    device: torch.device
    process: BaseProcess
    connection: Connection
    given: list[Batch] = field(default_factory=list)  # the file says what became of them
    idle: bool = False
    report: ValueReport = field(default_factory=ValueReport)

    def send(self, message: object) -> None:
        """Send a message; if the process has died, `_listen` notices it."""
        with suppress(OSError):
            self.connection.send(message)

    def give(self, order: Order | None) -> None:
        """Send an order, or the message that there is none now."""
        if order is not None:
            self.given.append(order[0])
        self.send(order or NOTHING_NOW)

    def wake(self) -> None:
        """Let an idle process ask for orders again."""
        if self.idle:
            self.idle = False
            self.send(RESUME)


def fill_in_processes(job: Job, tracker: ProgressTracker, should_stop: Callable[[], bool]) -> ValueReport:
    """Compute what is left of a job with one process for each of its devices; return what is odd about the values.

    Raises the first error of a process once all have ended. A process that dies gives a warning.
    """
    work = _WorkQueue(job, tracker.finished.copy())
    workers = [_start(job, device) for device in job.devices]
    running, stopping = list(workers), False
    error: RoialignError | None = None
    try:
        while running:
            for ready in wait([worker.connection for worker in running], POLL_SECONDS):
                worker = next(worker for worker in running if worker.connection is ready)
                try:
                    error = _listen(worker, tracker, work, stopping) or error
                except (EOFError, OSError):  # the process has ended, as planned or not
                    running.remove(worker)
                    _requeue_lost(worker, work, job)
            if work.requeued and not stopping:
                for worker in running:
                    worker.wake()
            if not stopping and (error or should_stop() or all(worker.idle for worker in running)):
                stopping = True
                for worker in running:
                    worker.send(STOP)
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()
    if error is not None:
        raise error
    return sum((worker.report for worker in workers), ValueReport())


def _listen(worker: _Worker, tracker: ProgressTracker, work: _WorkQueue, stopping: bool) -> RoialignError | None:
    """Receive and handle one message; return the error that it reports, if any."""
    kind, value = worker.connection.recv()
    if kind == FINISHED:
        tracker.mark_finished(value)
    elif kind == WANT and not stopping:
        worker.give(work.take())
    elif kind == IDLE:
        worker.idle, worker.report = True, value
    elif kind == FAILED:
        failure: RoialignError = value
        return failure
    return None


class _WorkQueue:
    """Hold what is left to hand out: batches of processes that died first, then those of the plan."""

    def __init__(self, job: Job, finished: npt.NDArray[np.bool_]) -> None:
        self.requeued: deque[Order] = deque()
        batches = pending_batches(job, finished)
        self._planned = ((batch, tuple(image for image in batch.images if finished[image])) for batch in batches)

    def take(self) -> Order | None:
        """Return the next order, or None if there is none."""
        return self.requeued.popleft() if self.requeued else next(self._planned, None)


def _start(job: Job, device: torch.device) -> _Worker:
    """Start a process with its share of the machine's cores."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    ours, theirs = context.Pipe()
    count = len(job.devices)
    settings = replace(job.settings, workers=max(1, (job.settings.workers or os.cpu_count() or 1) // count))
    threads = max(1, torch.get_num_threads() // count)
    names = [part.name for part in fields(job) if part.name != "backbone"]  # the process loads its own backbone
    parts = {name: getattr(job, name) for name in names} | {"settings": settings, "devices": (device,)}
    process = context.Process(target=_serve, args=(theirs, parts, threads), name=f"roialign-{device}", daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends when the process ends
    return _Worker(device, process, ours)


def _requeue_lost(worker: _Worker, work: _WorkQueue, job: Job) -> None:
    """Hand out the pending images of a process that has died again; a process that ended as planned has none."""
    worker.process.join()
    code = worker.process.exitcode
    if code == 0:
        return
    with FeatureFile(job.output) as file:
        pending = file.status == PENDING
    orders = [
        (batch, tuple(image for image in batch.images if not pending[image]))
        for batch in worker.given
        if pending[list(batch.images)].any()
    ]
    work.requeued.extend(orders)
    cause = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
    images = sum(len(batch.images) - len(finished) for batch, finished in orders)
    which = f"process {worker.process.pid} on {worker.device}"  # two deaths are two different warnings
    message = f"{which} died ({cause}); its {images} unfinished images are left to others"
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _serve(connection: Connection, parts: dict[str, Any], threads: int) -> None:
    """Run in a process: ask for batches and compute them, until it must stop or the parent has gone."""
    for number in STOPPING:  # a terminal or a scheduler signals all processes, and the parent handles it
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        with (
            suppress(EOFError, OSError),
            allocator.retain_freed_memory(),
            limit_pixels(parts["settings"].max_pixels),
        ):
            _fill_on_request(connection, Job(backbone=load_backbone(parts["settings"]), **parts))
    except RoialignError as error:
        connection.send((FAILED, error))
    except Exception as error:  # sent to the parent, which raises it as an error of ours
        text = f"{type(error).__name__} in the process on {parts['devices'][0]}: {error}"
        connection.send((FAILED, RoialignError("internal", text, "run again with --processes 1 --debug and report it")))


def _fill_on_request(connection: Connection, job: Job) -> None:
    """Compute the batches that the parent sends, and report each finished image."""
    stopped = False

    def orders() -> Iterator[Batch]:
        nonlocal stopped
        while True:
            connection.send((WANT, None))
            order = connection.recv()
            if order in (NOTHING_NOW, STOP):
                stopped = order == STOP
                return
            batch, finished = order
            worker.done[list(finished)] = True
            yield batch

    def stop_requested() -> bool:
        nonlocal stopped
        stopped = stopped or (connection.poll() and connection.recv() == STOP)
        return stopped

    nothing_done = np.zeros(job.plan.images, np.bool_)
    worker = BatchWorker(
        job, open_queue(job.devices[0]), nothing_done, lambda image: connection.send((FINISHED, image))
    )
    while not stopped:
        worker.run(orders(), stop_requested)
        connection.send((IDLE, worker.report))
        stopped = stopped or connection.recv() == STOP
