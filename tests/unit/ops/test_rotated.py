"""Test rotated boxes: the reference, OpenVINO's ROIAlignRotated, identities, pyramids, awkward boxes, errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.tensors import layouts, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from roialign_cli import roi_align, roi_align_rotated
from roialign_cli.errors import KernelError, OperatorInputError

MODES = ("avg", "max", "exact")
GENERATOR = torch.Generator().manual_seed(0)
MAPS = torch.randn(2, 17, 11, 19, generator=GENERATOR, dtype=torch.float64)


def turned_boxes(count: int, seed: int = 1) -> torch.Tensor:
    """Return rotated boxes [K, 6] inside, across and outside a map of 38 x 22 pixels, the awkward ones first."""
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor([
        [0, 19, 11, 38, 22, 0], [1, 19, 11, 300, 200, 33], [0, -50, -40, 20, 10, 45], [0, 10, 10, 0, 0, 12],
        [1, 10, 10, 0, 9, 30], [0, 37.5, 21.5, 4, 4, 45], [1, 5, 5, 1e-3, 1e-3, 7], [0, 12, 7, 9, 5, 1e6],
    ]).double()  # fmt: skip
    place = torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor([46.0, 30]) - 4
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30
    angle = torch.rand(count, 1, generator=generator, dtype=torch.float64) * 720 - 360
    index = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([special, torch.cat([index, place, size, angle], dim=1)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("aligned", "clockwise"), list(itertools.product((True, False), repeat=2)))
def test_equals_the_reference(mode: str, aligned: bool, clockwise: bool) -> None:
    rois = turned_boxes(12)
    for ratio in (0, 1, 3) if mode != "exact" else (0,):
        keywords = {
            "spatial_scale": 0.5, "sampling_ratio": ratio, "mode": mode, "aligned": aligned, "clockwise": clockwise,
        }  # fmt: skip
        limit = 1e-8 if mode == "exact" else 1e-12  # corners of bins of 1e-6 cells have fewer digits
        for maps in layouts(MAPS).values():
            expected = roi_align_rotated(maps, rois, (3, 5), kernel="reference", **keywords)
            assert relative_error(roi_align_rotated(maps, rois, (3, 5), **keywords), expected) < limit
            assert relative_error(roi_align_rotated(maps.float(), rois, (3, 5), **keywords), expected) < 1e-5


@pytest.mark.parametrize("clockwise", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_equals_openvino(ratio: int, clockwise: bool) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset15

    rng = np.random.default_rng(0)
    boxes = np.concatenate(
        [rng.uniform(2, 24, (40, 2)), rng.uniform(0.5, 30, (40, 2)), rng.uniform(-3.1, 3.1, (40, 1))], 1
    )
    boxes, images = boxes.astype(np.float32), rng.integers(0, 2, 40)
    maps = MAPS.float().numpy()
    inputs = [opset15.parameter(array.shape, array.dtype) for array in (maps, boxes, images)]
    node = opset15.roi_align_rotated(*inputs, 3, 5, ratio, 0.5, clockwise)
    expected = openvino.compile_model(openvino.Model([node], inputs), "CPU")([maps, boxes, images])[0]
    rois = np.concatenate([images[:, None], boxes[:, :4], np.degrees(boxes[:, 4:].astype(np.float64))], 1)
    found = roi_align_rotated(
        MAPS.float(), torch.from_numpy(rois), (3, 5), spatial_scale=0.5, sampling_ratio=ratio, clockwise=clockwise
    )
    assert relative_error(found, torch.from_numpy(expected)) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_an_angle_of_zero_equals_roi_align(mode: str) -> None:
    rois = turned_boxes(20)
    rois[:, 5] = 0
    boxes = torch.cat([rois[:, :1], rois[:, 1:3] - rois[:, 3:5] / 2, rois[:, 1:3] + rois[:, 3:5] / 2], dim=1)
    filled = (rois[:, 3] > 0) & (rois[:, 4] > 0)  # the corners of a box without area are the same up to rounding only
    found = roi_align_rotated(MAPS, rois, (3, 5), spatial_scale=0.5, mode=mode)
    expected = roi_align(MAPS, boxes, (3, 5), spatial_scale=0.5, mode=mode)
    assert relative_error(found[filled], expected[filled]) < 1e-8
    assert relative_error(found, expected) < (1e-5 if mode == "exact" else 1e-12)


@settings(deadline=None)
@given(
    x=st.floats(0, 38), y=st.floats(0, 22), w=st.floats(0.1, 30), h=st.floats(0.1, 30), angle=st.floats(-360, 360),
    turns=st.integers(1, 3),
)  # fmt: skip
def test_right_angles_turn_the_result(x: float, y: float, w: float, h: float, angle: float, turns: int) -> None:
    """A box that is turned by 90 degrees and has its sides exchanged is the same region; only its bins turn."""
    sides = (h, w) if turns % 2 else (w, h)
    one = torch.tensor([[0, x, y, w, h, angle]], dtype=torch.float64)
    other = torch.tensor([[0, x, y, *sides, angle + 90 * turns]], dtype=torch.float64)
    found = roi_align_rotated(MAPS, other, (4, 4), spatial_scale=0.5, mode="exact")
    expected = roi_align_rotated(MAPS, one, (4, 4), spatial_scale=0.5, mode="exact")
    assert torch.allclose(found, torch.rot90(expected, -turns, (2, 3)), atol=1e-9)


@settings(deadline=None)
@given(st.floats(6, 32), st.floats(5, 17), st.floats(0.5, 6), st.floats(0.5, 6), st.floats(0, 360))
def test_a_linear_map_gives_the_centres_of_bins(x: float, y: float, w: float, h: float, angle: float) -> None:
    ramp = torch.arange(44, dtype=torch.float64)
    maps = torch.stack([ramp.expand(26, 44), ramp[:26, None].expand(26, 44)])[None]
    roi = torch.tensor([[0, x, y, w, h, angle]], dtype=torch.float64)
    a = math.radians(angle)
    for mode in ("avg", "exact"):
        found = roi_align_rotated(maps, roi, (2, 3), mode=mode)[0]
        for p, q in itertools.product(range(2), range(3)):
            xx, yy = (q + 0.5) / 3 * w - w / 2, (p + 0.5) / 2 * h - h / 2
            expected = [yy * math.sin(a) + xx * math.cos(a) + x - 0.5, yy * math.cos(a) - xx * math.sin(a) + y - 0.5]
            assert torch.allclose(found[:, p, q], torch.tensor(expected, dtype=torch.float64), atol=1e-9)


def test_many_samples_converge_to_the_exact_mean() -> None:
    rois = turned_boxes(10)[8:]
    exact = roi_align_rotated(MAPS, rois, (3, 5), spatial_scale=0.5, mode="exact")
    errors = [
        float((roi_align_rotated(MAPS, rois, (3, 5), spatial_scale=0.5, sampling_ratio=ratio) - exact).abs().max())
        for ratio in (4, 64)
    ]
    assert errors[1] < 2e-3 < errors[0]


def test_a_pyramid_a_reduction_and_out() -> None:
    rois = turned_boxes(12)
    maps, levels = [MAPS, MAPS[:, :, ::2, ::2]], torch.arange(len(rois)) % 2
    keywords = {"spatial_scale": [0.5, 0.25], "levels": levels, "sampling_ratio": 2}
    found = roi_align_rotated(maps, rois, 3, **keywords)
    for level, scale in enumerate((0.5, 0.25)):
        mine = levels == level
        alone = roi_align_rotated(maps[level], rois[mine], 3, spatial_scale=scale, sampling_ratio=2)
        assert torch.equal(found[mine], alone)
    assert torch.allclose(roi_align_rotated(maps, rois, 3, reduce="mean", **keywords), found.mean((2, 3)))
    assert torch.equal(roi_align_rotated(maps, rois, 3, reduce="max", **keywords), found.amax((2, 3)))
    out = torch.empty_like(found)
    assert roi_align_rotated(maps, rois, 3, out=out, **keywords) is out
    assert torch.equal(out, found)


def test_half_types_round_once() -> None:
    rois = turned_boxes(12)
    for dtype, limit in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        maps = MAPS.to(dtype)
        expected = roi_align_rotated(maps.double(), rois, 3, spatial_scale=0.5)
        assert relative_error(roi_align_rotated(maps, rois, 3, spatial_scale=0.5), expected) < limit
        wide = roi_align_rotated(maps, rois, 3, spatial_scale=0.5, dtype=torch.float32)
        assert relative_error(wide, expected) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [1e6, 1e9, 1e15])
def test_huge_boxes_end_soon(mode: str, side: float) -> None:
    rois = torch.tensor([[0, 19, 11, side, side, 30], [1, side / 2, 11, side, 2, 1]], dtype=torch.float64)
    found = roi_align_rotated(torch.ones(2, 3, 11, 19), rois, (3, 3), spatial_scale=0.5, mode=mode)
    assert torch.isfinite(found).all()
    assert 0 <= found.min() <= found.max() <= 1 + 1e-6


def test_nothing_to_pool() -> None:
    assert roi_align_rotated(MAPS, torch.zeros(0, 6), (3, 5)).shape == (0, 17, 3, 5)
    assert roi_align_rotated(MAPS[:, :0], turned_boxes(2), (3, 5)).shape == (10, 0, 3, 5)
    assert roi_align_rotated(MAPS[:0], torch.zeros(0, 6), 2).shape == (0, 17, 2, 2)
    one = roi_align_rotated(torch.ones(1, 1, 1, 1), torch.tensor([[0, 0.5, 0.5, 1, 1, 45.0]]), 1, mode="exact")
    assert one.item() == pytest.approx(1)


def test_threads_do_not_change_a_bit() -> None:
    rois = turned_boxes(500)
    maps = torch.randn(2, 64, 11, 19).contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            found.append(roi_align_rotated(maps, rois, 7, spatial_scale=0.5))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rois": torch.zeros(2, 5)}, r"roi_align_rotated: rois: expected shape \[K, 6\]"),
        ({"rois": torch.tensor([[0, 5, 5, 2, 2, math.nan]])}, "rois row 0: expected finite"),
        ({"rois": torch.tensor([[0, 5, 5, 2, 2, 0.0], [0, 5, 5, -2, 2, 0]])}, "rois row 1: expected width and height"),
        ({"rois": torch.tensor([[2, 5, 5, 2, 2, 0.0]])}, "expected a whole batch index from 0 to 1"),
        ({"mode": "median"}, "roi_align_rotated: mode: expected one of avg, max, exact"),
        ({"features": MAPS.long()}, "roi_align_rotated: features"),
        ({"out": torch.empty(1)}, "roi_align_rotated: out"),
    ],
)
def test_errors_name_the_operator_and_the_row(change: dict[str, object], message: str) -> None:
    arguments = {"features": MAPS, "rois": turned_boxes(0), "output_size": 2, **change}
    with pytest.raises(OperatorInputError, match=message):
        roi_align_rotated(**arguments)


def test_kernels_that_cannot_serve() -> None:
    for kernel in ("torchvision", "cuda", "fast"):
        with pytest.raises(KernelError):
            roi_align_rotated(MAPS, turned_boxes(0), 2, kernel=kernel)
