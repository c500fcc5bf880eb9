"""Fill a laid-out file: decode -> backbone -> RoI Align -> write, batch after batch, overlapped."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli import memory
from roialign_cli.backbones import Backbone
from roialign_cli.backbones.base import Levels
from roialign_cli.config import Settings
from roialign_cli.inputs.images import ImageError
from roialign_cli.loading import Decoded, load_batches
from roialign_cli.planning import Batch, make_batches, row_range
from roialign_cli.pooling import cells_read, levels_of, pool, scale_boxes
from roialign_cli.preprocessing import prepare, resized
from roialign_cli.store.layout import Layout
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import features_path
from roialign_cli.store.writer import FeatureWriter
from roialign_cli.structures import Integers, Layer, Plan, Progress

BATCH_PIXELS = 2 << 20  # of the network's input per batch, where the batch size is ours to choose
BLOCK_BYTES = 64 << 20  # features computed and handed to the writer at a time
BLOCKS = 3  # such blocks in memory
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Job:
    """Everything a run needs, checked: nothing has been written yet."""

    folder: Path
    output: Path
    settings: Settings
    plan: Plan
    backbone: Backbone
    layout: Layout
    device: torch.device
    free_bytes: int


@dataclass(frozen=True)
class Rows:
    """Boxes to pool: rois [K, 5] in pixels of the network input, their row in the file and their image, each [K]."""

    rois: Tensor
    number: Integers
    image: Integers


class Filling:
    """One pass over the images not yet done."""

    def __init__(self, job: Job, done: npt.NDArray[np.bool_], on_progress: Callable[[Progress], None]) -> None:
        self.job = job
        self.done = done
        self.interrupted = False
        self.saturated = 0
        self._on_progress = on_progress
        self._counts = np.diff(job.plan.table.offset)
        self._size = (0, 0)  # of the images computed last
        self._images, self._boxes = int(done.sum()), int(self._counts[done].sum())
        self._blocks: queue.SimpleQueue[Tensor] = queue.SimpleQueue()

    def fill(self, should_stop: Callable[[], bool]) -> None:
        """Ledger the images known to fail, then compute batch after batch."""
        plan, settings = self.job.plan, self.job.settings
        self.job.backbone.model.to(self.job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for _ in range(BLOCKS):
            self._blocks.put(torch.from_numpy(np.empty(BLOCK_BYTES // 4, np.float32)))
        with FeatureFile(self.job.output) as file:
            places = file.places
        with FeatureWriter(self.job.output, places) as writer:
            self._writer = writer
            for image in np.flatnonzero(~self.done & (self._counts == 0)).tolist():
                if image not in plan.problems:
                    self._finish(image)
            for image, problem in plan.problems.items():
                if not self.done[image]:
                    writer.failed(image, problem)
                    self._settle(image)
            resize = self.job.backbone.preprocessing.resize
            planned = make_batches(
                plan, settings.batch_size, BATCH_PIXELS, lambda size: math.prod(resized(size, resize))
            )
            batches = (batch for batch in planned if not self.done[list(batch.images)].all())
            for batch, decoded in load_batches(self.job.folder, plan, batches, settings.workers):
                if should_stop():
                    self.interrupted = True
                    return
                self._compute(batch, decoded)

    def _compute(self, batch: Batch, decoded: list[Decoded]) -> None:
        """One batch; images whose size was stated wrongly are computed by themselves."""
        groups: dict[tuple[int, int], tuple[list[int], list[npt.NDArray[np.uint8]]]] = {}
        for image, result in zip(batch.images, decoded, strict=True):
            if isinstance(result, ImageError):
                self._fail(image, result)
                continue
            size = (result.shape[0], result.shape[1])
            if size != batch.size and self.job.settings.clip:
                found = f"expected (height, width) {batch.size}, to which boxes were clipped, found {size}"
                self._fail(image, ImageError("image-size", found))
                continue
            self.job.plan.sizes[image] = size
            images, pixels = groups.setdefault(size, ([], []))
            images.append(image)
            pixels.append(result)
        for size, (images, pixels) in groups.items():
            self._compute_group(images, pixels, size)
            for image in images:
                if not self.done[image]:
                    self._finish(image)

    def _fail(self, image: int, error: ImageError) -> None:
        if self.job.settings.on_error == "stop":
            raise error.of(self.job.plan.table.names[image])
        if not self.done[image]:
            self._writer.failed(image, error.message)
            self._settle(image)

    def _compute_group(self, images: list[int], pixels: list[npt.NDArray[np.uint8]], size: tuple[int, int]) -> None:
        """Images of one size, done before or not: the same computation gives the same bits."""
        backbone, settings = self.job.backbone, self.job.settings
        rows = self._rows(images, size)
        todo = ~self.done[rows.image]
        if not todo.any():
            return
        if size != self._size:
            memory.release()
            self._size = size
        levels = [levels_of(rows.rois, layer, settings) for layer in backbone.layers]
        with torch.inference_mode():
            inputs = prepare(pixels, backbone.preprocessing, self.job.device)
            shape = (inputs.shape[2], inputs.shape[3])
            reads = [
                cells_read(rows.rois, of_rows, layer, shape, settings)
                for layer, of_rows in zip(backbone.layers, levels, strict=True)
            ]
            maps = backbone(inputs, settings.precision, reads)
            rest = Rows(rows.rois[todo], rows.number[todo], rows.image[todo])
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
        step = max(1, BLOCK_BYTES // (4 * layer.channels * settings.output_size[0] * settings.output_size[1]))
        for begin in range(0, len(rois), step):
            part = slice(begin, begin + step)
            part_levels = levels[part] if levels is not None else None
            values, release = self._pool_block(maps, layer, rois[part], part_levels)
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
        self, maps: Levels, layer: Layer, rois: Tensor, levels: Tensor | None
    ) -> tuple[npt.NDArray[Any], Callable[[], None]]:
        """Rows as they are stored, and what to call when they have been written: their memory is used again."""
        settings = self.job.settings
        shape = (len(rois), layer.channels, *settings.output_size)
        elements = int(np.prod(shape))
        first = next(features for features in maps if features is not None)
        ours = first.device.type == "cpu" and first.dtype == torch.float32 and settings.reduce == "none"
        block = self._blocks.get() if ours and elements <= BLOCK_BYTES // 4 else None
        out = block[:elements].view(shape) if block is not None else None
        pooled = pool(maps, layer, rois, levels, settings, out).float().cpu()
        if settings.dtype == "float16":
            self.saturated += int((pooled.abs() > FLOAT16_MAX).sum())
            pooled = pooled.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()
            if block is not None:
                self._blocks.put(block)
            return pooled.numpy(), lambda: None
        return pooled.numpy(), (lambda: self._blocks.put(block)) if block is not None else (lambda: None)

    def _finish(self, image: int) -> None:
        """All rows of an image are on their way; sizes and clipped boxes too, which an earlier run may not have known."""
        plan = self.job.plan
        self._writer.rows("images/size", image, plan.sizes[image : image + 1])
        if self.job.settings.clip:
            first, stop = row_range(plan.table.offset, image)
            self._writer.rows("boxes", first, plan.table.boxes[first:stop])
        self._writer.done(image)
        self._settle(image)

    def _settle(self, image: int) -> None:
        plan = self.job.plan
        self._images += 1
        self._boxes += int(self._counts[image])
        total = self.job.layout.feature_bytes(self._boxes)
        self._on_progress(Progress(self._images, plan.images, self._boxes, plan.rows, total))
