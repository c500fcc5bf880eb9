"""The CUDA kernel for rotated boxes, masks and moved bins on a device: against the CPU kernel, and twice with the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.tensors import make_rois, relative_error

from roialign_cli import deform_roi_align, ps_roi_align, roi_align, roi_align_masked, roi_align_rotated

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
pytestmark = pytest.mark.gpu

ROIS = make_rois(200, batch=2, width=38, height=22)
TURNED = torch.cat([ROIS.abs(), torch.arange(len(ROIS))[:, None] * 7.0], dim=1)
OFFSETS = torch.randn(len(ROIS), 2, 7, 7, generator=torch.Generator().manual_seed(0))
MASKS = [[[1, 1, 30, 3, 20, 20]]] * len(ROIS)
Call = Callable[[torch.Tensor], torch.Tensor]
CALLS: dict[str, Call] = {
    "rotated": lambda maps: roi_align_rotated(maps, TURNED, 7, spatial_scale=0.5, sampling_ratio=2),
    "rotated max": lambda maps: roi_align_rotated(maps, TURNED, 7, spatial_scale=0.5, sampling_ratio=2, mode="max"),
    "rotated exact": lambda maps: roi_align_rotated(maps, TURNED, (3, 5), spatial_scale=0.5, mode="exact"),
    "masked": lambda maps: roi_align_masked(maps, ROIS, MASKS, 7, spatial_scale=0.5)[0],
    "deformable": lambda maps: deform_roi_align(maps, ROIS, OFFSETS, 7, spatial_scale=0.5),
    "position-sensitive": lambda maps: ps_roi_align(maps, ROIS, (2, 2), spatial_scale=0.5),
    "many bins": lambda maps: roi_align_rotated(maps, TURNED[:20], (40, 50), spatial_scale=0.5, sampling_ratio=1),
}


def features(channels: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, channels, 11, 19, generator=torch.Generator().manual_seed(channels)).to(dtype)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_the_cpu_kernel(device: torch.device, dtype: torch.dtype, name: str) -> None:
    for channels in (4, 20, 256):
        maps = features(channels, dtype)
        expected = CALLS[name](maps)
        for there in (maps.to(device), maps.to(device).contiguous(memory_format=torch.channels_last)):
            found = CALLS[name](there)
            assert found.device == device
            assert relative_error(found.cpu(), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", CALLS)
def test_the_same_call_gives_the_same_bits(device: torch.device, name: str) -> None:
    maps = features(256, torch.float32).to(device)
    assert torch.equal(CALLS[name](maps), CALLS[name](maps))


def test_rois_and_coverage_on_the_device(device: torch.device) -> None:
    maps = features(16, torch.float32)
    expected, covered = roi_align_masked(maps, ROIS, MASKS, 3, spatial_scale=0.5)
    found, coverage = roi_align_masked(maps.to(device), ROIS.to(device), MASKS, 3, spatial_scale=0.5)
    assert relative_error(found.cpu(), expected) < 1e-5
    assert coverage.device == device
    assert torch.equal(coverage.cpu(), covered)


def test_many_lists_in_several_launches(device: torch.device) -> None:
    """Large boxes with an adaptive grid have more entries than one launch takes."""
    maps = torch.randn(1, 32, 200, 336)
    rois = torch.tensor([[0, 168.0, 100, 300, 180, 20]]).repeat(300, 1)
    expected = roi_align_rotated(maps, rois, 7)
    assert relative_error(roi_align_rotated(maps.to(device), rois, 7).cpu(), expected) < 1e-5


GRADIENTS = {
    **{name: call for name, call in CALLS.items() if name != "rotated max"},
    "boxes": lambda maps: roi_align(maps, ROIS, 7, spatial_scale=0.5),
    "boxes exact": lambda maps: roi_align(maps, ROIS, (3, 5), spatial_scale=0.5, mode="exact"),
    "boxes max": lambda maps: roi_align(maps, ROIS[9:], 7, spatial_scale=0.5, sampling_ratio=2, mode="max"),
    "reduced": lambda maps: roi_align(maps, ROIS, 7, spatial_scale=0.5, reduce="mean"),
}


def gradient(name: str, maps: torch.Tensor) -> torch.Tensor:
    leaf = maps.clone().requires_grad_()
    result = GRADIENTS[name](leaf)
    passed = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return torch.autograd.grad(result, leaf, passed)[0]


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients_equal_those_of_the_cpu(device: torch.device, dtype: torch.dtype, name: str) -> None:
    for channels in (4, 256):
        maps = features(channels, dtype)
        expected = gradient(name, maps)
        for there in (maps.to(device), maps.to(device).contiguous(memory_format=torch.channels_last)):
            found = gradient(name, there)
            assert found.device == device
            assert found.dtype == dtype
            assert relative_error(found.cpu(), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_same_backward_pass_gives_the_same_bits(device: torch.device, name: str) -> None:
    maps = features(256, torch.float32).to(device)
    assert torch.equal(gradient(name, maps), gradient(name, maps))


def test_gradients_to_boxes_and_offsets(device: torch.device) -> None:
    maps = features(16, torch.float32)
    found = []
    for place in (torch.device("cpu"), device):
        rois, offsets = ROIS[9:].to(place).requires_grad_(), OFFSETS[9:].to(place).requires_grad_()
        there = maps.to(place)
        loss = roi_align(there, rois, 7, spatial_scale=0.5, mode="exact").square().sum()
        loss = loss + deform_roi_align(there, ROIS[9:].to(place), offsets, 7, spatial_scale=0.5).square().sum()
        found.append([g.cpu() for g in torch.autograd.grad(loss, (rois, offsets))])
    assert all(relative_error(there, here) < 1e-4 for here, there in zip(*found, strict=True))
