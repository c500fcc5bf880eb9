"""Compute rows for boxes that are found on the way: one pass of the backbone serves the detector and RoI Align.

The output has room for the most boxes of each image. Rows that stay empty are never written, and their score is NO_BOX.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from roialign_cli.backbones.base import Maps
from roialign_cli.backbones.detector import Detections
from roialign_cli.extraction.compute import Pixels, Reports, RowComputer, Rows
from roialign_cli.regions.levels import level_passes
from roialign_cli.regions.pooling import pooled_layers
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.regions.regions import batch_regions
from roialign_cli.regions.resize import resized
from roialign_cli.regions.values import ValueReport, all_finite, clip_to_float16
from roialign_cli.store.schema import features_path
from roialign_cli.store.writer import FeatureWriter
from roialign_cli.system.device_queue import Submitted


class DetectingRowComputer(RowComputer):
    """Run the backbone, its detector and RoI Align of a job on one device."""

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
        """Give a batch to the device, wait for what is found, and write it and its features for images with rows to do."""
        batch = self._device.submit(lambda: self._detect(pixels, size))
        found = [_in_original(one, size, self._target(size)) for one in batch.value()[1]]
        wanted = np.flatnonzero(np.isin(images, rows.image[todo])).tolist()
        room = self._job.plan.table.offset
        table = replace(
            self._job.plan.table,
            offset=np.cumsum([0, *(len(one.scores) for one in found)]),
            boxes=np.concatenate([one.boxes.numpy() for one in found]),
        )
        regions = batch_regions(table, range(len(images)), size, self._target(size))
        counts = np.diff(table.offset)
        number = np.concatenate([room[image] + np.arange(count) for image, count in zip(images, counts, strict=True)])
        all_rows = Rows(regions, number, np.repeat(images, counts), rows.pixel_area)
        own = all_rows[np.isin(all_rows.image, [images[i] for i in wanted])]
        for i in wanted:
            self._write_boxes(images[i], found[i], writer)
        backbone, settings = self._job.backbone, self._job.settings
        maps = Submitted(lambda: batch.value()[0], batch.wait)
        for pooled in pooled_layers(backbone.layers, settings):
            dataset = features_path(pooled.name, len(self._job.layout.layers))
            passes = level_passes(own.regions, backbone.layers[pooled.index], settings)
            if settings.head == "box":
                tables = self._tables(own, pooled, torch.empty(0))
                for name, column in tables.items():
                    for i in wanted:
                        writer.rows(name, int(room[images[i]]), column[own.image == images[i]])
                for i in wanted:
                    self._write_vectors(dataset, images[i], found[i], writer, reports)
            else:
                self._submit_layer(maps, pooled, own, passes, writer, reports)
                self.finish()  # the rows of a layer come before those that stay empty
            for i in wanted:
                first, stop = int(room[images[i]]) + int(counts[i]), int(room[images[i] + 1])
                writer.no_features(dataset, images[i], first, stop - first)

    @torch.inference_mode()
    def _detect(self, pixels: list[Pixels], size: tuple[int, int]) -> tuple[Maps, list[Detections]]:
        """Return the maps of a batch, computed on the device, and what is found on them."""
        backbone = self._job.backbone
        inputs = prepare(pixels, backbone.preprocessing, self._device.device)
        return backbone.with_detections(inputs, self._job.settings.precision, self._target(size))

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of an image in the network input."""
        return resized(size, self._job.backbone.preprocessing.resize)

    def _write_boxes(self, image: int, found: Detections, writer: FeatureWriter) -> None:
        """Write the boxes of an image, and begin its features; rows without a box are empty, whatever was there before."""
        first, stop = self._job.plan.table.offset[image : image + 2].tolist()
        table = self._job.plan.table
        count = len(found.scores)
        for name, values in (("boxes", found.boxes), ("labels", found.labels), ("scores", found.scores)):
            column = getattr(table, name)[first:stop].copy()
            column[:count] = values.numpy()
            writer.rows(name, first, column)
        writer.begin(image)

    def _write_vectors(
        self, dataset: str, image: int, found: Detections, writer: FeatureWriter, reports: Reports
    ) -> None:
        """Write the vectors of an image's boxes from the detector's own box head."""
        vectors = found.vectors
        assert vectors is not None
        values = vectors.to(getattr(torch, self._job.settings.dtype))
        if not all_finite(values):
            report = ValueReport.from_masks(*clip_to_float16(values, lambda: vectors))
            reports[image] = reports.get(image, ValueReport()) + report
        writer.features(dataset, image, int(self._job.plan.table.offset[image]), values.numpy())


def _in_original(found: Detections, size: tuple[int, int], target: tuple[int, int]) -> Detections:
    """Return detections on the CPU, with boxes in pixels of an image of (height, width) `size`; `target` is the input's."""

    def moved(values: Tensor) -> Tensor:
        return values.detach().cpu()

    vectors = None if found.vectors is None else moved(found.vectors)
    boxes: Tensor = resize_boxes(moved(found.boxes), list(target), list(size))
    return Detections(boxes, moved(found.labels), moved(found.scores), vectors)
