"""Process batches on one device: decode, compute in parts that fit memory, record what became of each image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from roialign_cli.extraction.batches import Batch, Decoded, Size, load_batches
from roialign_cli.extraction.compute import Pixels, Reports, RowComputer
from roialign_cli.extraction.job import Job
from roialign_cli.extraction.outcomes import OutcomeRecorder
from roialign_cli.inputs.images import ImageError
from roialign_cli.regions.values import ValueReport
from roialign_cli.store.writer import FeatureWriter, open_writer
from roialign_cli.system.device_queue import DeviceQueue
from roialign_cli.types import FileVersion

# What torch's allocator of host memory, oneDNN, CUDA, cuBLAS and cuDNN say when memory runs out; they have no exception
# class of their own. cuDNN finds no engine, and cuBLAS no handle, if nothing is left for their workspaces.
OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator", "could not create a primitive", "could not create a memory", "bad_alloc",
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED", "HOST_ALLOCATION_FAILED",
    "unable to find an engine to execute", "Unable to find a valid cuDNN algorithm",
)  # fmt: skip


class BatchWorker:
    """Process batches on one device. No other worker writes the rows of their images; done images are left alone.

    `done` [M] says which images are done; the caller may set more of them between batches. `report` sums up odd values of
    all images so far. `mark_finished` is called with each image that becomes done or failed.
    """

    def __init__(
        self, job: Job, device: DeviceQueue, done: npt.NDArray[np.bool_], mark_finished: Callable[[int], None]
    ) -> None:
        self.done = done
        self.report = ValueReport()
        self._job = job
        self._device = device.device
        self._computer = _make_computer(job, device)
        self._mark_finished = mark_finished
        self._fitting: dict[Size, int] = {}  # how many images of a size fit memory, for sizes where it ran out

    def run(self, batches: Iterable[Batch], should_stop: Callable[[], bool]) -> None:
        """Process batch after batch; at the end everything is on the disk."""
        with open_writer(self._job.output) as writer:
            recorder = OutcomeRecorder(self._job, writer, self.done, self._mark_finished)
            for batch, decoded in load_batches(self._job.images, self._job.plan, batches, self._job.settings):
                if should_stop():
                    break
                self._process(batch, decoded, writer, recorder)
            self._computer.finish()

    def _process(self, batch: Batch, decoded: list[Decoded], writer: FeatureWriter, recorder: OutcomeRecorder) -> None:
        """Process one batch; images whose stated size is wrong are computed by themselves."""
        groups: dict[Size, tuple[list[int], list[Pixels]]] = {}
        versions: dict[int, FileVersion] = {}
        for image, result in zip(batch.images, decoded, strict=True):
            if isinstance(result, ImageError):
                recorder.failed(image, result)
                continue
            size = (result.pixels.shape[0], result.pixels.shape[1])
            if size != batch.size and self._job.plan.boxes_depend_on_size:
                found = f"expected (height, width) {batch.size}, by which boxes were made, found {size}"
                recorder.failed(image, ImageError("image-size", found))
                continue
            if (wrong := self._job.plan.table.other_run_size(image, size)) is not None:
                found = f"expected masks over its height x width, {size[0]} x {size[1]}, found one over {wrong[0]} x {wrong[1]}"
                recorder.failed(image, ImageError("region-shape", found))
                continue
            self._job.plan.sizes[image] = size
            images, pixels = groups.setdefault(size, ([], []))
            images.append(image)
            pixels.append(result.pixels)
            versions[image] = result.version
        for size, (images, pixels) in groups.items():
            self._compute_in_parts(images, pixels, versions, size, writer, recorder)

    def _compute_in_parts(
        self,
        images: list[int],
        pixels: list[Pixels],
        versions: dict[int, FileVersion],
        size: Size,
        writer: FeatureWriter,
        recorder: OutcomeRecorder,
    ) -> None:
        """Compute images of one size, fewer at a time where memory runs out; an image that does not fit alone fails."""
        begin = 0
        while begin < len(images):
            part = slice(begin, min(begin + self._fitting.get(size, len(images)), len(images)))
            count = part.stop - begin
            on_rows = partial(self._record_done, images[part], versions, recorder)
            try:
                self._computer.compute(images[part], pixels[part], size, self.done, writer, on_rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._computer.finish()  # earlier batches, which fit, and what this one wrote before
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()  # libraries that allocate by themselves cannot use what torch keeps
                if count > 1:
                    self._fitting[size] = count // 2
                    text = f"{self._device}: not enough memory for {count} images of {size[1]} x {size[0]}"
                    warnings.warn(f"{text} at a time, halved", RuntimeWarning, stacklevel=2)
                    continue
                recorder.failed(
                    images[begin], ImageError("image-memory", f"not enough memory on {self._device} for it")
                )
            begin = part.stop

    def _record_done(
        self, images: list[int], versions: dict[int, FileVersion], recorder: OutcomeRecorder, reports: Reports
    ) -> None:
        """Record images whose rows the writer has."""
        for image in images:
            report = reports.get(image, ValueReport())
            self.report += report
            recorder.done(image, versions[image], report)


def _make_computer(job: Job, device: DeviceQueue) -> RowComputer:
    """Return what computes the rows of a job on a device."""
    if job.backbone.detector is None:
        return RowComputer(job, device)
    from roialign_cli.extraction.detecting import DetectingRowComputer  # imports torchvision, which takes two seconds

    return DetectingRowComputer(job, device)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory has run out, of the device or the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
