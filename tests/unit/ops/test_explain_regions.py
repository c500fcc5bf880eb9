"""Test the explanations of a rotated box and of a mask: closed forms, the operators, errors."""

from __future__ import annotations

import math

import pytest
import torch

from roialign_cli import roi_align_rotated
from roialign_cli.errors import ConfigError
from roialign_cli.ops.explain_regions import explain_mask, explain_rotated, parse_numbers


def test_a_linear_map_gives_the_centre_of_a_turned_bin() -> None:
    """The map is 10 y + x, so a bin inside of it has the value at its centre."""
    told = explain_rotated((12, 9, 8, 4, 30), (2, 2), 0.5, 0, True)
    assert told.centre == (5.5, 4)
    assert told.sides == (4, 2)
    assert told.grid == (2, 1)
    assert told.offset == (-1.5, -0.5)
    a = math.radians(30)
    for p, yy in enumerate((-0.5, 0.5)):
        for q, xx in enumerate((-1, 1)):
            u, v = yy * math.sin(a) + xx * math.cos(a) + 5.5, yy * math.cos(a) - xx * math.sin(a) + 4
            assert told.pooled[p, q] == pytest.approx(10 * v + u)
    u, v = told.place
    assert told.lookup.value == pytest.approx(10 * v + u)
    unaligned = explain_rotated((6, 4, 0.5, 8, 0), (1, 1), 1, 2, False)
    assert unaligned.sides == (1, 8)
    assert unaligned.centre == (6, 4)


def test_the_explanation_is_the_operator_s() -> None:
    told = explain_rotated((6, 4, 8, 4, 75), (2, 3), 1, 0, False)
    rows, columns = torch.meshgrid(torch.arange(30.0), torch.arange(30.0), indexing="ij")
    rois = torch.tensor([[0, 6, 4, 8, 4, 75.0]])
    expected = roi_align_rotated((10 * rows + columns)[None, None].double(), rois, (2, 3), aligned=False)
    assert told.pooled == pytest.approx(expected[0, 0].numpy(), rel=1e-6)


def test_a_triangle_has_the_coverage_and_centroid_of_geometry() -> None:
    told = explain_mask((1, 1, 7, 5), (1, 1, 7, 1, 7, 5), (1, 1), 1.0, False)
    assert told.coverage == pytest.approx(0.5)
    assert told.pooled == pytest.approx(10 * (1 + 1 + 5) / 3 + (1 + 7 + 7) / 3)
    assert told.corners == ((1, 1), (7, 1), (7, 5))
    assert told.first == (0, 0)
    assert sum(told.weights) == pytest.approx(1)
    assert sum(w * v for w, v in zip(told.weights, told.values, strict=True)) == pytest.approx(told.pooled[0, 0])
    parts = explain_mask((1, 1, 7, 5), (1, 1, 7, 1, 7, 5), (2, 3), 1.0, False)
    assert parts.coverage.flatten().tolist() == pytest.approx([1 / 3, 11 / 12, 1, 0, 1 / 12, 2 / 3])


def test_a_mask_beside_its_box() -> None:
    told = explain_mask((1, 1, 3, 3), (5, 5, 7, 5, 7, 7), (1, 1), 1.0, True)
    assert told.first is None
    assert told.pooled == 0


@pytest.mark.parametrize(
    ("text", "count", "found"),
    [("1,2,3", 5, "expected 5 finite numbers"), ("a,b", 5, "5 finite numbers"), ("1,2,3,nan,5", 5, "5 finite numbers"),
     ("1,2,3,4", None, "at least 3 corners"), ("1,2,3,4,5,6,7", None, "at least 3 corners")],
)  # fmt: skip
def test_numbers_that_are_not_right(text: str, count: int | None, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        parse_numbers("roi", text, count, "example")
    with pytest.raises(ConfigError, match="width and height"):
        explain_rotated((1, 1, -1, 1, 0), (1, 1), 1, 0, True)
    with pytest.raises(ConfigError, match="a map of at most 256 cells"):
        explain_rotated((1, 1, 9999, 1, 0), (1, 1), 1, 0, True)
