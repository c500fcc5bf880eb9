"""Test deformable and position-sensitive RoI Align: the reference, torchvision, identities, errors."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from helpers.tensors import layouts, make_rois, relative_error

from roialign_cli import deform_roi_align, ps_roi_align, roi_align
from roialign_cli.errors import OperatorInputError

MAPS = torch.randn(2, 30, 11, 19, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROIS = make_rois(12, batch=2, width=38, height=22).double()
ROIS[2] = torch.tensor([0, -40, -40, 60, 50])  # the reference visits every sample
OFFSETS = torch.randn(len(ROIS), 2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MODULATION = torch.rand(len(ROIS), 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("mode", ["avg", "exact"])
@pytest.mark.parametrize("aligned", [True, False])
def test_moved_bins_equal_the_reference(mode: str, aligned: bool) -> None:
    for ratio in (0, 1, 3) if mode == "avg" else (0,):
        for modulation in (None, MODULATION):
            keywords = {
                "modulation": modulation, "spatial_scale": 0.5, "sampling_ratio": ratio, "gamma": 0.3, "aligned": aligned,
                "mode": mode,
            }  # fmt: skip
            for maps in layouts(MAPS).values():
                expected = deform_roi_align(maps, ROIS, OFFSETS, (3, 5), kernel="reference", **keywords)
                found = deform_roi_align(maps, ROIS, OFFSETS, (3, 5), **keywords)
                assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("mode", ["avg", "exact"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_no_offsets_equal_roi_align(mode: str, ratio: int) -> None:
    for aligned in (True, False):
        keywords = {"spatial_scale": 0.5, "sampling_ratio": ratio, "aligned": aligned, "mode": mode}
        expected = roi_align(MAPS, ROIS, (3, 5), **keywords)
        found = deform_roi_align(MAPS, ROIS, torch.zeros_like(OFFSETS), (3, 5), **keywords)
        assert relative_error(found, expected) < 1e-12
        twice = deform_roi_align(
            MAPS, ROIS, torch.zeros_like(OFFSETS), (3, 5), modulation=torch.full_like(MODULATION, 2), **keywords
        )
        assert relative_error(twice, 2 * expected) < 1e-12


def test_an_offset_moves_a_bin_by_a_share_of_the_box() -> None:
    """All bins moved alike are a box that is moved."""
    roi = torch.tensor([[1.0, 8, 6, 18, 14]], dtype=torch.float64)
    offsets = torch.tensor([0.5, -2.0], dtype=torch.float64)[None, :, None, None].expand(1, 2, 3, 5)
    moved = roi + torch.tensor([0, 0.5 * 0.1 * 10, -2 * 0.1 * 8, 0.5 * 0.1 * 10, -2 * 0.1 * 8], dtype=torch.float64)
    found = deform_roi_align(MAPS, roi, offsets, (3, 5), spatial_scale=0.5)
    assert relative_error(found, roi_align(MAPS, moved, (3, 5), spatial_scale=0.5)) < 1e-12


@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("size", [(3, 5), (2, 1), (1, 1)])
def test_position_sensitive_equals_torchvision(ratio: int, size: tuple[int, int]) -> None:
    filled = ROIS[(ROIS[:, 3] - ROIS[:, 1] > 0.01) & (ROIS[:, 4] - ROIS[:, 2] > 0.01)]
    expected = torchvision.ops.ps_roi_align(MAPS, filled, size, 0.5, ratio or -1)
    for maps in (
        MAPS,
        MAPS.contiguous(memory_format=torch.channels_last),
        MAPS.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        found = ps_roi_align(maps, filled, size, spatial_scale=0.5, sampling_ratio=ratio)
        assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("mode", ["avg", "exact"])
def test_position_sensitive_equals_the_reference(mode: str) -> None:
    maps, levels = [MAPS, MAPS[:, :, ::2, ::2]], torch.arange(len(ROIS)) % 2
    keywords = {"spatial_scale": [0.5, 0.25], "levels": levels, "mode": mode}
    expected = ps_roi_align(maps, ROIS, (3, 5), kernel="reference", **keywords)
    assert relative_error(ps_roi_align(maps, ROIS, (3, 5), **keywords), expected) < 1e-12
    single = [m.float() for m in maps]
    assert relative_error(ps_roi_align(single, ROIS, (3, 5), **keywords), expected) < 1e-5
    assert torch.allclose(ps_roi_align(maps, ROIS, (3, 5), reduce="mean", **keywords), expected.mean((2, 3)))


def test_each_bin_reads_its_own_channel() -> None:
    maps = torch.arange(30.0)[None, :, None, None].expand(1, 30, 4, 6)
    found = ps_roi_align(maps, torch.tensor([[0.0, 1, 1, 5, 3]]), (3, 5))
    assert found.flatten().tolist() == pytest.approx(list(range(30)))


def test_a_pyramid_and_out_of_moved_bins() -> None:
    maps, levels = [MAPS, MAPS[:, :, ::2, ::2]], torch.arange(len(ROIS)) % 2
    keywords = {"spatial_scale": [0.5, 0.25], "levels": levels}
    found = deform_roi_align(maps, ROIS, OFFSETS, (3, 5), **keywords)
    for level, scale in enumerate((0.5, 0.25)):
        mine = levels == level
        alone = deform_roi_align(maps[level], ROIS[mine], OFFSETS[mine], (3, 5), spatial_scale=scale)
        assert torch.equal(found[mine], alone)
    out = torch.empty_like(found)
    assert deform_roi_align(maps, ROIS, OFFSETS, (3, 5), out=out, **keywords) is out
    assert torch.equal(out, found)


def test_huge_offsets_and_nothing_to_pool() -> None:
    found = deform_roi_align(MAPS, ROIS, torch.full_like(OFFSETS, 1e12), (3, 5), spatial_scale=0.5)
    assert found[ROIS[:, 3] > ROIS[:, 1] + 1e-2].eq(0).all()
    assert deform_roi_align(MAPS, torch.zeros(0, 5), torch.zeros(0, 2, 3, 5), (3, 5)).shape == (0, 30, 3, 5)
    assert ps_roi_align(MAPS, torch.zeros(0, 5), (3, 5)).shape == (0, 2, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"offsets": OFFSETS[:, :1]},
            r"deform_roi_align: offsets: expected shape \[21, 2, 3, 5\], found \[21, 1, 3, 5\]",
        ),
        ({"offsets": OFFSETS[3:]}, "deform_roi_align: offsets: expected shape"),
        (
            {"offsets": OFFSETS.clone().index_fill_(0, torch.tensor([4]), math.nan)},
            "offsets row 4: expected finite numbers",
        ),
        ({"modulation": MODULATION[:, :2]}, "deform_roi_align: modulation: expected shape"),
        ({"modulation": MODULATION / 0}, "modulation row 0: expected finite numbers"),
        ({"gamma": "x"}, "deform_roi_align: gamma: expected a finite number, found 'x'"),
        ({"gamma": math.inf}, "deform_roi_align: gamma: expected a finite number"),
        ({"mode": "max"}, "deform_roi_align: mode: expected one of avg, exact"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str) -> None:
    arguments = {"features": MAPS, "rois": ROIS, "offsets": OFFSETS, "output_size": (3, 5), **change}
    with pytest.raises(OperatorInputError, match=message):
        deform_roi_align(**arguments)


def test_channels_that_bins_cannot_share() -> None:
    with pytest.raises(
        OperatorInputError, match=r"ps_roi_align: features: expected a multiple of 3 \* 7 channels, found 30"
    ):
        ps_roi_align(MAPS, ROIS, (3, 7))
