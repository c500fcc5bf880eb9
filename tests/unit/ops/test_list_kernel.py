"""Compare the CUDA kernel for bins that are lists of cells, run on the CPU, with the CPU kernel; compile it by NVRTC."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cuda_shim import LAUNCHES, Shim
from helpers.requests import make_request
from helpers.tensors import make_rois, relative_error

from roialign_cli.errors import KernelError
from roialign_cli.ops import masked, position_sensitive, rotated, transposed
from roialign_cli.ops.cells import Cells
from roialign_cli.ops.cpu import cells as cpu_cells
from roialign_cli.ops.cuda import launch, list_launch, nvrtc
from roialign_cli.ops.cuda import run as cuda
from roialign_cli.ops.cuda.cells import ENTRY, fill_all
from roialign_cli.ops.masks import parse_masks
from roialign_cli.ops.products import fill_products

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
WIDTHS = {torch.float32: (4, 1), torch.float64: (2, 1), torch.float16: (8,), torch.bfloat16: (8, 2)}
VARIANTS = [
    launch.specialise(dtype, mode, width)
    for mode in ("avg", "max")
    for dtype, widths in WIDTHS.items()
    for width in widths
]


@pytest.fixture(scope="module")
def shim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    shim = Shim(tmp_path_factory.mktemp("shim"), "address", VARIANTS, ENTRY, list_launch.CALL)
    yield shim
    request.config.stash[LAUNCHES] = request.config.stash.get(LAUNCHES, 0) + shim.launches


def features(channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return random maps, channels-last."""
    maps = torch.randn(2, channels, 11, 19, generator=torch.Generator().manual_seed(channels)).to(dtype)
    return maps.contiguous(memory_format=torch.channels_last)


def turned(maps: list[torch.Tensor], size: tuple[int, int], mode: str, levels: torch.Tensor | None = None) -> Cells:
    generator = torch.Generator().manual_seed(3)
    place = torch.rand(9, 4, generator=generator, dtype=torch.float64) * torch.tensor([40, 24, 30, 30.0])
    index, angle = torch.arange(9).double()[:, None] % 2, 90 * torch.rand(9, 1, generator=generator).double()
    rois = torch.cat([index, place, angle], dim=1)
    scales = [0.5 / 2**i for i in range(len(maps))]
    return rotated.cells_of(make_request(maps, rois, levels, size, scales, 2, True, mode), False)


def check(shim: Shim, cells: Cells) -> None:
    expected = cpu_cells.run(cells, None)
    assert relative_error(shim.run_cells(cells), expected) < TOLERANCE[cells.request.dtype]


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_equals_the_cpu_kernel(shim: Shim, dtype: torch.dtype, mode: str) -> None:
    for channels in (2 * WIDTHS[dtype][0], 5 * WIDTHS[dtype][0], *([3] if 1 in WIDTHS[dtype] else [])):
        for size in ((3, 5), (1, 1), (14, 15)):
            check(shim, turned([features(channels, dtype)], size, mode))


@needs_compiler
def test_a_pyramid_many_channels_and_moved_bins(shim: Shim) -> None:
    maps = [features(300), features(300)[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)]
    check(shim, turned(maps, (7, 7), "avg", torch.arange(9) % 2))
    rois = make_rois(6, batch=2, width=38, height=22).double()
    request = make_request([features(8)], rois, None, (3, 5), [0.5], 0, True, "avg")
    offsets = np.random.default_rng(0).normal(size=(len(rois), 2, 3, 5))
    check(shim, Cells(request, fill_products(request, offsets, np.empty((0, 1, 1)), 0.2)))


@needs_compiler
def test_masks_and_channels_of_each_bin(shim: Shim) -> None:
    rois = make_rois(6, batch=2, width=38, height=22).double()
    pieces = parse_masks([[[1, 1, 30, 3, 20, 20]]] * len(rois), len(rois))
    request = make_request([features(12)], rois, None, (3, 5), [0.5], 0, True, "exact")
    check(shim, masked.cells_of(request, pieces.first, pieces.sides, "mask", np.zeros((len(rois), 3, 5))))
    for channels in (15, 60):
        several = [features(channels), features(channels)[:, :, ::2, ::2]]
        levels = torch.arange(len(rois)) % 2
        request = make_request(several, rois, levels, (3, 5), [0.5, 0.25], 2, True, "avg")
        check(shim, position_sensitive.cells_of(request))


@needs_compiler
def test_gradients_of_maps_of_every_operator(shim: Shim) -> None:
    """A gradient is pooled by the same kernel, from lists that are turned round: see ops/transposed.py."""
    rois = make_rois(6, batch=2, width=38, height=22).double()
    maps, levels = (
        [features(12), features(12)[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)],
        torch.arange(15) % 2,
    )
    request = make_request(maps, rois, levels, (2, 3), [0.5, 0.25], 0, True, "avg")
    every = [
        Cells(request, fill_products(request)),
        turned(maps, (2, 3), "avg", torch.arange(9) % 2),
        position_sensitive.cells_of(make_request([features(24)], rois, None, (2, 3), [0.5], 0, True, "exact")),
    ]
    for cells in every:
        k, channels = len(cells.request.rois), cells.request.maps[0].shape[1]
        passed = torch.randn(k, channels, 2, 3, generator=torch.Generator().manual_seed(0))
        for call in transposed.transposed_calls(cells, passed, np.arange(k)):
            check(shim, call)


@needs_compiler
def test_threads_of_a_block_do_not_race(tmp_path: Path) -> None:
    """ThreadSanitizer sees a missing barrier whether or not the race happens."""
    racing = Shim(
        tmp_path,
        "thread",
        [launch.specialise(torch.float32, mode, 4) for mode in ("avg", "max")],
        ENTRY,
        list_launch.CALL,
    )
    for mode in ("avg", "max"):
        check(racing, turned([features(8)], (3, 5), mode))


def test_every_variant_compiles() -> None:
    for capability in (75, 90, 100):
        for defines in VARIANTS:
            binary = nvrtc.compile_source(cuda.source(ENTRY), defines, capability)
            assert binary.kind == "cubin"


def test_lists_are_filled_in_parts() -> None:
    rois = make_rois(200, batch=2, width=38, height=22).double()
    request = make_request([features(4)], rois, None, (7, 7), [0.5], 0, True, "avg")
    cells = Cells(request, fill_products(request, np.empty((0, 2, 1, 1)), np.empty((0, 1, 1)), 0.0))
    parts = list(fill_all(cells))
    assert len(parts) > 2
    assert torch.cat([part.rows for part in parts]).tolist() == list(range(len(rois)))
    for part in parts:
        assert part.ptr[0] == 0
        assert len(part.offset) == len(part.weight) == part.ptr[-1]
        assert len(part.ptr) == len(part.rows) * 49 + 1


def test_more_levels_than_the_kernel_has() -> None:
    cells = turned([features(4)] * 17, (2, 2), "avg", torch.arange(9))
    lists = next(fill_all(cells))
    with pytest.raises(KernelError, match="expected at most 16 levels, found 17"):
        list_launch.plan_list_launch(cells, lists, torch.empty(cells.request.shape))
