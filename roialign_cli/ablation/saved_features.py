"""Write a feature file per variant (--save-features), the same that `extract` writes with its settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from roialign_cli.ablation.grid import Variant
from roialign_cli.backbones import Backbone
from roialign_cli.extraction.job import make_layout
from roialign_cli.extraction.outcomes import known_outcomes
from roialign_cli.extraction.provenance import provenance
from roialign_cli.regions.values import ValueReport, all_finite, clip_to_float16
from roialign_cli.store.layout import check_space, create_file
from roialign_cli.store.schema import features_path
from roialign_cli.store.writer import FeatureWriter, open_writer
from roialign_cli.types import NO_VERSION, FileVersion, Plan


class SavedFeatures:
    """Write the features of all variants, or nothing if they are not saved."""

    def __init__(self, plan: Plan, layers: int, writers: Sequence[FeatureWriter], dtype: torch.dtype) -> None:
        self._plan = plan
        self._layers = layers
        self._writers = writers
        self._dtype = dtype
        self.report = ValueReport()  # of all variants

    @classmethod
    @contextmanager
    def open(
        cls,
        plan: Plan,
        backbone: Backbone,
        variants: Sequence[Variant],
        path_of: Callable[[Variant], Path] | None,
    ) -> Iterator[SavedFeatures]:
        """Lay out a file for each variant, and close all of them at the end; without `path_of` there are no files."""
        with ExitStack() as stack:
            writers = []
            for variant in variants if path_of else ():
                assert path_of is not None
                path, settings = path_of(variant), variant.settings
                identity = settings.identity() | ({} if variant.op == "roi_align" else {"op": variant.op})
                made_by = {**provenance(settings, plan, backbone), "config": json.dumps(identity)}
                layout = make_layout(backbone, settings, plan, made_by)
                check_space(path, layout.feature_bytes(plan.rows))
                create_file(path, plan, layout)
                writers.append(stack.enter_context(open_writer(path)))
            features = cls(plan, len(backbone.layers), writers, getattr(torch, variants[0].settings.dtype))
            for image, problem in known_outcomes(plan):
                if problem is None:
                    features.done(image, NO_VERSION)
                else:
                    features.failed(image, problem)
            yield features

    def rows(self, image: int, variant: int, layer: str, first: int, pooled: Tensor, levels: Tensor | None) -> None:
        """Write features [K, C, PH, PW] of rows first, first + 1, ... of an image."""
        if not self._writers:
            return
        stored = pooled.to(self._dtype).cpu()
        if not all_finite(stored):
            self.report += ValueReport.from_masks(*clip_to_float16(stored, lambda: pooled))
        writer = self._writers[variant]
        if levels is not None:
            writer.rows("levels", first, levels.to(torch.uint8).numpy())
        writer.features(features_path(layer, self._layers), image, first, stored.numpy())

    def done(self, image: int, version: FileVersion) -> None:
        """Mark an image, read from this version of its file, as done in all variants."""
        for writer in self._writers:
            writer.version(image, version)
            writer.rows("images/size", image, self._plan.sizes[image : image + 1])
            writer.done(image)

    def failed(self, image: int, problem: str) -> None:
        """Mark an image as failed in all variants."""
        for writer in self._writers:
            writer.failed(image, problem)
