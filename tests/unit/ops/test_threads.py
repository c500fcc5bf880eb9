"""Test that no call runs on when the threads of the CPU kernels are done with: errors, signals, no threads, shutdown."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from helpers.tensors import make_rois

from roialign_cli import nn, point_sample
from roialign_cli.errors import OperatorInputError
from roialign_cli.ops import roi_align, roi_align_rotated
from roialign_cli.ops.cpu import threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Interrupted(BaseException):
    """Raised by the handler of a signal."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("own", [0.0, 0.6])  # the main thread waits for the other call, or runs one itself
def test_an_interrupted_caller_waits_for_all_calls(own: float, alarm: None) -> None:
    ended, main, taken = [], threading.get_ident(), threading.Event()

    def call() -> None:
        if threading.get_ident() == main:
            assert taken.wait(60)
            time.sleep(own)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.2, 0.1)  # again and again
            taken.set()
            time.sleep(0.6)
        ended.append(threading.get_ident())

    with pytest.raises(Interrupted):
        threads.run_all([call, call])
    before = list(ended)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert [one for one in before if one != main] == list(set(before) - {main}) != []
    assert (main in before) == (own == 0)
    time.sleep(0.7)
    assert ended == before


def test_interrupted_operators_leave_no_writer(alarm: None) -> None:
    """The memory of an output that was dropped goes to the next call, which nobody else may write to."""
    maps = torch.full((1, 64, 40, 40), 7.0).contiguous(memory_format=torch.channels_last).requires_grad_()
    turned = torch.tensor([[0, 20.0, 20, 30, 30, 20]]).repeat(400, 1)
    boxes = torch.tensor([[0, 2.0, 2, 38, 38]]).repeat(400, 1)
    ones = torch.ones(1, 64, 40, 40).contiguous(memory_format=torch.channels_last)
    roi_align_rotated(maps.detach(), turned, 7)
    begun = time.monotonic()
    pooled = roi_align(maps, boxes, 7)
    torch.autograd.grad(pooled.sum(), maps, retain_graph=True)
    usual = time.monotonic() - begun
    for i in range(20):
        signal.setitimer(signal.ITIMER_REAL, max(usual * (i + 1) / 20, 1e-4))
        try:
            if i % 2:
                torch.autograd.grad(pooled.sum(), maps, retain_graph=True)
            else:
                roi_align_rotated(maps.detach(), turned, 7)
        except Interrupted:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert (roi_align(ones, boxes, 7) == 1).all()


def test_calls_run_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pools", {})
    monkeypatch.setattr(threading.Thread, "start", refuse)
    found: list[int] = []
    threads.run_all([partial(found.append, i) for i in range(9)])
    assert found == list(range(9))


@pytest.mark.parametrize("error", [IndexError, KeyboardInterrupt, ValueError])
def test_the_first_error_is_raised(error: type[BaseException]) -> None:
    def fail() -> None:
        raise error("of a call")

    with pytest.raises(error, match="of a call"):
        threads.run_all([fail] * 5)
    with pytest.raises(error, match="of a call"):
        threads.run_all([lambda: time.sleep(0.01), fail, *[lambda: time.sleep(0.01)] * 5])


LATE = """
import threading, time, torch
from roialign_cli.ops import roi_align
torch.set_num_threads(2)
maps, boxes = torch.ones(1, 64, 32, 32), torch.tensor([[0, 1.0, 2, 20, 20]]).repeat(60, 1)
roi_align(maps, boxes, 7)
def late():
    time.sleep(0.5)
    print(float(roi_align(maps, boxes, 7).mean()))
threading.Thread(target=late).start()
"""


def test_a_thread_that_outlives_the_main_one_computes() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout, done.stderr) == ("1.0\n", "")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
def test_modules_are_traced() -> None:
    maps, other = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    rois = make_rois(5, 1, 60, 60)
    module = nn.RoIAlign(5, 0.5, 2)
    traced = torch.jit.trace(module, (maps, rois))
    assert torch.equal(traced(other, rois), module(other, rois))


def test_points_of_levels_that_do_not_exist() -> None:
    maps, points = [torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)], torch.tensor([[0, 1.0, 1]])
    for levels in (torch.tensor([5]), torch.tensor([0.0]), torch.tensor([0, 1])):
        with pytest.raises(OperatorInputError, match="levels"):
            point_sample(maps, points, levels=levels, aligned=False, spatial_scale=[1, 0.5])
