"""Test points on maps: torch's grid_sample inside the map, the boundary rule outside, pyramids, types, errors."""

from __future__ import annotations

import pytest
import torch
from helpers.tensors import relative_error
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from roialign_cli import point_sample, roi_align
from roialign_cli.errors import OperatorInputError

MAPS = torch.randn(2, 5, 11, 19, generator=torch.Generator().manual_seed(0))


def by_grid_sample(maps: torch.Tensor, points: torch.Tensor, scale: float, *, aligned: bool) -> torch.Tensor:
    """Sample one point after another; grid_sample counts from -1 to 1 over the whole map."""
    found = []
    for n, x, y in points.double().tolist():
        u, v = (x * scale + (0.0 if aligned else 0.5), y * scale + (0.0 if aligned else 0.5))
        place = torch.tensor([2 * u / maps.shape[3] - 1, 2 * v / maps.shape[2] - 1], dtype=torch.float64)
        one = functional.grid_sample(
            maps[int(n)][None].double(), place.view(1, 1, 1, 2), padding_mode="border", align_corners=False
        )
        found.append(one.flatten())
    return torch.stack(found)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1 / 14, 0.5])
def test_equals_grid_sample_inside_the_map(scale: float, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(60, 3, generator=generator, dtype=torch.float64) * torch.tensor([0, 18.4 / scale, 10.4 / scale])
    points[:, 0] = torch.arange(60) % 2
    points[:4, 1:] = torch.tensor([[0, 0], [18, 10], [0.5, 0.5], [9, 0]]) / scale
    expected = by_grid_sample(MAPS, points, scale, aligned=aligned)
    for form in (torch.contiguous_format, torch.channels_last):
        found = point_sample(MAPS.contiguous(memory_format=form), points, spatial_scale=scale, aligned=aligned)
        assert found.shape == (60, 5)
        assert relative_error(found, expected) < 1e-6


@given(x=st.floats(-5, 24), y=st.floats(-5, 16))
def test_outside_a_cell_counts_as_the_border_and_the_rest_as_zero(x: float, y: float) -> None:
    point = torch.tensor([[1, x, y]], dtype=torch.float64)
    found = point_sample(MAPS, point)
    inside = -1 <= x - 0.5 <= 19 and -1 <= y - 0.5 <= 11
    expected = by_grid_sample(MAPS, point, 1, aligned=True) if inside else torch.zeros(1, 5)
    assert torch.allclose(found.double(), expected.double(), atol=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_pyramid(aligned: bool) -> None:
    maps = [MAPS, MAPS[:, :, ::2, ::2]]
    points = torch.tensor([[0, 8.0, 9.0], [1, 20.0, 3.0], [0, 30.0, 17.0]])
    levels = torch.tensor([0, 1, 1])
    found = point_sample(maps, points, spatial_scale=[0.5, 0.25], levels=levels, aligned=aligned)
    for i, level in enumerate(levels.tolist()):
        alone = point_sample(maps[level], points[i : i + 1], spatial_scale=[0.5, 0.25][level], aligned=aligned)
        assert torch.allclose(found[i], alone[0], atol=1e-6)


def test_a_box_of_one_sample_is_its_centre() -> None:
    rois = torch.tensor([[0, 2.0, 3, 7, 4], [1, 11, 1, 12, 8]])
    centres = torch.stack([rois[:, 0], (rois[:, 1] + rois[:, 3]) / 2, (rois[:, 2] + rois[:, 4]) / 2], dim=1)
    expected = roi_align(MAPS, rois, 1, sampling_ratio=1).flatten(1)
    assert relative_error(point_sample(MAPS, centres), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_and_no_points(dtype: torch.dtype) -> None:
    points = torch.tensor([[0, 3.2, 4.1]])
    found = point_sample(MAPS.to(dtype), points)
    assert found.dtype == dtype
    assert relative_error(found, point_sample(MAPS.to(dtype).double(), points)) < 1e-2
    assert point_sample(MAPS.to(dtype), torch.empty(0, 3)).shape == (0, 5)


@pytest.mark.parametrize(
    ("points", "found"),
    [
        (torch.zeros(2, 5), r"point_sample: points: expected shape \[P, 3\] \(batch index, x, y\), found \[2, 5\]"),
        ([[0, 1, 2]], "points: expected shape"),
        (torch.tensor([[0, 1, 2], [0, torch.nan, 1]]), "point_sample: points row 1: expected finite numbers"),
        (torch.tensor([[2.0, 1, 2]]), "points row 0: expected a whole batch index from 0 to 1"),
        (torch.tensor([[0.5, 1, 2]]), "points row 0: expected a whole batch index"),
        (torch.zeros(2, 3, dtype=torch.bool), "points: expected real numbers"),
    ],
)
def test_mistakes(points: torch.Tensor, found: str) -> None:
    with pytest.raises(OperatorInputError, match=found):
        point_sample(MAPS, points)


def test_inside_compile() -> None:
    points = torch.tensor([[0, 3.2, 4.1], [1, 7.0, 2.5]])
    compiled = torch.compile(point_sample, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(MAPS, points), point_sample(MAPS, points))
