"""Test masks: the reference, pycocotools, dense sampling, the identities of masks, what vanishes elsewhere, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tensors import layouts, make_rois, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from roialign_cli import roi_align, roi_align_masked
from roialign_cli.errors import OperatorInputError
from roialign_cli.ops.masks import Trapezoids, parse_masks

HEIGHT, WIDTH = 22, 38  # of the image, in pixels
MAPS = torch.randn(2, 17, 11, 19, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STAR = [[19, 1, 24, 20, 3, 8, 35, 8.5, 14, 20.25]]  # its edges cross
PARTS = [[5, 3, 30, 10, 20, 20.5], [10, 5, 28, 5, 28, 18, 10, 18]]  # they overlap


def masks_of(count: int, kind: str) -> list[Any]:
    """Return masks of an image of 38 x 22 pixels."""
    rng = np.random.default_rng(0)
    if kind == "polygons":
        return [(STAR, PARTS, [[1, 1, 1, 20, 37, 20, 37, 1]])[i % 3] for i in range(count)]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    discs = [(rows - 11) ** 2 + (columns - 19) ** 2 < radius**2 for radius in range(1, 20, 5)]
    return [rng.random((HEIGHT, WIDTH)) < i / count if i % 2 else discs[i % 4] for i in range(count)]


@pytest.mark.parametrize("kind", ["polygons", "arrays"])
@pytest.mark.parametrize("mode", ["exact", "avg"])
@pytest.mark.parametrize(("aligned", "normalize"), list(itertools.product((True, False), ("mask", "bin"))))
def test_equals_the_reference(kind: str, mode: str, aligned: bool, normalize: str) -> None:
    rois = make_rois(5, batch=2, width=WIDTH, height=HEIGHT).double()
    rois[2] = torch.tensor([0, -40, -40, 60, 50])  # the reference visits every sample
    masks = masks_of(len(rois), kind)
    for ratio in (0, 3) if mode == "avg" else (0,):
        keywords = {
            "spatial_scale": 0.5, "sampling_ratio": ratio, "mode": mode, "aligned": aligned, "normalize": normalize,
        }  # fmt: skip
        for maps in layouts(MAPS).values():
            expected, covered = roi_align_masked(maps, rois, masks, (2, 3), kernel="reference", **keywords)
            found, coverage = roi_align_masked(maps, rois, masks, (2, 3), **keywords)
            assert relative_error(found, expected) < 1e-8
            assert torch.allclose(coverage, covered, atol=1e-7)


def test_run_lengths_are_those_of_pycocotools() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    rois = make_rois(20, batch=2, width=WIDTH, height=HEIGHT)
    arrays = masks_of(len(rois), "arrays")
    expected, covered = roi_align_masked(MAPS, rois, arrays, 3, spatial_scale=0.5)
    compressed = [mask.encode(np.asfortranarray(array.astype(np.uint8))) for array in arrays]
    text = [{"size": run["size"], "counts": run["counts"].decode()} for run in compressed]
    plain = [
        {"size": list(a.shape), "counts": [len(list(g)) for _, g in itertools.groupby([False, *a.T.flatten()])]}
        for a in arrays
    ]
    for run in plain:
        run["counts"][0] -= 1  # the False that was put in front
    for masks in (compressed, text, plain, [torch.from_numpy(a) for a in arrays], np.stack(arrays)):
        found, coverage = roi_align_masked(MAPS, rois, masks, 3, spatial_scale=0.5)
        assert torch.equal(found, expected)
        assert torch.equal(coverage, covered)


def test_polygons_along_pixels_equal_run_lengths() -> None:
    array = np.zeros((HEIGHT, WIDTH), np.bool_)
    array[3:17, 5:30] = True
    array[8:12, 20:36] = True
    polygons = [[5, 3, 30, 3, 30, 17, 5, 17], [20, 8, 20, 12, 36, 12, 36, 8]]
    rois = make_rois(12, batch=2, width=WIDTH, height=HEIGHT)
    one = roi_align_masked(MAPS, rois, [array] * len(rois), (3, 4), spatial_scale=0.5)
    other = roi_align_masked(MAPS, rois, [polygons] * len(rois), (3, 4), spatial_scale=0.5)
    assert relative_error(other[0], one[0]) < 1e-8
    assert torch.allclose(one[1], other[1], atol=1e-6)


def test_a_full_mask_equals_exact() -> None:
    rois = make_rois(20, batch=2, width=WIDTH, height=HEIGHT).double()
    full = [[[-2e4, -2e4, 2e4, -2e4, 2e4, 2e4, -2e4, 2e4]]] * len(rois)
    expected = roi_align(MAPS, rois, (3, 5), spatial_scale=0.5, mode="exact")
    for normalize in ("mask", "bin"):
        found, coverage = roi_align_masked(MAPS, rois, full, (3, 5), spatial_scale=0.5, normalize=normalize)
        filled = (rois[:, 3] > rois[:, 1]) & (rois[:, 4] > rois[:, 2])
        assert relative_error(found[filled], expected[filled]) < 1e-8
        assert relative_error(found, expected) < 1e-5  # an empty bin is one of 1e-6 cells here
        assert torch.allclose(coverage, torch.ones(()))


POLYGON = st.lists(st.tuples(st.floats(0, 38), st.floats(0, 22)), min_size=3, max_size=7).map(
    lambda corners: [value for corner in corners for value in corner]
)


@settings(deadline=None)
@given(st.lists(POLYGON, min_size=1, max_size=3))
def test_a_constant_map_gives_one_and_a_linear_map_the_centroid(polygons: list[list[float]]) -> None:
    ramp = torch.arange(44, dtype=torch.float64)
    maps = torch.stack([torch.ones(28, 44, dtype=torch.float64), ramp.expand(28, 44), ramp[:28, None].expand(28, 44)])
    roi = torch.tensor([[0, 0, 0, 40, 24]], dtype=torch.float64)
    found, coverage = roi_align_masked(maps[None], roi, [polygons], 1)
    pieces = parse_masks([polygons], 1)
    area = float(pieces.areas())
    if area < 1e-3:
        return
    assert found[0, 0].item() == pytest.approx(1, abs=1e-9)
    assert coverage.item() == pytest.approx(area / (40 * 24), rel=1e-5)
    # Dense samples of the union by the even-odd rule of each polygon's winding number would be slow; its pieces suffice.
    y0, y1, left0, right0, left1, right1 = pieces.sides.unbind(1)
    height, wide0, wide1 = y1 - y0, right0 - left0, right1 - left1
    moment_y = (height * (wide0 * (2 * y0 + y1) + wide1 * (y0 + 2 * y1)) / 6).sum()
    squares = [(a * a + a * b + b * b) for a, b in ((right0, right1), (left0, left1))]
    moment_x = (height * (squares[0] - squares[1]) / 6).sum()
    inside = (y0.min() >= 0.5) & (
        torch.minimum(left0, left1).min() >= 0.5
    )  # the surface is flat before the first centre
    if inside:
        assert found[0, 1].item() == pytest.approx(float(moment_x) / area - 0.5, abs=1e-6)
        assert found[0, 2].item() == pytest.approx(float(moment_y) / area - 0.5, abs=1e-6)


def winding_number(polygon: list[float], u: float, v: float) -> int:
    """Return how often a polygon goes around a point (Sunday, Inclusion of a Point in a Polygon, 2001)."""
    corners = list(zip(polygon[::2], polygon[1::2], strict=True))
    total = 0
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        side = (x1 - x0) * (v - y0) - (u - x0) * (y1 - y0)
        if y0 <= v < y1 and side > 0:
            total += 1
        if y1 <= v < y0 and side < 0:
            total -= 1
    return total


@settings(deadline=None)
@given(st.lists(POLYGON, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_pieces_cover_the_union_of_polygons_once(polygons: list[list[float]], random: Any) -> None:
    """Polygons may cross themselves and each other; a point is in the union if one of them goes around it."""
    exact = [[float(np.float32(value)) for value in polygon] for polygon in polygons]
    sides = parse_masks([exact], 1).sides.numpy()
    for _ in range(40):
        u, v = random.uniform(0, 38), random.uniform(0, 22)
        around = any(winding_number(polygon, u, v) for polygon in exact)
        share = (v - sides[:, 0]) / (sides[:, 1] - sides[:, 0])
        left, right = (sides[:, i] + share * (sides[:, i + 2] - sides[:, i]) for i in (2, 3))
        inside = (sides[:, 0] <= v) & (v < sides[:, 1]) & (left <= u) & (u < right)
        near = np.abs(np.concatenate([left - u, right - u, sides[:, 0] - v, sides[:, 1] - v])).min(initial=1) < 1e-9
        assert near or int(inside.sum()) == int(around)


GRID_POLYGON = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=3, max_size=7).map(
    lambda corners: [9.5 * value for corner in corners for value in corner]
)


@settings(deadline=None)
@given(st.lists(st.lists(GRID_POLYGON, min_size=1, max_size=2), min_size=2, max_size=5))
def test_masks_with_upright_edges_do_not_disturb_each_other(masks: list[Any]) -> None:
    """Some pieces of these polygons are rectangles, others are not; RoIs of one thread share scratch memory."""
    rois = torch.tensor([[0, 1.0, 1, 37, 21]], dtype=torch.float64).repeat(len(masks), 1)
    found, coverage = roi_align_masked(MAPS, rois, masks, (2, 3), spatial_scale=0.5)
    expected, covered = roi_align_masked(MAPS, rois, masks, (2, 3), spatial_scale=0.5, kernel="reference")
    assert torch.allclose(coverage, covered, atol=1e-6)
    assert torch.allclose(found * coverage[:, None], expected * covered[:, None], atol=1e-6)


def test_a_house_keeps_its_wall() -> None:
    """A rectangle above a trapezoid that begins at the same corners, but ends elsewhere."""
    rois = torch.tensor([[0, 0.0, 0, 20, 20]]).repeat(2, 1)
    masks = [[[0.0, 0, 10, 0, 10, 10, 20, 20, 0, 20]], [[5.0, 5, 9, 5, 9, 9, 5, 9]]]
    _, coverage = roi_align_masked(MAPS[:1], rois, masks, 2, spatial_scale=0.5)
    assert torch.allclose(coverage[0], torch.tensor([[1, 0], [1, 0.5]]))
    assert torch.allclose(coverage[1], torch.tensor([[0.16, 0], [0, 0]]))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_disjoint_masks_add_by_area(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, (HEIGHT, WIDTH))
    roi = torch.tensor([[0, 3.3, 2.1, 31.7, 19.9]], dtype=torch.float64)

    def pool(mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        found, coverage = roi_align_masked(MAPS, roi, [mask], (2, 3), spatial_scale=0.5)
        return found, coverage[:, None]

    one, two, both = (pool(mask) for mask in (kinds == 1, kinds == 2, kinds > 0))
    assert torch.allclose(one[0] * one[1] + two[0] * two[1], both[0] * both[1], atol=1e-6)
    by_bin = roi_align_masked(MAPS, roi, [kinds == 1], (2, 3), spatial_scale=0.5, normalize="bin")[0]
    assert torch.allclose(by_bin, one[0] * one[1], atol=1e-6)


def test_many_samples_converge_to_the_exact_mean() -> None:
    roi = torch.tensor([[1, 2.2, 1.1, 36, 21]], dtype=torch.float64)
    exact, coverage = roi_align_masked(MAPS, roi, [[STAR[0]]], 2, spatial_scale=0.5)
    found, covered = roi_align_masked(MAPS, roi, [[STAR[0]]], 2, spatial_scale=0.5, mode="avg", sampling_ratio=400)
    assert relative_error(found, exact) < 5e-3
    assert torch.allclose(covered, coverage, atol=5e-3)


def test_no_small_disc_vanishes() -> None:
    """Most small discs are lost if their masks are resized to a map of stride 16 and thresholded."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64] + 0.5
    centres, radii = rng.uniform(4, 60, (1000, 2)), rng.uniform(0.5, 1, 1000)
    discs = [(rows - y) ** 2 + (columns - x) ** 2 < r * r for (x, y), r in zip(centres, radii, strict=True)]
    discs = [disc if disc.any() else (rows == int(y) + 0.5) & (columns == int(x) + 0.5)
             for disc, (x, y) in zip(discs, centres, strict=True)]  # fmt: skip
    rois = torch.tensor([[0, 0, 0, 64, 64]] * len(discs), dtype=torch.float64)
    found, coverage = roi_align_masked(torch.ones(1, 1, 4, 4), rois, discs, 1, spatial_scale=1 / 16)
    assert torch.allclose(found, torch.ones(()))
    assert torch.allclose(coverage.flatten() * 64 * 64, torch.tensor([float(disc.sum()) for disc in discs]))
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(np.stack(discs)).float()[:, None], size=(4, 4), mode="bilinear", align_corners=False
    )
    assert int((resized > 0.5).flatten(1).any(1).sum()) < 300


def test_a_mask_beside_its_box() -> None:
    array = np.zeros((HEIGHT, WIDTH), np.bool_)
    array[:5, :5] = True
    rois = torch.tensor([[0, 20.0, 10, 30, 20], [0, 0, 0, 30, 20]])
    found, coverage = roi_align_masked(MAPS, rois, [array, np.zeros_like(array)], 2, spatial_scale=0.5)
    assert found.eq(0).all()
    assert coverage.eq(0).all()


def test_a_pyramid_a_reduction_and_half_types() -> None:
    rois = make_rois(10, batch=2, width=WIDTH, height=HEIGHT)
    masks = masks_of(len(rois), "polygons")
    maps, levels = [MAPS, MAPS[:, :, ::2, ::2]], torch.arange(len(rois)) % 2
    keywords = {"spatial_scale": [0.5, 0.25], "levels": levels}
    found, coverage = roi_align_masked(maps, rois, masks, 3, **keywords)
    for level, scale in enumerate((0.5, 0.25)):
        mine = torch.nonzero(levels == level).flatten()
        alone = roi_align_masked(maps[level], rois[mine], [masks[i] for i in mine], 3, spatial_scale=scale)
        assert torch.equal(found[mine], alone[0])
        assert torch.equal(coverage[mine], alone[1])
    whole, _ = roi_align_masked(maps, rois, masks, 1, **keywords)
    filled = (rois[:, 3] > rois[:, 1]) & (rois[:, 4] > rois[:, 2])
    mean = roi_align_masked(maps, rois, masks, 3, reduce="mean", **keywords)[0]
    assert torch.allclose(mean[filled], whole.flatten(1)[filled], atol=1e-6)  # the mean over the mask
    below = [torch.full_like(m, -1) for m in maps]
    largest, coverage = roi_align_masked(below, rois, masks, 3, reduce="max", **keywords)
    touched = coverage.flatten(1).any(1)
    assert torch.allclose(largest, torch.where(touched, -1.0, 0.0)[:, None].double())
    half = roi_align_masked([m.half() for m in maps], rois, masks, 3, dtype=torch.float32, **keywords)[0]
    assert relative_error(half, found) < 2e-3
    out = torch.empty_like(found)
    assert roi_align_masked(maps, rois, masks, 3, out=out, **keywords)[0] is out


def test_pieces_can_be_taken_scaled_and_moved() -> None:
    masks = masks_of(7, "polygons") + masks_of(6, "arrays")
    pieces = parse_masks(masks, len(masks))
    rows = torch.tensor([9, 0, 3])
    taken = pieces[rows]
    assert torch.equal(taken.areas(), pieces.areas()[rows])
    assert torch.allclose(pieces.scaled(2, 3).areas(), 6 * pieces.areas())
    assert torch.allclose(pieces.moved(torch.arange(13.0).double(), torch.ones(13).double()).areas(), pieces.areas())
    areas = torch.tensor([float(mask.sum()) for mask in masks[7:]], dtype=torch.float64)
    assert torch.equal(pieces[7:].areas(), areas)
    assert isinstance(pieces, Trapezoids)
    rois = torch.tensor([[0.0, 0, 0, 30, 20]] * 3)
    expected = roi_align_masked(MAPS, rois, [masks[i] for i in rows], 3, spatial_scale=0.5)
    assert torch.equal(roi_align_masked(MAPS, rois, taken, 3, spatial_scale=0.5)[0], expected[0])


@pytest.mark.parametrize("mode", ["exact", "avg"])
@pytest.mark.parametrize("side", [1e6, 1e8])
def test_huge_boxes_end_soon(mode: str, side: float) -> None:
    rois = torch.tensor([[0.0, -side, -side, side, side]])
    found, coverage = roi_align_masked(torch.ones(1, 3, 11, 19), rois, [PARTS], (3, 3), spatial_scale=0.5, mode=mode)
    assert found[0, :, 1, 1].allclose(torch.ones(3))
    assert coverage[0, 1, 1] > 0


def test_nothing_to_pool() -> None:
    found, coverage = roi_align_masked(MAPS, torch.zeros(0, 5), [], (3, 5))
    assert (found.shape, coverage.shape) == ((0, 17, 3, 5), (0, 3, 5))
    found, coverage = roi_align_masked(MAPS[:, :0], torch.tensor([[0.0, 0, 0, 9, 9]]), [PARTS], 2)
    assert found.shape == (1, 0, 2, 2)
    assert coverage.max() > 0


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([], "roi_align_masked: masks: expected one mask for each of 1 RoIs, found 0"),
        ([[[1, 1, 5, 5]]], r"masks\[0\]: polygon 0: expected at least 3 corners, found 2"),
        ([[[1, 1, 5, 5, 2]]], r"masks\[0\]: polygon 0: expected x and y in turn"),
        ([[[1, 1, 5, math.nan, 2, 2]]], r"masks\[0\]: polygon 0: expected finite numbers"),
        ([[]], r"masks\[0\]: expected run lengths, polygons or a bool array"),
        ([np.zeros((3, 3))], r"masks\[0\]: expected run lengths, polygons or a bool array \[H, W\], found float64"),
        (
            [{"size": [4, 5], "counts": [3, 4]}],
            r"masks\[0\]: expected run lengths that add up to 4 x 5, found a sum of 7",
        ),
        ([{"size": [4, 5], "counts": [-3, 23]}], "found a negative one"),
        ([{"size": [4, 5], "counts": "o"}], "run lengths are cut off"),
        ([{"size": [4, 5], "counts": [3.5, 16.5]}], "expected size .* and counts, found: Cannot cast"),
        ([{"size": [4.5, 5], "counts": [20]}], "cannot be interpreted as an integer"),
        ([{"size": [10**6, 10**6], "counts": [10**12]}], r"of less than 2\^32 pixels, found 1000000 x 1000000"),
        ([{"counts": [20]}], r"masks\[0\]: expected size \(height, width\) and counts"),
    ],
)
def test_errors_name_the_mask(masks: list[Any], message: str) -> None:
    with pytest.raises(OperatorInputError, match=message):
        roi_align_masked(MAPS, torch.tensor([[0.0, 0, 0, 9, 9]]), masks, 2)
