"""Compare the CUDA kernel's source, run on the CPU with real threads, with the reference: see helpers/cuda_shim.py."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cuda_shim import LAUNCHES, Shim
from helpers.requests import make_request
from helpers.tensors import layouts, make_rois, relative_error, whole_cell_rois

from roialign_cli.ops.cuda import launch
from roialign_cli.ops.dispatch import KERNELS
from roialign_cli.ops.request import Request

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
MODES = ("avg", "max", "exact")
WIDTHS = {torch.float32: (4, 1), torch.float64: (2, 1), torch.float16: (8, 1), torch.bfloat16: (8, 2, 1)}

OTHER_TYPE = [(torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.float32)]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    variants = [
        launch.specialise(dtype, mode, width) for mode in MODES for dtype, widths in WIDTHS.items() for width in widths
    ]
    variants += [launch.specialise(torch.float32, mode, 4, overflow=True) for mode in MODES]
    variants += [launch.specialise(dtype, "avg", WIDTHS[dtype][0], written=written) for dtype, written in OTHER_TYPE]
    return Shim(tmp_path_factory.mktemp("shim"), "address", variants)


def features(channels: int, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (11, 19)) -> torch.Tensor:
    """Return random maps, channels-last."""
    maps = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(channels)).to(dtype)
    return maps.contiguous(memory_format=torch.channels_last)


def make(
    maps: torch.Tensor | list[torch.Tensor], rois: torch.Tensor, size: tuple[int, int], **settings: object
) -> Request:
    several = maps if isinstance(maps, list) else [maps]
    given = {"levels": None, "scales": [0.5] * len(several), "sampling_ratio": 0, "aligned": True, "mode": "avg"}
    return make_request(several, rois, output_size=size, **{**given, **settings})


def check(shim: Shim, calls: list[Request]) -> None:
    """Compare every call with the reference, which sees the maps as rounded to their type."""
    for call, found in zip(calls, shim.run(calls), strict=True):
        expected = KERNELS["reference"](call, None)
        error, what = (
            relative_error(found, expected),
            f"{call.mode} {found.dtype} {call.output_size} {call.maps[0].stride()}",
        )
        assert error < TOLERANCE[found.dtype], f"{what}: {error}"


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        pytest.param(torch.float64, marks=pytest.mark.slow),
        pytest.param(torch.float16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_equals_the_reference(shim: Shim, dtype: torch.dtype) -> None:
    rois = make_rois(8, batch=2, width=38, height=22)
    rois[2] = torch.tensor([0, -100, -100, 150, 150])  # the reference visits every sample
    settings = [
        {"mode": mode, "aligned": aligned, "sampling_ratio": ratio}
        for mode, aligned, ratio in itertools.product(MODES, (True, False), (0, 1, 3))
        if mode != "exact" or ratio == 0
    ]
    widest = WIDTHS[dtype][0]
    maps = [features(17, dtype).contiguous(), *(features(c, dtype) for c in (2 * widest, 6 * widest))]
    if dtype == torch.bfloat16:
        maps.append(features(2, dtype))
    calls = [make(m, rois.double() if s["aligned"] else rois, (3, 6), **s) for m in maps for s in settings]
    check(shim, calls)


@pytest.mark.parametrize("scale", [1 / 14, 0.1])
def test_scales_that_are_no_powers_of_two(shim: Shim, scale: float) -> None:
    check(shim, [make(features(4, size=(60, 60)), whole_cell_rois(300, scale), (7, 7), scales=[scale])])


@pytest.mark.parametrize("mode", MODES)
def test_every_layout_and_output_size(shim: Shim, mode: str) -> None:
    rois = make_rois(6, batch=2, width=38, height=22)
    rois[2] = torch.tensor([0, -60, -60, 90, 90])
    calls = [
        make(maps, rois, size, mode=mode, sampling_ratio=2)
        for channels, size in ((3, (1, 1)), (5, (2, 9)), (8, (7, 7)), (140, (2, 3)))
        for maps in layouts(features(channels)).values()
    ]
    check(shim, calls)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_reduced_before_it_is_stored(shim: Shim, reduce: str) -> None:
    rois = make_rois(6, batch=2, width=38, height=22)
    rois[2] = torch.tensor([0, -60, -60, 90, 90])
    rois[4] = torch.tensor([7.0, 0, 0, 5, 5])
    calls = [
        make(features(channels), rois, size, mode=mode, sampling_ratio=2, reduce=reduce)
        for mode in MODES
        for channels, size in ((3, (1, 1)), (8, (7, 7)), (136, (14, 13)))
    ]
    assert all(map(launch.can_reduce, calls))
    for call, found in zip(calls, shim.run(calls), strict=True):
        assert found[4].isnan().all()
        sane = make_request(
            call.maps, rois[[0, 1, 2, 3, 5]], None, call.output_size, call.scales, 2, True, call.mode, reduce
        )
        assert relative_error(found[[0, 1, 2, 3, 5]], KERNELS["reference"](sane, None)) < 1e-5
    assert not launch.can_reduce(make(features(8), rois, (90, 90), reduce=reduce))


def test_written_in_another_type_than_the_maps(shim: Shim) -> None:
    rois = make_rois(5, batch=2, width=38, height=22)
    rois[2] = torch.tensor([0, -60, -60, 90, 90])
    calls = [
        make(features(2 * WIDTHS[dtype][0], dtype), rois, (3, 6), dtype=written, reduce=reduce)
        for dtype, written in OTHER_TYPE
        for reduce in ("none", "mean")
    ]
    for call, found in zip(calls, shim.run(calls), strict=True):
        assert relative_error(found, KERNELS["reference"](call, None)) < TOLERANCE[call.dtype]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_work_cut_in_many_ways(shim: Shim, mode: str) -> None:
    """Outputs exceed a tile in both directions, RoIs are fewer than processors, and one map has one channel."""
    rois = make_rois(0, batch=2, width=38, height=22)[[0, 4, 8]]
    calls = [
        make(features(channels, size=(6, 9)), rois, size, mode=mode, sampling_ratio=1)
        for channels, size in ((160, (5, 70)), (1, (90, 3)), (160, (17, 16)))
    ]
    assert {launch.plan_launch(call, torch.empty(call.shape), 1).grid[2] > 1 for call in calls[::2]} == {True}
    for processors in (1, 200):
        for call, found in zip(calls, shim.run(calls, processors), strict=True):
            expected = KERNELS["cpu"](
                make([m.double() for m in call.maps], call.rois, call.output_size, mode=mode, sampling_ratio=1), None
            )
            assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_lists_longer_than_their_room(shim: Shim, mode: str) -> None:
    """Maps of photographs have more cells on an axis than shared memory holds weights."""
    maps = features(4, size=(3, 1500))
    rois = torch.tensor([[0, 0, 0, 3000, 6], [1, 10, 1, 2000, 3], [1, -9, -9, 4000, 9.0], [0, 7, 0, 11, 5]])
    calls = [make(maps, rois, size, mode=mode) for size in ((1, 1), (2, 3))]
    assert all(("LONG_LISTS", "1") in launch.plan_launch(call, torch.empty(call.shape), 1).defines for call in calls)
    check(shim, calls)


@pytest.mark.parametrize("mode", MODES)
def test_a_pyramid_in_one_launch(shim: Shim, mode: str) -> None:
    sizes, scales = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)], [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]
    rois = make_rois(30, batch=2, width=160, height=128)[3:]
    levels = torch.randint(0, 5, (len(rois),), generator=torch.Generator().manual_seed(1))
    maps = [features(8, size=size) for size in sizes]
    check(shim, [make(maps, rois, (7, 7), scales=scales, levels=levels, mode=mode, sampling_ratio=2)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [1e6, 1e12, 1e30, 3e38])
def test_huge_boxes_end_soon(shim: Shim, mode: str, side: float) -> None:
    maps, roi = (
        torch.ones(1, 4, 9, 9).contiguous(memory_format=torch.channels_last),
        torch.tensor([[0.0, -side, -side, side, side]]),
    )
    call = make(maps, roi, (3, 3), mode=mode)
    (found,) = shim.run([call])
    assert relative_error(found, KERNELS["cpu"](call, None)) < 1e-5
    assert found.abs().max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_meaning_give_nan_and_read_nothing(shim: Shim, mode: str) -> None:
    good, nan, far = [1.0, 2, 3, 14, 15], float("nan"), 1e30
    bad = [
        [2.0, 0, 0, 5, 5], [-1, 0, 0, 5, 5], [0.5, 0, 0, 5, 5], [nan, 0, 0, 5, 5], [far, 0, 0, 5, 5],
        [0, nan, 0, 5, 5], [0, 0, 0, float("inf"), 5], [0, 0, -float("inf"), 5, 5], [0, 6, 0, 5, 5], [0, 0, 6, 5, 5],
    ]  # fmt: skip
    rois = torch.tensor([row for pair in zip(itertools.repeat(good), bad, strict=False) for row in pair])
    levels = torch.zeros(len(rois), dtype=torch.int64)
    several = torch.tensor([0, 1, 2, -1, 2**40, 0, 1])
    calls = [
        make(features(8), rois, (2, 3), mode=mode),
        make([features(8), features(8)], rois.double(), (2, 3), mode=mode, levels=levels),
        make([features(8), features(8)], torch.tensor([good] * 7), (2, 3), mode=mode, levels=several),
    ]
    one, two, three = shim.run(calls)
    for found in (one, two):
        assert found[1::2].isnan().all()
        assert not found[::2].isnan().any()
    assert three.isnan().all(dim=(1, 2, 3)).tolist() == [False, False, True, True, True, False, False]


def test_nan_stays_in_its_channel_and_ones_stay_ones(shim: Shim) -> None:
    maps = torch.ones(1, 8, 8, 8, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    maps[0, 3, 2, 2] = float("nan")
    for found in shim.run(
        [make(maps, torch.tensor([[0.0, 0, 0, 16, 16]]), (4, 4), mode=mode, sampling_ratio=2) for mode in MODES]
    ):
        bad = found[0].isnan()
        assert bad[3, 1, 1]
        assert not bad[3, 3, 3]
        assert not bad[[c for c in range(8) if c != 3]].any()
        assert found[0, 0].eq(1).all()


def test_the_same_call_gives_the_same_bits_as_often_as_it_is_made(shim: Shim) -> None:
    call = make(features(24), make_rois(9, batch=2, width=38, height=22), (5, 5))
    first, second = shim.run([call, call])
    assert torch.equal(first, second)


def test_threads_of_a_block_do_not_race(tmp_path: Path) -> None:
    """ThreadSanitizer sees a missing barrier whether or not the race happens."""
    variants = [launch.specialise(torch.float32, mode, 4) for mode in MODES]
    racing = Shim(tmp_path, "thread", variants)
    rois = make_rois(2, batch=2, width=38, height=22)
    calls = [make(features(8), rois, size, mode=mode) for mode in MODES for size in ((7, 7), (2, 40))]
    for call, found in zip(calls, racing.run(calls), strict=True):
        assert relative_error(found, KERNELS["cpu"](call, None)) < 1e-5


@pytest.fixture(scope="module", autouse=True)
def conformance_count(request: pytest.FixtureRequest, shim: Shim) -> object:
    """Report how many launches were compared in the summary of the session."""
    yield
    request.config.stash[LAUNCHES] = request.config.stash.get(LAUNCHES, 0) + shim.launches
