"""Several processes fill one file: this one hands out batches, each of the others computes them on a device of its own.

The processes write disjoint rows of the same file, each as if it were alone. What a process that dies has not vouched for
in the file is handed out again to the others; if none is left, it stays pending for the next run.
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
from roialign_cli.extraction.job import Job
from roialign_cli.extraction.progress import ProgressTracker
from roialign_cli.extraction.worker import BatchWorker, batches_left
from roialign_cli.inputs.images import limit_pixels
from roialign_cli.regions.values import ValueReport
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import PENDING
from roialign_cli.system import allocator
from roialign_cli.system.signals import STOPPING

POLL_SECONDS = 0.2  # how soon a request to stop is seen

Order = tuple[Batch, tuple[int, ...]]  # a batch, and which of its images are settled already
# To a process: an Order; NOTHING_NOW: write what is left and say so; GO_ON: there is more after all; STOP.
NOTHING_NOW, GO_ON, STOP = "nothing now", "go on", "stop"
# From a process, each with a value: an image is settled; it wants an order; all it had is on the disk; it failed.
SETTLED, WANT, IDLE, FAILED = "settled", "want", "idle", "failed"


@dataclass
class _Worker:
    """A process as its parent sees it."""

    device: torch.device
    process: BaseProcess
    connection: Connection
    given: list[Batch] = field(default_factory=list)  # the file says what came of them
    idle: bool = False
    flaws: ValueReport = field(default_factory=ValueReport)

    def tell(self, message: object) -> None:
        """Send a message; that the process has died is seen when it is listened to."""
        with suppress(OSError):
            self.connection.send(message)

    def give(self, order: Order | None) -> None:
        if order is not None:
            self.given.append(order[0])
        self.tell(order or NOTHING_NOW)

    def wake(self) -> None:
        if self.idle:
            self.idle = False
            self.tell(GO_ON)


def fill_in_processes(job: Job, tally: ProgressTracker, should_stop: Callable[[], bool]) -> ValueReport:
    """Fill the rest of the file, a process for each device of the job.

    Raises the first error of a process, once all have ended. A process that dies is a warning.
    """
    left = _WorkQueue(job, tally.settled.copy())
    workers = [_start(job, device) for device in job.devices]
    running, stopping = list(workers), False
    error: RoialignError | None = None
    try:
        while running:
            for ready in wait([worker.connection for worker in running], POLL_SECONDS):
                worker = next(worker for worker in running if worker.connection is ready)
                try:
                    error = _listen(worker, tally, left, stopping) or error
                except (EOFError, OSError):  # it has ended, as it should or not
                    running.remove(worker)
                    _requeue_lost(worker, left, job)
            if left.again and not stopping:
                for worker in running:
                    worker.wake()
            if not stopping and (error or should_stop() or all(worker.idle for worker in running)):
                stopping = True
                for worker in running:
                    worker.tell(STOP)
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()
    if error is not None:
        raise error
    return sum((worker.flaws for worker in workers), ValueReport())


def _listen(worker: _Worker, tally: ProgressTracker, left: _WorkQueue, stopping: bool) -> RoialignError | None:
    """Take one message; returns the error it tells of."""
    kind, value = worker.connection.recv()
    if kind == SETTLED:
        tally.settle(value)
    elif kind == WANT and not stopping:
        worker.give(left.take())
    elif kind == IDLE:
        worker.idle, worker.flaws = True, value
    elif kind == FAILED:
        failure: RoialignError = value
        return failure
    return None


class _WorkQueue:
    """What is left to hand out: the batches of the plan, and those of processes that died."""

    def __init__(self, job: Job, settled: npt.NDArray[np.bool_]) -> None:
        self.again: deque[Order] = deque()
        self._fresh = (
            (batch, tuple(image for image in batch.images if settled[image])) for batch in batches_left(job, settled)
        )

    def take(self) -> Order | None:
        return self.again.popleft() if self.again else next(self._fresh, None)


def _start(job: Job, device: torch.device) -> _Worker:
    """Start a process with its part of the machine's cores."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    ours, theirs = context.Pipe()
    count = len(job.devices)
    settings = replace(job.settings, workers=max(1, (job.settings.workers or os.cpu_count() or 1) // count))
    threads = max(1, torch.get_num_threads() // count)
    names = [part.name for part in fields(job) if part.name != "backbone"]  # which is loaded anew
    parts = {name: getattr(job, name) for name in names} | {"settings": settings, "devices": (device,)}
    process = context.Process(target=_serve, args=(theirs, parts, threads), name=f"roialign-{device}", daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    return _Worker(device, process, ours)


def _requeue_lost(worker: _Worker, left: _WorkQueue, job: Job) -> None:
    """A process has ended. If it should not have, what it was given and has not vouched for is handed out again."""
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
    left.again.extend(orders)
    cause = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
    images = sum(len(batch.images) - len(done) for batch, done in orders)
    message = (
        f"the process on {worker.device} died ({cause}); {images} images that it had not finished are left to others"
    )
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _serve(connection: Connection, parts: dict[str, Any], threads: int) -> None:
    """The life of a process: ask for batches and fill them, until told to stop or the parent is gone."""
    for number in STOPPING:  # of a terminal or a scheduler, to all: the parent sees to it
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        with suppress(EOFError, OSError), allocator.retain_freed_memory(), limit_pixels(parts["settings"].max_pixels):
            _fill_on_request(connection, Job(backbone=load_backbone(parts["settings"]), **parts))
    except RoialignError as error:
        connection.send((FAILED, error))
    except Exception as error:  # told by the parent as what it is, an error of ours
        text = f"{type(error).__name__} in the process on {parts['devices'][0]}: {error}"
        connection.send((FAILED, RoialignError("internal", text, "run again with --processes 1 --debug and report it")))


def _fill_on_request(connection: Connection, job: Job) -> None:
    stopped = False

    def orders() -> Iterator[Batch]:
        nonlocal stopped
        while True:
            connection.send((WANT, None))
            order = connection.recv()
            if order in (NOTHING_NOW, STOP):
                stopped = order == STOP
                return
            batch, settled = order
            filling.done[list(settled)] = True
            yield batch

    def stop_requested() -> bool:
        nonlocal stopped
        stopped = stopped or (connection.poll() and connection.recv() == STOP)
        return stopped

    nothing_done = np.zeros(job.plan.images, np.bool_)
    filling = BatchWorker(job, job.devices[0], nothing_done, lambda image: connection.send((SETTLED, image)))
    while not stopped:
        filling.fill(orders(), stop_requested)
        connection.send((IDLE, filling.flaws))
        stopped = stopped or connection.recv() == STOP
