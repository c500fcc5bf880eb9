"""Compute rows for boxes that are found on the way: one pass of the backbone serves the detector and RoI Align.

The output has room for the most boxes of each image. Rows that stay empty are never written, and their score is NO_BOX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from roialign_cli.backbones.base import Maps
from roialign_cli.backbones.detector import Detections
from roialign_cli.extraction.compute import Pixels, Reports, RowComputer, Rows
from roialign_cli.regions.levels import level_passes
from roialign_cli.regions.pooling import PooledLayer, pooled_layers
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
        target = resized(size, self._job.backbone.preprocessing.resize)
        maps_of_batch, detections = batch.value()
        found = dict(zip(images, (_in_original(one, size, target) for one in detections), strict=True))
        wanted = [image for image in images if image in set(rows.image[todo].tolist())]
        strange = dict(zip(images, _count_not_finite(maps_of_batch), strict=True))
        for image in wanted:
            self._write_boxes(image, found[image], writer)
            if strange[image]:  # a detector finds nothing on NaN
                reports[image] = reports.get(image, ValueReport()) + ValueReport(not_finite=strange[image])
        all_found = self._found_rows(found, size, target, rows.pixel_area)
        chosen = all_found[np.isin(all_found.image, wanted)]
        maps = Submitted(lambda: batch.value()[0], batch.wait)
        backbone, settings = self._job.backbone, self._job.settings
        for pooled in pooled_layers(backbone.layers, settings):
            if settings.head == "box":
                self._write_vectors(pooled, chosen, {image: found[image] for image in wanted}, writer, reports)
            else:
                passes = level_passes(chosen.regions, backbone.layers[pooled.index], settings)
                self._submit_layer(maps, pooled, chosen, passes, writer, reports)
                self.finish()  # the rows of a layer come before those that stay empty
            for image in wanted:
                first, stop = self._job.plan.table.offset[image : image + 2].tolist()
                first += len(found[image].scores)
                writer.no_features(self._dataset(pooled), image, first, stop - first)

    @torch.inference_mode()
    def _detect(self, pixels: list[Pixels], size: tuple[int, int]) -> tuple[Maps, list[Detections]]:
        """Return the maps of a batch, computed on the device, and what is found on them."""
        backbone = self._job.backbone
        inputs = prepare(pixels, backbone.preprocessing, self._device.device)
        return backbone.with_detections(
            inputs, self._job.settings.precision, resized(size, backbone.preprocessing.resize)
        )

    def _found_rows(
        self, found: Mapping[int, Detections], size: tuple[int, int], target: tuple[int, int], pixel_area: float
    ) -> Rows:
        """Return the rows of the boxes that were found in the images of a batch."""
        counts = [len(one.scores) for one in found.values()]
        boxes = np.concatenate([one.boxes.numpy() for one in found.values()])
        table = replace(self._job.plan.table, offset=np.cumsum([0, *counts]), boxes=boxes)
        first = np.repeat(self._job.plan.table.offset[list(found)] - table.offset[:-1], counts)
        regions = batch_regions(table, range(len(found)), size, target)
        return Rows(regions, first + np.arange(len(boxes)), np.repeat(list(found), counts), pixel_area)

    def _dataset(self, pooled: PooledLayer) -> str:
        return features_path(pooled.name, len(self._job.layout.layers))

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
        self, pooled: PooledLayer, rows: Rows, found: Mapping[int, Detections], writer: FeatureWriter, reports: Reports
    ) -> None:
        """Write the vectors of the boxes of images from the detector's own box head, and the tables beside them."""
        tables = self._tables(rows, pooled, torch.empty(0))
        for image, one in found.items():
            first, vectors = int(self._job.plan.table.offset[image]), one.vectors
            assert vectors is not None
            for name, column in tables.items():
                writer.rows(name, first, column[rows.image == image])
            values = vectors.to(getattr(torch, self._job.settings.dtype))
            if not all_finite(values):
                report = ValueReport.from_masks(*clip_to_float16(values, partial(Tensor.float, vectors)))
                reports[image] = reports.get(image, ValueReport()) + report
            writer.features(self._dataset(pooled), image, first, values.numpy())


def _count_not_finite(maps: Maps) -> list[int]:
    """Return how many values of the maps of each image of a batch are NaN or infinite; reads maps of finite values once."""
    levels = [level for layer in maps for level in layer if level is not None]
    if all(torch.stack(level.aminmax()).isfinite().all() for level in levels):
        return [0] * len(levels[0])
    counts: list[int] = torch.stack([(~level.isfinite()).flatten(1).sum(1) for level in levels]).sum(0).tolist()
    return counts


def _in_original(found: Detections, size: tuple[int, int], target: tuple[int, int]) -> Detections:
    """Return detections on the CPU, with boxes in pixels of an image of (height, width) `size`; `target` is the input's."""

    def moved(values: Tensor) -> Tensor:
        return values.detach().cpu()

    vectors = None if found.vectors is None else moved(found.vectors)
    boxes: Tensor = resize_boxes(moved(found.boxes), list(target), list(size))
    return Detections(boxes, moved(found.labels), moved(found.scores), vectors)
