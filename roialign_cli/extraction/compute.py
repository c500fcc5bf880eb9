"""Compute the feature rows of images of one size on one device, and hand them to the writer block by block."""

from __future__ import annotations

import math
import mmap
import queue
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.arrays import Integers
from roialign_cli.backbones.base import Levels
from roialign_cli.extraction.job import Job
from roialign_cli.regions.pooling import PooledLayer, cells_read, pool, pooled_layers
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.regions.resize import resized
from roialign_cli.regions.rois import batch_rois, roi_levels
from roialign_cli.regions.values import ValueReport, all_finite, clip_to_float16
from roialign_cli.store.schema import features_path
from roialign_cli.store.writer import FeatureWriter
from roialign_cli.system import allocator

BLOCK_BYTES = 64 << 20  # of features that are computed and handed to the writer at a time
BLOCKS = 3  # such blocks in memory

Pixels = npt.NDArray[np.uint8]
Reports = dict[int, ValueReport]  # by image; images whose values are all good are left out


@dataclass(frozen=True)
class Rows:
    """Boxes to pool: rois [K, 5] in pixels of the network input, their row in the file [K], and their image [K]."""

    rois: Tensor
    number: Integers
    image: Integers


class RowComputer:
    """Run the backbone and RoI Align of a job on one device; rows go to the writer in blocks that are used again."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.device = device
        self._job = job
        if device.type == "cuda":
            torch.cuda.set_device(device)  # pinned memory would otherwise open a context on the first device, too
        self._blocks: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for _ in range(BLOCKS):
            self._blocks.put(_new_block(device))
        job.backbone.to(device)

    def compute(
        self,
        images: list[int],
        pixels: list[Pixels],
        size: tuple[int, int],
        done: npt.NDArray[np.bool_],
        writer: FeatureWriter,
    ) -> Reports:
        """Compute images of one size, and write the rows of those that are not done; return what is odd about them.

        Images that are done are computed as well: the same batch gives the same bits in a resumed run.
        """
        backbone, settings = self._job.backbone, self._job.settings
        rows = self._rows(images, size)
        todo = ~done[rows.image]
        if not todo.any():
            return {}
        allocator.trim_for_size(size)
        levels = [roi_levels(rows.rois, layer, settings) for layer in backbone.layers]
        reports: Reports = {}
        with torch.inference_mode():
            inputs = prepare(pixels, backbone.preprocessing, self.device)
            shape = (inputs.shape[2], inputs.shape[3])
            reads = [
                cells_read(rows.rois, layer_levels, layer, shape, settings)
                for layer, layer_levels in zip(backbone.layers, levels, strict=True)
            ]
            maps = backbone(inputs, settings.precision, reads)
            todo_rows = Rows(rows.rois[todo], rows.number[todo], rows.image[todo])
            for image in images:
                writer.begin(image)
            for pooled in pooled_layers(backbone.layers, settings):
                layer_levels = levels[pooled.index]
                todo_levels = None if layer_levels is None else layer_levels[todo]
                self._pool_layer(pooled, maps[pooled.index], todo_rows, todo_levels, writer, reports)
        return reports

    def _rows(self, images: list[int], size: tuple[int, int]) -> Rows:
        """Return the boxes of the images of a batch."""
        table = self._job.plan.table
        extents = [table.offset[image : image + 2].tolist() for image in images]
        rois = batch_rois(
            [table.boxes[first:stop] for first, stop in extents],
            size,
            resized(size, self._job.backbone.preprocessing.resize),
        )
        number = np.concatenate([np.arange(first, stop) for first, stop in extents])
        return Rows(rois, number, np.repeat(np.array(images, np.int64), [stop - first for first, stop in extents]))

    def _pool_layer(
        self,
        pooled: PooledLayer,
        maps: Levels,
        rows: Rows,
        levels: Tensor | None,
        writer: FeatureWriter,
        reports: Reports,
    ) -> None:
        """Pool rows on one layer block by block, and hand them to the writer."""
        channels = self._job.backbone.layers[pooled.index].channels
        dataset = features_path(pooled.name, len(self._job.layout.layers))
        # Some kernels reduce afterwards, so a block is small before the reduction, too.
        step = max(1, BLOCK_BYTES // (4 * channels * math.prod(pooled.settings.output_size)))
        for begin in range(0, len(rows.rois), step):
            part = slice(begin, begin + step)
            images, numbers = rows.image[part], rows.number[part]
            part_levels = levels[part] if levels is not None else None
            values, release = self._pool_block(maps, pooled, rows.rois[part], part_levels, images, reports)
            bounds = [0, *(np.flatnonzero(np.diff(images)) + 1).tolist(), len(values)]
            for low, high in pairwise(bounds):
                first = int(numbers[low])
                if part_levels is not None:
                    writer.rows("levels", first, part_levels[low:high].to(torch.uint8).numpy())
                last = high == len(values)
                writer.features(dataset, int(images[low]), first, values[low:high], release if last else lambda: None)

    def _pool_block(
        self, maps: Levels, pooled: PooledLayer, rois: Tensor, levels: Tensor | None, images: Integers, reports: Reports
    ) -> tuple[npt.NDArray[Any], Callable[[], None]]:
        """Return rows as they are stored, and a function to call when they are written: their memory is used again."""
        settings, head = pooled.settings, self._job.backbone.head
        layer = self._job.backbone.layers[pooled.index]
        dtype = getattr(torch, settings.dtype)
        shape = (len(rois), *self._job.layout.layers[pooled.name])
        size = math.prod(shape) * dtype.itemsize
        block = self._blocks.get() if size <= BLOCK_BYTES else None
        rows = block[:size].view(dtype).view(shape) if block is not None else torch.empty(shape, dtype=dtype)

        def compute_float32() -> Tensor:
            values = pool(maps, layer, rois, levels, settings)
            return values if head is None else head(values).float()

        if head is not None:
            rows.copy_(compute_float32())
        elif self.device.type == "cpu":
            pool(maps, layer, rois, levels, settings, dtype, rows)
        else:
            rows.copy_(pool(maps, layer, rois, levels, settings, dtype))
        if not all_finite(rows):
            not_finite, saturated = clip_to_float16(rows, compute_float32)
            for image in np.unique(images).tolist():
                of_image = torch.from_numpy(images == image)
                report = ValueReport.from_masks(not_finite[of_image], saturated[of_image])
                reports[image] = reports.get(image, ValueReport()) + report
        return rows.numpy(), (lambda: self._blocks.put(block)) if block is not None else (lambda: None)


def _new_block(device: torch.device) -> Tensor:
    """Return page-aligned memory, which can be written past the page cache; on the CPU NumPy asks for huge pages."""
    if device.type == "cuda":
        return torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
    memory = np.empty(BLOCK_BYTES + mmap.PAGESIZE, np.uint8)
    start = -memory.ctypes.data % mmap.PAGESIZE
    return torch.from_numpy(memory[start : start + BLOCK_BYTES])
