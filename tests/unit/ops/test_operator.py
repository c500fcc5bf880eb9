"""Compare RoI Align with the float64 reference, torchvision, onnxruntime and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torchvision
from helpers.requests import make_request
from helpers.tensors import layouts, make_rois, relative_error, whole_cell_rois

from roialign_cli import deform_roi_align, roi_align
from roialign_cli.ops import reference
from roialign_cli.ops.cpu import run as cpu

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SETTINGS = [
    {"mode": mode, "aligned": aligned, "sampling_ratio": ratio}
    for mode, aligned, ratio in itertools.product(("avg", "max", "exact"), (True, False), (0, 1, 3))
    if mode != "exact" or ratio == 0
]


def features(channels: int, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (11, 19)) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(channels)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_equals_the_reference(dtype: torch.dtype, settings: dict[str, object]) -> None:
    rois = make_rois(8, batch=2, width=38, height=22)
    rois[2] = torch.tensor([0, -100, -100, 150, 150])  # the reference visits every sample
    for channels in (1, 17, 48):
        maps = features(channels, dtype)
        expected = roi_align(maps.double(), rois, (3, 6), spatial_scale=0.5, kernel="reference", **settings)
        found = roi_align(maps, rois, (3, 6), spatial_scale=0.5, kernel="cpu", **settings)
        assert found.dtype == dtype
        assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("output_size", [(1, 1), (7, 7), (2, 9), (16, 17)])
def test_every_layout_gives_the_same(dtype: torch.dtype, output_size: tuple[int, int]) -> None:
    rois = make_rois(12, batch=2, width=19, height=11)
    for channels in (3, 16, 37):
        variants = layouts(features(channels, dtype))
        for mode in ("avg", "max"):
            first = roi_align(variants["NCHW"], rois, output_size, mode=mode)
            for name, maps in variants.items():
                expected = roi_align(maps.contiguous(), rois, output_size, mode=mode)
                assert torch.equal(roi_align(maps, rois, output_size, mode=mode), expected), name
                if name != "channels-last window":
                    assert torch.equal(expected, first), name


@pytest.mark.parametrize("scale", [1 / 14, 0.1])
def test_scales_that_are_no_powers_of_two(scale: float) -> None:
    maps, rois = features(2, size=(60, 60)), whole_cell_rois(500, scale)
    expected = roi_align(maps.double(), rois, 7, spatial_scale=scale, kernel="reference")
    assert relative_error(roi_align(maps, rois, 7, spatial_scale=scale), expected) < 1e-5
    still = torch.zeros(len(rois), 2, 7, 7)
    assert relative_error(deform_roi_align(maps, rois, still, 7, spatial_scale=scale), expected) < 1e-5


@pytest.mark.parametrize("ratio", range(5))
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("output_size", [(7, 7), (3, 5), (14, 14)])
def test_equals_torchvision(ratio: int, aligned: bool, output_size: tuple[int, int]) -> None:
    maps = features(40, size=(33, 57))
    rois = make_rois(60, batch=2, width=57 * 16, height=33 * 16)
    expected = torchvision.ops.roi_align(maps, rois, output_size, 1 / 16, ratio, aligned)
    for kernel in ("cpu", "torchvision"):
        found = roi_align(
            maps, rois, output_size, spatial_scale=1 / 16, sampling_ratio=ratio, aligned=aligned, kernel=kernel
        )
        assert relative_error(found, expected) < 2e-5


def test_torchvision_behind_our_arguments_does_not_narrow_coordinates() -> None:
    maps, rois = features(8, torch.float16, size=(80, 90)), make_rois(20, batch=2, width=1440, height=1280)[3:]
    expected = roi_align(maps.double(), rois, 3, spatial_scale=1 / 16)
    assert relative_error(roi_align(maps, rois, 3, spatial_scale=1 / 16, kernel="torchvision"), expected) < 1e-3


@pytest.mark.parametrize("ratio", [0, 2])
def test_equals_onnxruntime(ratio: int) -> None:
    """Only averages agree: onnxruntime takes the maximum over weighted corners and says itself that this is wrong."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    maps, rois = features(24, size=(21, 34)), make_rois(30, batch=2, width=34 * 8, height=21 * 8)[3:]
    node = helper.make_node(
        "RoiAlign", ["x", "rois", "index"], ["y"], output_height=5, output_width=3, sampling_ratio=ratio,
        spatial_scale=1 / 8, coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    kinds = {
        "x": (TensorProto.FLOAT, [2, 24, 21, 34]),
        "rois": (TensorProto.FLOAT, [None, 4]),
        "index": (TensorProto.INT64, [None]),
    }
    inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": maps.numpy(), "rois": rois[:, 1:].contiguous().numpy(), "index": rois[:, 0].long().numpy()}
    expected = torch.from_numpy(session.run(None, feed)[0])
    found = roi_align(maps, rois, (5, 3), spatial_scale=1 / 8, sampling_ratio=ratio)
    assert relative_error(found, expected) < 2e-5


@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_the_maximum_of_a_constant_is_the_constant(ratio: int) -> None:
    rois = make_rois(30, batch=2, width=34 * 8, height=21 * 8)[9:]
    inside = (rois[:, 1:3] >= 0).all(1) & (rois[:, 3] <= 34 * 8) & (rois[:, 4] <= 21 * 8)
    assert inside.sum() > 5
    maps = torch.ones(2, 24, 21, 34)
    pooled = roi_align(maps, rois[inside], (5, 3), spatial_scale=1 / 8, sampling_ratio=ratio, mode="max")
    assert relative_error(pooled, torch.ones_like(pooled)) < 1e-6


def test_the_packed_window_holds_every_cell_that_is_read() -> None:
    """The one sample of the box lies at -1, the edge of the valid range: it reads cell 0, and cell 1 with weight zero."""
    edge = torch.tensor([[0, -0.5, -0.5, -0.5, -0.5]])
    call = make_request([torch.ones(1, 4, 6, 7)], edge, None, (1, 1), [1.0], 1, True, "max")
    top, left, height, width = cpu._window(call, np.array([0]), 0)
    assert (top, left) == (0, 0)
    assert min(height, width) >= 2


def test_the_worked_example() -> None:
    y = reference.axis(0, 4.5, 1.0, 2, 0, aligned=False)
    x = reference.axis(0.8, 2.4, 1.0, 2, 0, aligned=False)
    assert (x.bin, y.bin) == (pytest.approx(0.8), 2.25)
    assert x.samples(0) == pytest.approx([1.2])
    assert y.samples(0) == pytest.approx([0.375, 1.125, 1.875])
    maps = torch.arange(30.0).view(1, 1, 6, 5)  # value 5 y + x, so the mean over samples is 5 * 1.125 + 1.2
    pooled = roi_align(maps, torch.tensor([[0, 0.8, 0, 2.4, 4.5]]), 2, aligned=False)
    assert pooled[0, 0, 0, 0].item() == pytest.approx(5 * 1.125 + 1.2, rel=1e-6)


def test_float16_ones_give_one() -> None:
    maps, rois = torch.ones(1, 1, 700, 700, dtype=torch.float16), torch.tensor([[0.0, 10, 10, 610, 610]])
    assert roi_align(maps, rois, 1).item() == 1.0


def test_a_plane_is_reproduced_by_average_and_integral() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    plane = (3 * y - 2 * x + 7).expand(1, 1, 40, 60).double()
    roi = torch.tensor([[0, 5.3, 4.1, 33.9, 30.7]], dtype=torch.float64)
    at_x = 5.3 - 0.5 + (np.arange(7) + 0.5) * 28.6 / 7
    at_y = 4.1 - 0.5 + (np.arange(7) + 0.5) * 26.6 / 7
    expected = torch.from_numpy(3 * at_y[:, None] - 2 * at_x[None, :] + 7)
    for settings in ({"mode": "avg"}, {"mode": "avg", "sampling_ratio": 5}, {"mode": "exact"}):
        assert relative_error(roi_align(plane, roi, 7, **settings)[0, 0], expected) < 1e-12


def test_sampling_converges_to_the_integral() -> None:
    maps, rois = features(8, torch.float64), make_rois(20, batch=2, width=19, height=11)[3:]
    rois = rois[(rois[:, 3] > rois[:, 1]) & (rois[:, 4] > rois[:, 2])]
    exact = roi_align(maps, rois, (4, 3), mode="exact")
    errors = [relative_error(roi_align(maps, rois, (4, 3), sampling_ratio=ratio), exact) for ratio in (8, 64, 512)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_max_counts_samples_outside_as_zero() -> None:
    maps = torch.full((1, 1, 4, 4), -5.0)
    inside, across = torch.tensor([[0.0, 0, 0, 4, 4]]), torch.tensor([[0.0, -8, -8, 4, 4]])
    assert roi_align(maps, inside, 1, mode="max", sampling_ratio=4).item() == -5.0
    assert roi_align(maps, across, 1, mode="max", sampling_ratio=4).item() == 0.0


@pytest.mark.parametrize("mode", ["avg", "max", "exact"])
def test_nothing_to_pool(mode: str) -> None:
    maps = features(5)
    assert roi_align(maps, torch.empty(0, 5), (2, 3), mode=mode).shape == (0, 5, 2, 3)
    assert roi_align(maps[:0], torch.empty(0, 5), 7, mode=mode).shape == (0, 5, 7, 7)
    assert roi_align(maps[:, :0], torch.zeros(3, 5), 7, mode=mode).shape == (3, 0, 7, 7)


def test_zero_area_and_one_pixel() -> None:
    point = torch.tensor([[0.0, 5, 5, 5, 5]])
    assert roi_align(features(4), point, 7).abs().max() == 0  # adaptive: no samples
    one = torch.full((1, 3, 1, 1), 2.5)
    assert torch.equal(roi_align(one, torch.tensor([[0.0, 0, 0, 1, 1]]), 3), torch.full((1, 3, 3, 3), 2.5))


@pytest.mark.parametrize("mode", ["avg", "max", "exact"])
@pytest.mark.parametrize("side", [1e6, 1e12, 1e30, 3e38])
def test_huge_boxes_end_soon_and_dilute(mode: str, side: float) -> None:
    maps = torch.ones(1, 2, 9, 9)
    pooled = roi_align(maps, torch.tensor([[0.0, -side, -side, side, side]]), 3, mode=mode)
    assert torch.isfinite(pooled).all()
    assert pooled.abs().max() <= 1.0
    if mode == "exact" and side < 1e9:
        assert pooled[0, 0, 1, 1].item() == pytest.approx((10 / (2 * side / 3)) ** 2, rel=1e-3)


def test_nan_in_a_map_stays_where_it_is() -> None:
    maps = torch.ones(1, 20, 8, 8)
    maps[0, 3, 2, 2] = float("nan")
    for mode in ("avg", "max", "exact"):
        pooled = roi_align(maps, torch.tensor([[0.0, 0, 0, 8, 8]]), 4, mode=mode, sampling_ratio=2)
        bad = pooled.isnan().any(dim=0)
        assert bad[3, 1, 1]
        assert not bad[3, 3, 3]
        assert not bad[[c for c in range(20) if c != 3]].any()


def test_a_pyramid_in_one_call() -> None:
    sizes, scales = [(32, 40), (16, 20), (8, 10), (4, 5)], [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    rois = make_rois(50, batch=2, width=160, height=128)
    levels = torch.randint(0, 4, (len(rois),), generator=torch.Generator().manual_seed(1))
    for variant in ("NCHW", "channels-last", "sliced"):
        maps = [layouts(features(33, size=size))[variant] for size in sizes]
        found = roi_align(maps, rois, 7, spatial_scale=scales, levels=levels)
        for level in range(4):
            rows = levels == level
            assert torch.equal(found[rows], roi_align(maps[level], rois[rows], 7, spatial_scale=scales[level]))


def test_boxes_as_a_list_per_image() -> None:
    maps, rois = features(6), make_rois(9, batch=2, width=19, height=11)
    boxes = [rois[rois[:, 0] == n][:, 1:] for n in range(2)]
    ordered = torch.cat([rois[rois[:, 0] == n] for n in range(2)])
    assert torch.equal(roi_align(maps, boxes, 4), roi_align(maps, ordered, 4))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("count", [5, 3000])
def test_out_is_filled_whatever_its_place(dtype: torch.dtype, count: int) -> None:
    maps = features(48, dtype).contiguous(memory_format=torch.channels_last)
    rois = make_rois(count, batch=2, width=19, height=11)
    expected = roi_align(maps, rois, 7)
    for shift in (0, 1, 3, 8):  # streamed lines need alignment that a caller's memory may not have
        buffer = torch.full((expected.numel() + shift,), float("nan"), dtype=dtype)
        out = buffer[shift:].view(expected.shape)
        assert roi_align(maps, rois, 7, out=out) is out
        assert torch.equal(out, expected)


def test_more_than_2_to_the_31_elements() -> None:
    """The test touches only the pages under the boxes."""
    maps = torch.empty(1, 16400, 8200, 17, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    assert maps.numel() > 2**31
    maps[:, :, -8:, -8:] = 3.0
    roi = torch.tensor([[0, 8200 - 6, 16400 - 6, 8200, 16400]], dtype=torch.float64)
    assert torch.equal(roi_align(maps, roi, 2), torch.full((1, 17, 2, 2), 3.0, dtype=torch.bfloat16))


def test_runs_under_inference_mode() -> None:
    maps, rois = features(3).requires_grad_(), make_rois(2, batch=2, width=19, height=11)
    with torch.inference_mode():
        assert not roi_align(maps, rois, 2).requires_grad


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("mode", ["avg", "max", "exact"])
def test_reduced_equals_reducing_afterwards(reduce: str, mode: str) -> None:
    for channels, output in ((1, (1, 1)), (21, (7, 7)), (300, (3, 16))):
        for maps in layouts(features(channels)).values():
            rois = make_rois(40, batch=2, width=38, height=22)
            settings = {"spatial_scale": 0.5, "mode": mode, "sampling_ratio": 0 if mode == "exact" else 2}
            whole = roi_align(maps, rois, output, **settings)
            expected = whole.mean((2, 3)) if reduce == "mean" else whole.amax((2, 3))
            assert relative_error(roi_align(maps, rois, output, reduce=reduce, **settings), expected) < 1e-5
    for kernel in ("torchvision", "reference")[mode != "avg" :]:
        found = roi_align(maps, rois[:4], output, reduce=reduce, kernel=kernel, **settings)
        assert relative_error(found, expected[:4]) < 2e-5


# Every pair of types is a kernel of its own, seconds to compile: quick ones read each type once and write each type once.
QUICK_PAIRS = {
    (torch.float32, torch.float16), (torch.float64, torch.float32),
    (torch.float16, torch.bfloat16), (torch.bfloat16, torch.float64),
}  # fmt: skip
PAIRS = [
    pair if pair[0] == pair[1] or pair in QUICK_PAIRS else pytest.param(*pair, marks=pytest.mark.slow)
    for pair in itertools.product(TOLERANCE, TOLERANCE)
]


@pytest.mark.parametrize(("stored", "dtype"), PAIRS, ids=str)
def test_the_result_in_any_type(stored: torch.dtype, dtype: torch.dtype) -> None:
    maps = features(37, stored)
    rois = make_rois(20, batch=2, width=19, height=11)[[0, 1, 5, 6, 7]]
    found = roi_align(maps, rois, (4, 5), dtype=dtype)
    assert found.dtype == dtype
    expected = roi_align(maps.double(), rois, (4, 5), kernel="reference")
    assert relative_error(found, expected) < max(TOLERANCE[dtype], 1e-12 if stored == torch.float64 else 1e-5)
