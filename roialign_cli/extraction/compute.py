"""Compute the feature rows of images of one size on one device, and hand them to the writer block by block.

The device may compute some batches ahead: what has been given to it is finished later, in the same order.
"""

from __future__ import annotations

import math
import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.arrays import Integers
from roialign_cli.backbones.base import Levels, Maps, Reads
from roialign_cli.extraction.job import Job
from roialign_cli.regions.levels import LevelPass, level_passes, region_levels
from roialign_cli.regions.pooling import (
    Pooled,
    PooledLayer,
    pool_moved,
    pool_passes,
    pooled_channels,
    pooled_layers,
    reads_of_passes,
)
from roialign_cli.regions.preprocessing import input_size, prepare
from roialign_cli.regions.regions import Regions, batch_regions
from roialign_cli.regions.resize import resized
from roialign_cli.regions.values import ValueReport, clip_to_float16, finite_flag
from roialign_cli.store.schema import features_path
from roialign_cli.store.writer import FeatureWriter
from roialign_cli.system import allocator
from roialign_cli.system.device_queue import DeviceQueue, Submitted
from roialign_cli.system.devices import pooling_device

# Blocks of memory, and their size, for features that are computed and handed to the writer at a time. A device that
# computes ahead takes a block per batch or more while the disk syncs.
BLOCKS, BLOCK_BYTES = 3, 64 << 20
BLOCKS_AHEAD, BLOCK_BYTES_AHEAD = 16, 16 << 20

Pixels = npt.NDArray[np.uint8]
Reports = dict[int, ValueReport]  # by image; images whose values are all good are left out


@dataclass(frozen=True)
class Rows:
    """Regions to pool in pixels of the network input, their row in the file [K], and their image [K].

    pixel_area: square pixels of the network input per square pixel of the original images.
    """

    regions: Regions
    number: Integers
    image: Integers
    pixel_area: float

    def __getitem__(self, rows: Any) -> Rows:
        """Return some of the rows."""
        return Rows(self.regions[rows], self.number[rows], self.image[rows], self.pixel_area)


@dataclass(frozen=True)
class _Step:
    """Hold what is left to do on the host for work that was given to the device."""

    finish: Callable[[], None]
    ends_batch: bool = False


class RowComputer:
    """Run the backbone and RoI Align of a job on one device; rows go to the writer in blocks that are used again."""

    def __init__(self, job: Job, device: DeviceQueue) -> None:
        self._job = job
        self._device = device
        self._free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        blocks, self._block_bytes = (BLOCKS_AHEAD, BLOCK_BYTES_AHEAD) if device.depth else (BLOCKS, BLOCK_BYTES)
        for _ in range(blocks):
            self._free.put(device.new_host_memory(self._block_bytes))
        self._under_way: deque[_Step] = deque()  # the oldest first
        job.backbone.to(device.device)

    def compute(
        self,
        images: list[int],
        pixels: list[Pixels],
        size: tuple[int, int],
        done: npt.NDArray[np.bool_],
        writer: FeatureWriter,
        on_rows: Callable[[Reports], None],
    ) -> None:
        """Compute images of one size, and write the rows of those that are not done.

        `on_rows` is called when the writer has all these rows, with what is odd about them: now, or in a later call of
        `compute` or `finish`. Images that are done are computed as well: the same batch gives the same bits in a resumed run.
        """
        rows = self._rows(images, size)
        todo = ~done[rows.image]
        reports: Reports = {}
        if todo.any():
            allocator.trim_for_size(size)
            self._submit(images, pixels, size, rows, todo, writer, reports)
        self._add_step(_Step(lambda: on_rows(reports), ends_batch=True))

    def finish(self) -> None:
        """Finish all that is under way."""
        while self._under_way:
            self._finish_oldest()

    def _add_step(self, step: _Step) -> None:
        """Add a step, and finish the oldest ones if the device is far enough ahead."""
        self._under_way.append(step)
        depth = self._device.depth
        while self._under_way and (depth == 0 or sum(step.ends_batch for step in self._under_way) > depth):
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        self._under_way[0].finish()
        self._under_way.popleft()  # only now: if it failed, nothing that follows is finished

    def _submit(
        self,
        images: list[int],
        pixels: list[Pixels],
        size: tuple[int, int],
        rows: Rows,
        todo: npt.NDArray[np.bool_],
        writer: FeatureWriter,
        reports: Reports,
    ) -> None:
        """Give a batch to the device; its rows that are `todo` are written when its steps are finished."""
        backbone, settings = self._job.backbone, self._job.settings
        # A region keeps its levels whatever its context, and the file has one level per region.
        passes = [level_passes(rows.regions, layer, settings) for layer in backbone.layers]
        shape = input_size(size, backbone.preprocessing)
        reads = None  # all of the maps: with `deform` it is not known before how far bins move
        if backbone.computes_on_demand and backbone.deform is None:
            scaled = [rows.regions.scaled_about_centre(scale) for scale in settings.context or (1.0,)]
            reads = [
                reads_of_passes(scaled, of_layer, layer, shape, settings)
                for layer, of_layer in zip(backbone.layers, passes, strict=True)
            ]
        maps = self._device.submit(lambda: self._maps(pixels, reads))
        for image in images:
            writer.begin(image)
        for pooled in pooled_layers(backbone.layers, settings):
            todo_passes = [one[todo] for one in passes[pooled.index]]
            self._submit_layer(maps, pooled, rows[todo], todo_passes, writer, reports)

    def _submit_layer(
        self,
        maps: Submitted[Maps],
        pooled: PooledLayer,
        rows: Rows,
        passes: list[LevelPass],
        writer: FeatureWriter,
        reports: Reports,
    ) -> None:
        """Give rows of one layer to the device in blocks."""
        # Some kernels reduce afterwards, so a block is small before the reduction, too.
        channels = pooled_channels(self._job.backbone.layers[pooled.index], self._job.settings)
        points = rows.regions.points
        bins = math.prod(pooled.settings.output_size) if points is None else points.shape[1]
        step = max(1, (self._block_bytes - 1) // (4 * channels * bins))
        for begin in range(0, len(rows.regions), step):
            part = slice(begin, begin + step)
            self._submit_block(maps, pooled, rows[part], [one[part] for one in passes], writer, reports)

    def _rows(self, images: list[int], size: tuple[int, int]) -> Rows:
        """Return the regions of the images of a batch."""
        table = self._job.plan.table
        extents = [table.offset[image : image + 2].tolist() for image in images]
        target = resized(size, self._job.backbone.preprocessing.resize)
        number = np.concatenate([np.arange(first, stop) for first, stop in extents])
        owner = np.repeat(np.array(images, np.int64), [stop - first for first, stop in extents])
        area = target[0] * target[1] / (size[0] * size[1])
        return Rows(batch_regions(table, images, size, target), number, owner, area)

    @torch.inference_mode()
    def _maps(self, pixels: list[Pixels], reads: Reads | None) -> Maps:
        """Return the maps of a batch, computed on the device."""
        inputs = prepare(pixels, self._job.backbone.preprocessing, self._device.device)
        return self._job.backbone(inputs, self._job.settings.precision, reads)

    def _submit_block(
        self,
        maps: Submitted[Maps],
        pooled: PooledLayer,
        rows: Rows,
        passes: list[LevelPass],
        writer: FeatureWriter,
        reports: Reports,
    ) -> None:
        """Give rows of one layer to the device; they are checked and written when the step is finished."""
        dtype = getattr(torch, pooled.settings.dtype)
        shape = (len(rows.regions), *self._job.layout.layers[pooled.name])
        size = math.prod(shape) * dtype.itemsize
        block = self._take_block() if size < self._block_bytes else None  # the last byte says whether all is finite
        memory = block if block is not None else self._device.new_host_memory(size + 1)
        values, finite = memory[:size].view(dtype).view(shape), memory[-1:].view(torch.bool)
        coverage = torch.empty(
            (len(rows.regions), *pooled.settings.output_size) if rows.regions.masks is not None else 0
        )

        def pool_rows() -> None:
            out = values if pooling_device(self._device.device).type == "cpu" else None
            computed = self._pool(maps.value()[pooled.index], pooled, rows.regions, passes, dtype, out)
            if computed.coverage is not None:
                self._device.download(computed.coverage, coverage)
            self._device.download(computed.features, values)
            self._device.download(finite_flag(computed.features).view(1), finite)

        try:
            pooling = self._device.submit(pool_rows)
        except BaseException:  # memory may have run out; the block is needed again
            if block is not None:
                self._free.put(block)
            raise

        def finish() -> None:
            pooling.wait()
            if not finite:
                layer_maps = maps.value()[pooled.index]
                self._report(values, pooled, layer_maps, rows, passes, reports)
            bounds = [0, *(np.flatnonzero(np.diff(rows.image)) + 1).tolist(), len(values)]
            tables = self._tables(rows, pooled, coverage)
            dataset = features_path(pooled.name, len(self._job.layout.layers))
            for low, high in pairwise(bounds):
                first = int(rows.number[low])
                for name, column in tables.items():
                    writer.rows(name, first, column[low:high])
                release = (
                    (lambda: self._free.put(block)) if block is not None and high == len(values) else (lambda: None)
                )
                writer.features(dataset, int(rows.image[low]), first, values[low:high].numpy(), release)

        self._add_step(_Step(finish))

    def _tables(self, rows: Rows, pooled: PooledLayer, coverage: Tensor) -> dict[str, npt.NDArray[Any]]:
        """Return what the file holds of rows beside their features; coverage [K, PH, PW] is empty if there are no masks."""
        tables: dict[str, npt.NDArray[Any]] = {}
        levels = region_levels(rows.regions, self._job.backbone.layers[pooled.index], pooled.settings)
        if levels is not None:
            tables["levels"] = levels.to(torch.uint8).numpy()
        shapes = self._job.layout.tables
        if "area" in shapes:
            tables["area"] = (rows.regions.areas() / rows.pixel_area).float().numpy()
        if "coverage" in shapes:
            tables["coverage"] = coverage.view(len(coverage), *shapes["coverage"]).numpy()
        return tables

    def _take_block(self) -> Tensor:
        """Return a block of memory that is free, or wait for one."""
        while self._free.empty() and self._under_way:
            self._finish_oldest()  # the writer frees its block
        return self._free.get()

    @torch.inference_mode()
    def _pool(
        self, maps: Levels, pooled: PooledLayer, regions: Regions, passes: list[LevelPass], dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Pooled:  # fmt: skip
        """Return rows of a type, computed on the device; without a head they are written into `out`, if given."""
        backbone, head = self._job.backbone, self._job.backbone.head
        layer, scaled = backbone.layers[pooled.index], regions.scaled_about_centre(pooled.context)

        def pool(*target: Any) -> Pooled:
            if backbone.deform is None:
                return pool_passes(maps, layer, scaled, passes, pooled.settings, *target)
            return pool_moved(maps, layer, scaled, passes[0].level, pooled.settings, backbone.deform, *target)

        if head is None:
            return pool(dtype, out)
        bins = pool()
        vectors: Tensor = head(bins.features)
        return Pooled(vectors.to(dtype), bins.coverage)

    def _report(
        self, values: Tensor, pooled: PooledLayer, maps: Levels, rows: Rows, passes: list[LevelPass], reports: Reports
    ) -> None:
        """Clip values that float16 cannot hold, and report them, and those that are not finite, by image."""
        not_finite, saturated = clip_to_float16(
            values, lambda: self._pool(maps, pooled, rows.regions, passes, torch.float32).features
        )
        for image in np.unique(rows.image).tolist():
            of_image = torch.from_numpy(rows.image == image)
            report = ValueReport.from_masks(not_finite[of_image], saturated[of_image])
            reports[image] = reports.get(image, ValueReport()) + report
