"""Fill a laid-out file: decode -> backbone -> RoI Align -> write, batch after batch, overlapped."""

from __future__ import annotations

import math
import mmap
import queue
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.arrays import Integers
from roialign_cli.backbones.base import Layer, Levels
from roialign_cli.extraction.batches import Batch, Decoded, load_batches, make_batches
from roialign_cli.extraction.job import Job
from roialign_cli.extraction.plan import row_range
from roialign_cli.extraction.progress import ProgressTracker
from roialign_cli.inputs.images import ImageError
from roialign_cli.regions.pooling import cells_read, pool
from roialign_cli.regions.preprocessing import prepare, resized
from roialign_cli.regions.rois import roi_levels, scale_boxes
from roialign_cli.regions.values import ValueReport, all_finite, clip_to_float16
from roialign_cli.store.schema import features_path
from roialign_cli.store.writer import FeatureWriter, open_writer
from roialign_cli.system import allocator
from roialign_cli.types import FileVersion

BATCH_PIXELS = 2 << 20  # of the network's input per batch, where the batch size is ours to choose
BLOCK_BYTES = 64 << 20  # features computed and handed to the writer at a time
NO_MEMORY = ("DefaultCPUAllocator", "could not create a primitive", "could not create a memory", "bad_alloc")
BLOCKS = 3  # such blocks in memory


@dataclass(frozen=True)
class Rows:
    """Boxes to pool: rois [K, 5] in pixels of the network input, their row in the file and their image, each [K]."""

    rois: Tensor
    number: Integers
    image: Integers


def batches_left(job: Job, done: npt.NDArray[np.bool_]) -> Iterator[Batch]:
    """The batches of the plan in which an image is not yet done; batches are computed whole, whoever computes them."""
    resize = job.backbone.preprocessing.resize
    planned = make_batches(
        job.plan, job.settings.batch_size, BATCH_PIXELS, lambda size: math.prod(resized(size, resize))
    )
    return (batch for batch in planned if not done[list(batch.images)].all())


class BatchWorker:
    """Computes batches on one device and writes their rows, which nobody else writes; done images are left alone."""

    def __init__(
        self, job: Job, device: torch.device, done: npt.NDArray[np.bool_], settle: Callable[[int], None]
    ) -> None:
        self.job = job
        self.done = done
        self.flaws = ValueReport()  # of all images
        self._flaws: dict[int, ValueReport] = {}  # of the images at hand
        self._versions: dict[int, FileVersion] = {}  # of the images at hand
        self._device = device
        self._settle = settle
        self._counts = np.diff(job.plan.table.offset)
        self._room: dict[tuple[int, int], int] = {}  # how many images of a size memory has room for, where it ran out
        self._blocks: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for _ in range(BLOCKS):
            self._blocks.put(_new_block(device))
        job.backbone.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if job.backbone.head is not None:
            job.backbone.head.to(device)

    def fill(self, batches: Iterable[Batch], should_stop: Callable[[], bool]) -> None:
        """Compute batch after batch; at the end all of it is on the disk."""
        with open_writer(self.job.output) as self._writer:
            for batch, decoded in load_batches(self.job.folder, self.job.plan, batches, self.job.settings):
                if should_stop():
                    return
                self._compute(batch, decoded)

    def _compute(self, batch: Batch, decoded: list[Decoded]) -> None:
        """One batch; images whose size was stated wrongly are computed by themselves."""
        groups: dict[tuple[int, int], tuple[list[int], list[npt.NDArray[np.uint8]]]] = {}
        for image, result in zip(batch.images, decoded, strict=True):
            if isinstance(result, ImageError):
                self._fail(image, result)
                continue
            size = (result.pixels.shape[0], result.pixels.shape[1])
            if size != batch.size and self.job.plan.boxes_depend_on_size:
                found = f"expected (height, width) {batch.size}, by which boxes were made, found {size}"
                self._fail(image, ImageError("image-size", found))
                continue
            self.job.plan.sizes[image] = size
            images, pixels = groups.setdefault(size, ([], []))
            images.append(image)
            pixels.append(result.pixels)
            self._versions[image] = result.version
        for size, (images, pixels) in groups.items():
            self._compute_as_fits(images, pixels, size)
            for image in images:
                if not self.done[image]:
                    self._finish(image, self._flaws.pop(image, ValueReport()))
                del self._versions[image]

    def _fail(self, image: int, error: ImageError) -> None:
        if self.job.settings.on_error == "stop":
            raise error.with_name(self.job.plan.table.names[image])
        if not self.done[image]:
            self._writer.failed(image, error.message)
            self._settle(image)
            self.done[image] = True

    def _compute_as_fits(self, images: list[int], pixels: list[npt.NDArray[np.uint8]], size: tuple[int, int]) -> None:
        """The same, in halves where memory does not suffice for more; an image that does not fit alone fails."""
        begin = 0
        while begin < len(images):
            part = slice(begin, min(begin + self._room.get(size, len(images)), len(images)))
            count = part.stop - begin
            try:
                self._compute_group(images[part], pixels[part], size)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if count > 1:
                    self._room[size] = count // 2
                    text = f"{self._device}: not enough memory for {count} images of {size[1]} x {size[0]}"
                    warnings.warn(f"{text} at a time, halved", RuntimeWarning, stacklevel=2)
                    continue
                self._fail(images[begin], ImageError("image-memory", f"not enough memory on {self._device} for it"))
            begin = part.stop

    def _compute_group(self, images: list[int], pixels: list[npt.NDArray[np.uint8]], size: tuple[int, int]) -> None:
        """Images of one size, done before or not: the same computation gives the same bits."""
        backbone, settings = self.job.backbone, self.job.settings
        rows = self._rows(images, size)
        todo = ~self.done[rows.image]
        if not todo.any():
            return
        allocator.trim_for_size(size)
        levels = [roi_levels(rows.rois, layer, settings) for layer in backbone.layers]
        with torch.inference_mode():
            inputs = prepare(pixels, backbone.preprocessing, self._device)
            shape = (inputs.shape[2], inputs.shape[3])
            reads = [
                cells_read(rows.rois, of_rows, layer, shape, settings)
                for layer, of_rows in zip(backbone.layers, levels, strict=True)
            ]
            maps = backbone(inputs, settings.precision, reads)
            rest = Rows(rows.rois[todo], rows.number[todo], rows.image[todo])
            for image in images:
                self._flaws.pop(image, None)
                self._writer.begin(image)
            for layer, of_layer, of_rows in zip(backbone.layers, maps, levels, strict=True):
                self._pool_layer(layer, of_layer, rest, None if of_rows is None else of_rows[todo])

    def _rows(self, images: list[int], size: tuple[int, int]) -> Rows:
        """The boxes of the images of a batch."""
        table = self.job.plan.table
        number = np.concatenate([np.arange(0), *(np.arange(*row_range(table.offset, image)) for image in images)])
        boxes = scale_boxes(table.boxes[number], size, resized(size, self.job.backbone.preprocessing.resize))
        counts = self._counts[images]
        batch_index = torch.from_numpy(np.repeat(np.arange(len(images)), counts)).to(boxes.dtype)
        rois = torch.cat([batch_index[:, None], boxes], dim=1)
        return Rows(rois, number, np.repeat(np.array(images, np.int64), counts))

    def _pool_layer(self, layer: Layer, maps: Levels, rows: Rows, levels: Tensor | None) -> None:
        """Pool the rows of a batch on one layer, block by block, and hand them to the writer."""
        settings, rois = self.job.settings, rows.rois
        dataset = features_path(layer.name, len(self.job.layout.layers))
        # Not all kernels reduce on the way: a block is small before it, too.
        step = max(1, BLOCK_BYTES // (4 * layer.channels * settings.output_size[0] * settings.output_size[1]))
        for begin in range(0, len(rois), step):
            part = slice(begin, begin + step)
            part_levels = levels[part] if levels is not None else None
            values, release = self._pool_block(maps, layer, rois[part], part_levels, rows.image[part])
            cuts = [0, *(np.flatnonzero(np.diff(rows.image[part])) + 1).tolist(), len(values)]
            for low, high in pairwise(cuts):
                first = int(rows.number[part][low])
                if part_levels is not None:
                    self._writer.rows("levels", first, part_levels[low:high].to(torch.uint8).numpy())
                last = high == len(values)
                self._writer.features(
                    dataset, int(rows.image[part][low]), first, values[low:high], release if last else lambda: None
                )

    def _pool_block(
        self, maps: Levels, layer: Layer, rois: Tensor, levels: Tensor | None, images: Integers
    ) -> tuple[npt.NDArray[Any], Callable[[], None]]:
        """Rows as they are stored, and what to call when they have been written: their memory is used again."""
        dtype = getattr(torch, self.job.settings.dtype)
        shape = (len(rois), *self.job.layout.layers[layer.name])
        size = math.prod(shape) * dtype.itemsize
        block = self._blocks.get() if size <= BLOCK_BYTES else None
        rows = block[:size].view(dtype).view(shape) if block is not None else torch.empty(shape, dtype=dtype)
        head = self.job.backbone.head

        def pooled(kind: torch.dtype, out: Tensor | None) -> Tensor:
            return pool(maps, layer, rois, levels, self.job.settings, kind, out)

        def exact() -> Tensor:
            return pooled(torch.float32, None) if head is None else head(pooled(torch.float32, None)).float()

        if head is not None:
            rows.copy_(exact())
        elif self._device.type == "cpu":
            pooled(dtype, rows)
        else:
            rows.copy_(pooled(dtype, None))
        if not all_finite(rows):
            not_finite, saturated = clip_to_float16(rows, exact)
            for image in np.unique(images).tolist():
                of = torch.from_numpy(images == image)
                self._flaws[image] = self._flaws.get(image, ValueReport()) + ValueReport.of(
                    not_finite[of], saturated[of]
                )
        return rows.numpy(), (lambda: self._blocks.put(block)) if block is not None else (lambda: None)

    def _finish(self, image: int, flaws: ValueReport) -> None:
        self.flaws += flaws
        if flaws.not_finite and self.job.settings.on_nonfinite == "error":
            self._fail(image, ImageError("features-nonfinite", f"its features have {flaws}", "--on-nonfinite keep"))
            return
        self._writer.version(image, self._versions[image])
        _write_done(self.job, self._writer, image, str(flaws))
        self._settle(image)


def _new_block(device: torch.device) -> Tensor:
    """Page-aligned memory, so that it can be written past the page cache; on the CPU in huge pages, which NumPy asks for."""
    if device.type == "cuda":
        return torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
    memory = np.empty(BLOCK_BYTES + mmap.PAGESIZE, np.uint8)
    start = -memory.ctypes.data % mmap.PAGESIZE
    return torch.from_numpy(memory[start : start + BLOCK_BYTES])


def record_known_outcomes(job: Job, tally: ProgressTracker) -> None:
    """Images without boxes are done, images known to be unreadable go to the ledger."""
    problems = {image: problem for image, problem in job.plan.problems.items() if not tally.settled[image]}
    without = np.flatnonzero(~tally.settled & (np.diff(job.plan.table.offset) == 0)).tolist()
    if not problems and not without:
        return
    with open_writer(job.output) as writer:
        for image in without:
            if image not in problems:
                _write_done(job, writer, image)
                tally.settle(image)
        for image, problem in problems.items():
            writer.failed(image, problem)
            tally.settle(image)


def _write_done(job: Job, writer: FeatureWriter, image: int, note: str = "") -> None:
    """All rows of an image are on their way; sizes and clipped boxes too, which an earlier run may not have known."""
    writer.rows("images/size", image, job.plan.sizes[image : image + 1])
    if job.plan.boxes_depend_on_size:
        first, stop = row_range(job.plan.table.offset, image)
        writer.rows("boxes", first, job.plan.table.boxes[first:stop])
    writer.done(image, note)


def _out_of_memory(error: Exception) -> bool:
    """Whether torch's device or host allocator, or oneDNN, has given up; the latter two have no exception of their own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in NO_MEMORY)
