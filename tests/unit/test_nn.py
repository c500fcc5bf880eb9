"""Compare the modules with torchvision's, in a forward and a backward pass, and in training a detector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.tensors import make_rois, relative_error
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from roialign_cli import deform_roi_align
from roialign_cli.nn import DeformRoIAlign, MultiScaleRoIAlign, RoIAlign


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 0, 2])
def test_roi_align_equals_torchvision(ratio: int, aligned: bool) -> None:
    rois = make_rois(20, batch=2, width=38, height=22)[9:]
    found, expected = [], []
    for kind, results in ((RoIAlign, found), (torchvision.ops.RoIAlign, expected)):
        maps = random(2, 20, 11, 19).requires_grad_()
        pooled = kind((3, 5), 0.5, ratio, aligned)(maps, rois)
        results += [pooled.detach(), *torch.autograd.grad(pooled.square().sum(), maps)]
    assert all(relative_error(f, e) < 2e-5 for f, e in zip(found, expected, strict=True))


def pyramid() -> dict[str, Tensor]:
    sizes = {"0": (64, 80), "1": (32, 40), "pool": (16, 20), "other": (8, 10)}
    return {name: random(2, 12, *size, seed=i).requires_grad_() for i, (name, size) in enumerate(sizes.items())}


@pytest.mark.parametrize("names", [["0", "1", "pool"], ["1"], ["0", "1", "2", "pool"]])
def test_multi_scale_equals_torchvision(names: list[str]) -> None:
    boxes = [make_rois(20, batch=1, width=318, height=250, seed=i)[9:, 1:] for i in range(2)]
    found, expected = [], []
    for kind, results in ((MultiScaleRoIAlign, found), (torchvision.ops.MultiScaleRoIAlign, expected)):
        maps = pyramid()
        pooled = kind(names, 7, 2, canonical_scale=100)(maps, boxes, [(256, 320), (250, 318)])
        used = [features for name, features in maps.items() if name in names]
        results += [pooled.detach(), *torch.autograd.grad(pooled.square().sum(), used)]
    assert all(relative_error(f, e) < 2e-5 for f, e in zip(found, expected, strict=True))


def test_multi_scale_infers_scales_in_each_call() -> None:
    pool = MultiScaleRoIAlign(["0"], 2, 1)
    box, ramp = [torch.tensor([[8.0, 8, 24, 24]])], torch.arange(16.0).expand(1, 1, 16, 16)
    assert pool({"0": ramp}, box, [(32, 32)]).mean() == 8  # two pixels per cell
    assert pool({"0": ramp}, box, [(64, 64)]).mean() == 4


def test_a_missing_map_and_no_images() -> None:
    for maps, shapes in (({"a": random(1, 1, 4, 4)}, [(8, 8)]), ({"0": random(1, 1, 4, 4)}, [])):
        with pytest.raises(ValueError, match="MultiScaleRoIAlign: expected one of the maps"):
            MultiScaleRoIAlign(["0"], 2, 1)(maps, [torch.zeros(1, 4)], shapes)


def test_strides_that_do_not_double() -> None:
    maps = {"0": random(1, 1, 64, 64), "2": random(1, 1, 16, 16)}
    with pytest.raises(ValueError, match=r"expected maps whose strides double, finest first, found strides \[4, 16\]"):
        MultiScaleRoIAlign(["0", "2"], 2, 1)(maps, [torch.zeros(1, 4)], [(256, 256)])


def test_awkward_arguments() -> None:
    pool, maps = MultiScaleRoIAlign(["0"], np.int64(3), 2), {"0": random(1, 1, 4, 4)}
    assert pool(maps, [torch.zeros(0, 4)], [(8, 8)]).shape == (0, 1, 3, 3)
    for wrong in ((maps, [], [(8, 8)]), ({"0": random(1, 1, 0, 4)}, [torch.zeros(1, 4)], [(8, 8)]),
                  (maps, [torch.zeros(1, 4)], [(0, 8)]), ([maps["0"]], [torch.zeros(1, 4)], [(8, 8)])):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            pool(*wrong)


def test_deform_learns_offsets() -> None:
    maps, rois = random(2, 20, 11, 19), make_rois(20, batch=2, width=38, height=22)[9:]
    offsets, modulation = random(20, 2, 3, 5).requires_grad_(), random(20, 3, 5, seed=1).requires_grad_()
    pooled = DeformRoIAlign((3, 5), 0.5, 2, 0.2)(maps, rois, offsets, modulation)
    plain = deform_roi_align(
        maps,
        rois,
        offsets.detach(),
        (3, 5),
        modulation=modulation.detach(),
        spatial_scale=0.5,
        sampling_ratio=2,
        gamma=0.2,
    )
    assert torch.equal(pooled.detach(), plain)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(pooled.square().sum(), (offsets, modulation)))


def test_modules_are_printed_with_their_arguments() -> None:
    for module in (RoIAlign(7, 0.5, 2), MultiScaleRoIAlign(["0"], 7, 2), DeformRoIAlign(7)):
        assert "aligned=" in repr(module)
        assert "output_size=" in repr(module)


def trained(ours: bool, samples: list[tuple[Tensor, dict[str, Any]]]) -> Iterator[float]:
    """Train a detector on the sample images; yield the loss of each of 30 steps."""
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=17, min_size=160, max_size=240
    )
    if ours:
        pool = model.roi_heads.box_roi_pool
        model.roi_heads.box_roi_pool = MultiScaleRoIAlign(pool.featmap_names, pool.output_size, pool.sampling_ratio)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # statistics of one image make training chaotic: the last bit decides after a few steps
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    for step in range(30):
        image, target = samples[step % len(samples)]
        loss = sum(model([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


@pytest.mark.slow
def test_a_detector_learns_the_same() -> None:
    annotations = json.loads(SAMPLE_BOXES.read_text())
    labels = sorted({label for image in annotations.values() for label in image["labels"]})
    samples = []
    for name, image in annotations.items():
        target = {
            "boxes": torch.tensor(image["boxes"]).float(),
            "labels": torch.tensor([labels.index(label) + 1 for label in image["labels"]]),
        }
        samples.append((to_tensor(Image.open(SAMPLE_IMAGES / name).convert("RGB")), target))
    found, expected = list(trained(True, samples)), list(trained(False, samples))
    assert found == pytest.approx(expected, rel=1e-3)
    assert sum(found[-5:]) < 0.95 * sum(found[:5])
    assert list(trained(True, samples)) == found  # the same bits
