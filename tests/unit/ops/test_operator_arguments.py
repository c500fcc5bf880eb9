"""Test bad arguments of roi_align: one clear error names the row, and nothing crashes."""

from __future__ import annotations

import math
import re
import time

import pytest
import torch
from helpers.requests import make_request
from helpers.tensors import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from roialign_cli import roi_align
from roialign_cli.errors import KernelError, OperatorInputError
from roialign_cli.ops.cuda import launch
from roialign_cli.ops.cuda import run as cuda
from roialign_cli.ops.dispatch import choose_kernel

MAPS = torch.randn(2, 3, 8, 9)
GOOD = [0.0, 1, 1, 5, 5]
ROI = torch.tensor([GOOD])


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ([0, math.nan, 1, 5, 5], "rois row 1: expected finite numbers"),
        ([0, 1, 1, math.inf, 5], "rois row 1: expected finite numbers"),
        ([math.nan, 1, 1, 5, 5], "rois row 1: expected finite numbers"),
        ([2, 1, 1, 5, 5], "rois row 1: expected a whole batch index from 0 to 1"),
        ([-1, 1, 1, 5, 5], "rois row 1: expected a whole batch index"),
        ([0.5, 1, 1, 5, 5], "rois row 1: expected a whole batch index"),
        ([0, 5, 1, 4, 5], "rois row 1: expected x1 <= x2"),
        ([0, 1, 5, 5, 4], "rois row 1: expected x1 <= x2 and y1 <= y2"),
    ],
)
def test_a_bad_row_is_named(row: list[float], named: str) -> None:
    with pytest.raises(OperatorInputError, match=named.replace("[", r"\[")):
        roi_align(MAPS, torch.tensor([GOOD, row]), 2)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"features": MAPS.int()}, "floating type, found torch.int32"),
        ({"features": MAPS[0]}, r"shape \[N, C, H, W\], found \[3, 8, 9\]"),
        ({"features": MAPS[:, :, :0]}, "at least one cell, found 0 x 9"),
        ({"features": []}, "non-empty list"),
        ({"features": [MAPS, MAPS[:, :2]], "levels": torch.zeros(1, dtype=torch.long)}, r"features\[1\]"),
        ({"features": [MAPS, MAPS]}, "level of each RoI for 2 maps, found None"),
        ({"levels": torch.tensor([1])}, "levels row 0: expected 0 to 0, found 1"),
        ({"levels": torch.tensor([0.0])}, "1 integers"),
        ({"rois": torch.zeros(1, 4)}, r"shape \[K, 5\]"),
        ({"rois": torch.zeros(5)}, r"shape \[K, 5\]"),
        ({"rois": [torch.zeros(1, 4)]}, "each of 2 images, found 1"),
        ({"rois": [torch.zeros(1, 5), torch.zeros(0, 5)]}, r"rois\[0\]"),
        ({"output_size": 0}, "output_size: expected a whole number of at least 1, found 0"),
        ({"output_size": (7, -1)}, "output_size"),
        ({"output_size": 2.5}, "output_size"),
        ({"output_size": (1, 2, 3)}, r"one number or \(height, width\)"),
        ({"sampling_ratio": -1}, "sampling_ratio: expected a whole number of at least 0, found -1"),
        ({"sampling_ratio": True}, "sampling_ratio"),
        ({"sampling_ratio": 1025}, "sampling_ratio: expected at most 1024, found 1025"),
        ({"sampling_ratio": 10**30}, "sampling_ratio: expected at most 1024"),
        ({"features": None}, "features: expected a tensor or a non-empty list"),
        ({"rois": None}, "rois: expected a tensor or a list of tensors, found NoneType"),
        ({"levels": [0]}, "levels: expected a tensor of 1 integers, found list"),
        ({"levels": torch.zeros(1, dtype=torch.complex64)}, "levels: expected 1 integers"),
        ({"out": MAPS.numpy()}, "out: expected a tensor, found ndarray"),
        (
            {"out": torch._neg_view(torch.empty(1, 3, 2, 2))},
            "out: expected a plain tensor, found a lazily negated view",
        ),
        ({"features": torch.complex(MAPS, MAPS).conj()}, "features: expected a floating type, found torch.complex64"),
        ({"rois": torch.complex(ROI, ROI).conj()}, "rois: expected real numbers, found torch.complex64"),
        ({"spatial_scale": 0.0}, "spatial_scale"),
        ({"spatial_scale": math.nan}, "spatial_scale"),
        ({"spatial_scale": [1.0, 2.0]}, "one for each of 1 levels, found 2"),
        ({"mode": "median"}, "one of avg, max, exact, found 'median'"),
        ({"out": torch.empty(1, 3, 2, 3)}, "out: expected contiguous"),
        ({"out": torch.empty(1, 3, 2, 2, dtype=torch.float64)}, "out: expected contiguous"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, object], found: str) -> None:
    call = {"features": MAPS, "rois": ROI, "output_size": 2, **arguments}
    with pytest.raises(OperatorInputError, match=found):
        roi_align(**call)


def lazily_negated(values: torch.Tensor) -> torch.Tensor:
    """Return a view of the same values that is lazily negated, so that its memory holds them with the other sign."""
    view = torch._neg_view(-values)
    assert view.is_neg()
    return view


@pytest.mark.parametrize("kernel", ["cpu", "torchvision", "reference"])
def test_views_that_are_lazily_negated_keep_their_sign(kernel: str) -> None:
    levels = torch.tensor([0, 1])
    rois = torch.tensor([GOOD, [1.0, 0, 0, 3, 4]])
    boxes = [rois[:1, 1:], rois[1:, 1:]]
    expected = roi_align(MAPS, rois, 2)
    negated = lazily_negated(MAPS)
    imaginary = torch.complex(torch.zeros_like(MAPS), -MAPS).conj().imag  # how such views come about
    for features in (negated, imaginary, lazily_negated(MAPS.contiguous(memory_format=torch.channels_last))):
        assert torch.allclose(roi_align(features, lazily_negated(rois), 2, kernel=kernel), expected, atol=1e-5)
    by_image = roi_align(negated, [lazily_negated(b) for b in boxes], 2, kernel=kernel)
    by_level = roi_align([negated, MAPS], rois, 2, levels=lazily_negated(levels), kernel=kernel)
    assert torch.allclose(by_image, expected, atol=1e-5)
    assert torch.allclose(by_level, expected, atol=1e-5)


NOT_IN_MEMORY = {
    "the meta device": lambda values: values.to("meta"),
    "layout torch.sparse_coo": lambda values: values.to_sparse(),
    "a nested one": lambda values: torch.nested.nested_tensor([values[0], values[0]]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("found", NOT_IN_MEMORY)
@pytest.mark.parametrize("name", ["features", "rois", "boxes", "levels", "out"])
def test_tensors_that_are_not_in_memory(name: str, found: str) -> None:
    arguments = {"features": MAPS[:1], "rois": ROI, "output_size": 2, "levels": torch.tensor([0])}
    given = {"boxes": ROI[:, 1:], "out": torch.empty(1, 3, 2, 2), **arguments}[name]
    if name == "boxes":
        arguments["rois"] = [NOT_IN_MEMORY[found](given)]
    else:
        arguments[name] = NOT_IN_MEMORY[found](given)
    where = "rois[0]" if name == "boxes" else name
    with pytest.raises(OperatorInputError, match=re.escape(f"roi_align: {where}: expected")) as error:
        roi_align(**arguments)
    assert found in error.value.message


def test_tensors_inside_transforms() -> None:
    for call, values in (
        (lambda m: roi_align(m, ROI, 2), MAPS[None]),
        (lambda r: roi_align(MAPS, r, 2), ROI[None]),
        (lambda b: roi_align(MAPS[:1], [b], 2), ROI[None, :, 1:]),
        (lambda levels: roi_align(MAPS, ROI, 2, levels=levels), torch.zeros(1, 1, dtype=torch.long)),
    ):
        with pytest.raises(OperatorInputError, match="inside a transform of torch"):
            torch.func.vmap(call)(values)
    with pytest.raises(OperatorInputError, match="inside a transform of torch"):
        torch.func.functionalize(lambda m: roi_align(m, ROI, 2))(MAPS)


def test_fake_tensors_have_a_shape_and_take_no_out() -> None:
    with FakeTensorMode() as mode:
        maps, rois, out = (mode.from_tensor(t) for t in (MAPS, ROI, torch.empty(1, 3, 2, 2)))
        assert roi_align(maps, rois, 2).shape == (1, 3, 2, 2)
    for arguments in ((maps, rois, 2), (MAPS, ROI, 2)):
        with pytest.raises(OperatorInputError, match="out: expected none with fake tensors"):
            roi_align(*arguments, out=out)


@pytest.mark.parametrize("mode", ["avg", "max", "exact"])
@pytest.mark.parametrize("aligned", [True, False])
def test_huge_boxes_end_soon_and_right(mode: str, aligned: bool) -> None:
    maps = torch.randn(1, 3, 50, 60)
    rois = torch.tensor([
        [0, 0, 0, 1e9, 1e9], [0, -1e9, -1e9, 1e9, 1e9], [0, -1e6, 3, 1e6 + 7, 5], [0, -1e300, 0, 1e300, 9]
    ], dtype=torch.float64)  # fmt: skip
    started = time.monotonic()
    for size in (1, 7):
        found, right = (roi_align(maps, rois, size, mode=mode, aligned=aligned, kernel=k) for k in ("cpu", "reference"))
        for mine, theirs in zip(found[:3], right[:3], strict=True):
            assert relative_error(mine, theirs) < 1e-5
        assert found.isfinite().all()
    assert time.monotonic() - started < 30  # of which compiling takes some


def test_boxes_whose_size_is_no_number() -> None:
    for edge in (1e308, 1.7e308):
        rois = torch.tensor([[0, -edge, 0, edge, 9]], dtype=torch.float64)
        with pytest.raises(OperatorInputError, match="rois row 0: expected finite numbers, in map cells too"):
            roi_align(MAPS, rois, 2, sampling_ratio=0)


def test_torchvision_is_not_given_more_samples_than_it_survives() -> None:
    """It crashes the process beyond 2**31 of them."""
    huge = torch.tensor([GOOD, [0, 0, 0, 1e5, 1e5]])
    with pytest.raises(KernelError, match="rois row 1: expected at most 67108864 samples, found 1e\\+10"):
        roi_align(MAPS, huge, 7, kernel="torchvision")
    with pytest.raises(KernelError, match="rois row 0: expected at most 67108864 samples"):
        roi_align(MAPS, ROI, 100, sampling_ratio=1024, kernel="torchvision")
    assert roi_align(MAPS, ROI, 2, sampling_ratio=1024).isfinite().all()


def test_kernels_say_what_they_cannot_do() -> None:
    rois = torch.tensor([GOOD])
    with pytest.raises(KernelError, match="expected one of auto, cpu"):
        roi_align(MAPS, rois, 2, kernel="fast")
    with pytest.raises(KernelError, match="expected mode avg"):
        roi_align(MAPS, rois, 2, kernel="torchvision", mode="max")
    with pytest.raises(KernelError, match="expected a cuda device, found cpu"):
        roi_align(MAPS, rois, 2, kernel="cuda")


numbers = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 2.0, 1e38, -1e38, 1e-45])


@settings(max_examples=400, deadline=None)
@given(
    rows=st.lists(st.tuples(*[numbers] * 5), max_size=6),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ratio=st.integers(0, 4),
    mode=st.sampled_from(["avg", "max", "exact"]),
    aligned=st.booleans(),
)
def test_any_numbers_give_a_result_or_the_error(
    rows: list[tuple[float, ...]], size: tuple[int, int], ratio: int, mode: str, aligned: bool
) -> None:
    rois = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    maps = torch.ones(2, 3, *size)
    try:
        pooled = roi_align(maps, rois, 2, sampling_ratio=ratio, mode=mode, aligned=aligned)
    except OperatorInputError:
        return
    assert ((pooled >= 0) & (pooled <= 1 + 1e-6)).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a device")
def test_without_a_device_one_warning_says_why() -> None:
    device = torch.device("cuda", 0)
    with pytest.warns(RuntimeWarning, match="kernel torchvision serves cuda:0: kernel cuda: expected a device") as told:
        assert [choose_kernel("auto", device, "avg") for _ in range(3)] == ["torchvision"] * 3
    assert len(told) == 1
    for kernel, mode in (("cuda", "avg"), ("auto", "max")):
        with pytest.raises(KernelError, match="expected a device that torch can use") as caught:
            choose_kernel(kernel, device, mode)
        assert caught.value.reference == "kernel-unavailable"


def test_the_cuda_kernel_says_how_many_levels_it_takes() -> None:
    maps = [torch.ones(1, 4, 2, 2)] * 17
    call = make_request(maps, torch.tensor([GOOD]), torch.tensor([16]), (2, 2), [1.0] * 17, 0, True, "avg")
    with pytest.raises(KernelError, match="at most 16 levels, found 17"):
        launch.plan_launch(call, torch.empty(call.shape), 1)


def test_maps_of_another_layout_are_copied_only_if_that_pays() -> None:
    maps = torch.empty(1, 8, 50, 80)
    few, many = torch.zeros(4, 5), torch.zeros(40, 5)

    def should_repack(maps: torch.Tensor, rois: torch.Tensor) -> bool:
        return cuda.should_repack(maps, make_request([maps], rois, None, (7, 7), [1.0], 2, True, "avg"))

    assert should_repack(maps, many)
    assert not should_repack(maps, few)
    assert not should_repack(maps.contiguous(memory_format=torch.channels_last), many)
    assert not should_repack(maps[:, :1], many)
