"""Give work to a device without waiting for it: uploads, computation and downloads, in order."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Submitted(Generic[T]):
    """Work that has been given to a device.

    `value` returns its result to later work of the same queue; its tensors may not be computed yet. `wait` returns when
    the downloads of the work are done, and raises what went wrong on the device.
    """

    value: Callable[[], T]
    wait: Callable[[], object]


class DeviceQueue(Protocol):
    """A device that does work in the order in which it is given, while the caller goes on."""

    device: torch.device
    depth: int  # batches that may be under way while the host prepares the next one; 0 if the caller computes itself

    def submit(self, work: Callable[[], T]) -> Submitted[T]:
        """Give work to the device; `work` must not wait for results of the device."""
        ...

    def download(self, values: Tensor, target: Tensor) -> None:
        """Copy values to memory that `new_host_memory` returned, as a part of submitted work."""
        ...

    def new_host_memory(self, size: int) -> Tensor:
        """Return page-aligned bytes that the device can copy to; they can be written past the page cache."""
        ...


class HostQueue:
    """The CPU, or a device whose results the caller waits for: work is done when it is given."""

    depth = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def submit(self, work: Callable[[], T]) -> Submitted[T]:
        """Do the work."""
        value = work()
        return Submitted(lambda: value, lambda: None)

    def download(self, values: Tensor, target: Tensor) -> None:
        """Copy values, unless they were computed in the target's memory."""
        if values.data_ptr() != target.data_ptr():
            target.copy_(values)

    def new_host_memory(self, size: int) -> Tensor:
        """Return memory of NumPy, which asks for huge pages."""
        memory = np.empty(size + mmap.PAGESIZE, np.uint8)
        start = -memory.ctypes.data % mmap.PAGESIZE
        return torch.from_numpy(memory[start : start + size])


class CudaQueue:
    """A CUDA device: kernels run on torch's current stream, and copies to the host on a stream of their own."""

    depth = 2

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.set_device(device)  # pinned memory would otherwise open a context on the first device, too
        self._downloads = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def submit(self, work: Callable[[], T]) -> Submitted[T]:
        """Launch the kernels and copies of the work."""
        value = work()
        finished = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits without a core
        finished.record(self._downloads)
        return Submitted(lambda: value, finished.synchronize)

    def download(self, values: Tensor, target: Tensor) -> None:
        """Copy values when the kernels launched so far are done; later kernels do not wait for the copy."""
        self._downloads.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._downloads):
            target.copy_(values, non_blocking=True)
        values.record_stream(self._downloads)  # its memory is not used again before the copy is done

    def new_host_memory(self, size: int) -> Tensor:
        """Return pinned memory."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def open_queue(device: torch.device) -> DeviceQueue:
    """Return the queue of a device."""
    return CudaQueue(device) if device.type == "cuda" else HostQueue(device)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; a copy from the host to CUDA goes through pinned memory and does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
