"""Find boxes with the heads of torchvision's detectors, on maps that are computed already.

Anchors, proposals, box coders and heads are the model's own; thresholds and numbers of boxes are those of the settings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes
from torchvision.ops.poolers import LevelMapper

from roialign_cli.config import Settings
from roialign_cli.errors import BackboneError
from roialign_cli.ops import roi_align

SMALLEST_SIDE = 1e-2  # pixels, of boxes that torchvision's box heads keep


@dataclass(frozen=True)
class Detections:
    """What was found in one image, K boxes, those with the highest scores first.

    boxes [K, 4] are x1, y1, x2, y2 in pixels of the network input, labels [K] int64 (zeros for proposals), scores [K], and
    vectors [K, D] those of the box head, for the proposals that became the boxes; None if the model has none.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    vectors: Tensor | None = None


class Detector(nn.Module):
    """The part of a detection model behind its feature pyramid.

    `names` gives the name of each level's map by torchvision's key, in the order of the model, and `strides` its stride.
    `categories` names the labels, if the weights do.
    """

    def __init__(
        self,
        model: Any,
        names: Mapping[str, str],
        strides: Mapping[str, int],
        settings: Settings,
        categories: Sequence[str],
    ) -> None:
        super().__init__()
        self.model = model
        self.names = dict(names)
        self.categories = tuple(categories)
        self._settings = settings
        self.is_two_stage = hasattr(model, "roi_heads")
        if not self.is_two_stage:
            for name in ("proposals", "class_agnostic"):
                if getattr(settings, name):
                    expected = "expected a two-stage detector, found one without proposals"
                    raise BackboneError("backbone-detect", f"{settings.backbone}: {name}: {expected}")
            model.score_thresh, model.nms_thresh = settings.min_score, settings.nms
            model.detections_per_img = settings.max_boxes
            model.transform = _PassedOn()
        elif settings.proposals:
            model.rpn.score_thresh, model.rpn.nms_thresh = settings.min_score, settings.nms
            model.rpn._post_nms_top_n = dict.fromkeys(model.rpn._post_nms_top_n, settings.max_boxes)
        else:
            model.roi_heads.box_roi_pool = _BoxPool(model.roi_heads.box_roi_pool, strides)
        model.backbone = _Computed()

    @torch.inference_mode()
    def forward(self, images: Tensor, maps: Mapping[str, Tensor], size: tuple[int, int]) -> list[Detections]:
        """Return what is found in images [N, 3, H, W] of (height, width) `size` before padding, given their maps by name."""
        features = OrderedDict((key, maps[name].float()) for key, name in self.names.items())
        listed = ImageList(images.to(next(iter(features.values())).device), [size] * len(images))
        if not self.is_two_stage:
            return self._detect_in_one_stage(listed, features)
        proposals, scores = self._propose(listed, features)
        if self._settings.proposals:
            return [
                Detections(boxes, torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device), objectness)
                for boxes, objectness in zip(proposals, scores, strict=True)
            ]
        heads = self.model.roi_heads
        vectors = heads.box_head(heads.box_roi_pool(features, proposals, listed.image_sizes))
        logits, deltas = heads.box_predictor(vectors)
        boxes = heads.box_coder.decode(deltas, proposals).view(*logits.shape, 4)  # [sum of proposals, classes, 4]
        counts = [len(found) for found in proposals]
        parts = zip(boxes.split(counts), logits.softmax(-1).split(counts), vectors.split(counts), strict=True)
        return [self._select(*part, size) for part in parts]

    def _detect_in_one_stage(self, images: ImageList, features: OrderedDict[str, Tensor]) -> list[Detections]:
        """Return what a model finds whose head classifies anchors or points at once."""
        self.model.backbone.maps, self.model.transform.images = features, images
        found = self.model(list(images.tensors))
        return [Detections(one["boxes"], one["labels"], one["scores"]) for one in found]

    def _propose(self, images: ImageList, features: OrderedDict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the proposals of each image and their scores, as `RegionProposalNetwork.forward` of torchvision does."""
        rpn, maps = self.model.rpn, list(features.values())
        objectness, deltas = rpn.head(maps)
        anchors = rpn.anchor_generator(images, maps)
        per_level = [one[0].numel() for one in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        proposals = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        found: tuple[list[Tensor], list[Tensor]] = rpn.filter_proposals(
            proposals, objectness, images.image_sizes, per_level
        )
        return found

    def _select(self, boxes: Tensor, scores: Tensor, vectors: Tensor, size: tuple[int, int]) -> Detections:
        """Return the boxes of an image that pass the thresholds, as `RoIHeads.postprocess_detections` of torchvision does.

        boxes [P, classes, 4] and scores [P, classes] are those of each proposal for each class, of which the first is the
        background.
        """
        settings = self._settings
        proposal, label = torch.where(scores[:, 1:] > settings.min_score)
        label = label + 1
        boxes, scores = clip_boxes_to_image(boxes, size)[proposal, label], scores[proposal, label]
        keep = remove_small_boxes(boxes, SMALLEST_SIDE)
        group = torch.zeros_like(label) if settings.class_agnostic else label
        keep = keep[batched_nms(boxes[keep], scores[keep], group[keep], settings.nms)][: settings.max_boxes]
        return Detections(boxes[keep], label[keep], scores[keep], vectors[proposal[keep]])


class _Computed(nn.Module):
    """Stand for a backbone whose maps are computed already."""

    maps: OrderedDict[str, Tensor]

    def forward(self, _: Tensor) -> OrderedDict[str, Tensor]:
        return self.maps


class _PassedOn(nn.Module):
    """Stand for the transform of a detector whose images are transformed already."""

    images: ImageList

    def forward(self, _: list[Tensor], targets: None) -> tuple[ImageList, None]:
        return self.images, targets

    def postprocess(self, found: Any, *_: Any) -> Any:
        return found


class _BoxPool(nn.Module):
    """Pool proposals as torchvision's MultiScaleRoIAlign does, with our kernels."""

    def __init__(self, pool: Any, strides: Mapping[str, int]) -> None:
        super().__init__()
        self._keys = [key for key in strides if key in pool.featmap_names]
        self._output_size, self._ratio = pool.output_size, pool.sampling_ratio
        self._scales = [1 / strides[key] for key in self._keys]
        lowest, highest = (strides[self._keys[end]].bit_length() - 1 for end in (0, -1))
        self._levels = LevelMapper(lowest, highest, pool.canonical_scale, pool.canonical_level)

    def forward(self, features: Mapping[str, Tensor], boxes: list[Tensor], _: Sequence[tuple[int, int]]) -> Tensor:
        """Return the features [sum of K, C, PH, PW] of boxes [K, 4] of each image, in pixels of the network input."""
        rois = torch.cat([torch.cat([torch.full_like(own[:, :1], i), own], 1) for i, own in enumerate(boxes)])
        return roi_align(
            [features[key] for key in self._keys], rois, self._output_size, spatial_scale=self._scales,
            sampling_ratio=max(self._ratio, 0), aligned=False, levels=self._levels(boxes), validate=False,
        )  # fmt: skip
