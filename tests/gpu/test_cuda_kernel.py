"""The CUDA kernel on a device: against the reference, torchvision's operator and the CPU kernel."""

from __future__ import annotations

import itertools
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
import torchvision
from helpers.cuda_waits import no_waiting
from helpers.tensors import layouts, make_rois, relative_error, whole_cell_rois

from roialign_cli import roi_align
from roialign_cli.backbones import load_backbone
from roialign_cli.config import Settings
from roialign_cli.errors import KernelError, OperatorInputError
from roialign_cli.ops.cuda import nvrtc
from roialign_cli.ops.cuda import run as cuda
from roialign_cli.ops.dispatch import choose_kernel

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
MODES = ("avg", "max", "exact")
pytestmark = pytest.mark.gpu


def features(channels: int, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (11, 19)) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(channels)).to(dtype)


def test_vector_addition_by_nvrtc_alone(device: torch.device) -> None:
    source = """
    struct Arguments { const float *a, *b; float *sum; long long n; };
    extern "C" __global__ void add(const __grid_constant__ Arguments to) {
        long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
        if (i < to.n) to.sum[i] = SCALE * (to.a[i] + to.b[i]);
    }"""
    a, b = torch.randn(2, 100_003, device=device)
    total = torch.full_like(a, float("nan"))
    record = np.array((a.data_ptr(), b.data_ptr(), total.data_ptr(), len(a)), [(name, np.int64) for name in "abcd"])
    with torch.cuda.device(device):
        kernel = nvrtc.load(source, "add", (("SCALE", "2"),), cuda.capability(device))
        nvrtc.launch(kernel, (-(-len(a) // 256), 1, 1), 256, 0, torch.cuda.current_stream().cuda_stream, record)
    assert torch.equal(total, 2 * (a + b))


def test_ptx_for_a_device_of_the_future() -> None:
    binary = nvrtc.compile_source('extern "C" __global__ void nothing() {}', (), 990)
    assert binary.kind == "ptx"
    assert b".entry nothing" in binary.code


def test_auto_takes_the_kernel_without_a_warning(device: torch.device) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in MODES:
            assert choose_kernel("auto", device, mode) == "cuda"


def test_where_it_cannot_be_built_torchvision_serves_with_a_warning(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = features(8).to(device)
    rois = torch.tensor([[0, 1, 2, 15, 9.5], [1, -3, 0, 8, 30]], device=device)
    expected = roi_align(maps, rois, 4)
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    for cached in (cuda.unavailable_reason, nvrtc.load):
        cached.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="expected the packages cuda-core"):
            found = roi_align(maps, rois, 4)
        assert relative_error(found.cpu(), expected.cpu()) < 2e-5
        with pytest.raises(KernelError, match="expected the packages cuda-core"):
            roi_align(maps, rois, 4, kernel="cuda")
    finally:
        cuda.unavailable_reason.cache_clear()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_the_reference(device: torch.device, dtype: torch.dtype) -> None:
    rois = make_rois(8, batch=2, width=38, height=22)
    rois[2] = torch.tensor([0, -100, -100, 150, 150])
    for channels, mode, aligned, ratio in itertools.product((1, 17, 48), MODES, (True, False), (0, 1, 3)):
        maps = features(channels, dtype)
        settings = {"spatial_scale": 0.5, "mode": mode, "aligned": aligned, "sampling_ratio": ratio}
        expected = roi_align(maps.double(), rois, (3, 6), kernel="reference", **settings)
        found = roi_align(maps.to(device), rois.to(device), (3, 6), kernel="cuda", **settings)
        assert found.dtype == dtype
        assert found.device == device
        assert relative_error(found.cpu(), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("ratio", range(4))
@pytest.mark.parametrize("output_size", [(7, 7), (3, 5), (14, 14), (33, 70)])
def test_equals_torchvision_on_the_device(device: torch.device, ratio: int, output_size: tuple[int, int]) -> None:
    maps = features(160, size=(33, 57)).to(device)
    rois = make_rois(60, batch=2, width=57 * 16, height=33 * 16).to(device)
    expected = torchvision.ops.roi_align(maps, rois, output_size, 1 / 16, ratio, aligned=True)
    found = roi_align(maps, rois, output_size, spatial_scale=1 / 16, sampling_ratio=ratio, kernel="cuda")
    assert relative_error(found.cpu(), expected.cpu()) < 2e-5


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_cpu_kernel_on_a_large_map(device: torch.device, mode: str, dtype: torch.dtype) -> None:
    """The documented tolerance between devices is 1e-5 of the maximum in float32, or the rounding of the type."""
    maps, rois = features(64, dtype, size=(200, 336)), make_rois(300, batch=2, width=1344, height=800)
    settings = {"spatial_scale": 0.25, "mode": mode, "sampling_ratio": 0 if mode != "max" else 2}
    expected = roi_align(maps, rois, 7, **settings)
    assert relative_error(roi_align(maps.to(device), rois, 7, **settings).cpu(), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("mode", MODES)
def test_every_layout(device: torch.device, mode: str) -> None:
    rois = make_rois(12, batch=2, width=19, height=11)
    for channels in (3, 16, 37, 256):
        for name, maps in layouts(features(channels).to(device)).items():
            expected = roi_align(maps.cpu(), rois, (4, 5), mode=mode)
            assert relative_error(roi_align(maps, rois, (4, 5), mode=mode).cpu(), expected) < 1e-5, name


def test_maps_of_photographs_have_lists_longer_than_their_room(device: torch.device) -> None:
    maps = features(3, size=(1500, 2600))
    rois = torch.tensor(
        [[0, 0, 0, 2600, 1500], [1, 30, 40, 900.5, 1200], [1, -500, -500, 9000, 9000], [0, 5, 5, 60, 90]]
    )
    for mode in MODES:
        expected = roi_align(maps, rois, (2, 3), mode=mode)
        assert relative_error(roi_align(maps.to(device), rois, (2, 3), mode=mode).cpu(), expected) < 1e-5


def test_a_pyramid_in_one_call(device: torch.device) -> None:
    sizes, scales = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)], [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]
    rois = make_rois(50, batch=2, width=160, height=128)
    levels = torch.randint(0, 5, (len(rois),), generator=torch.Generator().manual_seed(1))
    maps = [features(33, size=size) for size in sizes]
    expected = roi_align(maps, rois, 7, spatial_scale=scales, levels=levels)
    there = [m.to(device) for m in maps]
    for place in ("cpu", device):
        found = roi_align(there, rois.to(place), 7, spatial_scale=scales, levels=levels.to(place))
        assert relative_error(found.cpu(), expected) < 1e-5


def test_the_same_bits_every_time(device: torch.device) -> None:
    maps, rois = features(256, size=(50, 84)).to(device), make_rois(200, batch=2, width=1344, height=800).to(device)
    for mode in MODES:
        first = roi_align(maps, rois, 7, spatial_scale=1 / 16, mode=mode)
        for _ in range(50):
            assert torch.equal(roi_align(maps, rois, 7, spatial_scale=1 / 16, mode=mode), first)


def test_unvalidated_calls_do_not_wait_and_bad_rows_give_nan(device: torch.device) -> None:
    good, nan = [1.0, 2, 3, 14, 15], float("nan")
    bad = [
        [2.0, 0, 0, 5, 5],
        [-1, 0, 0, 5, 5],
        [0.5, 0, 0, 5, 5],
        [0, nan, 0, 5, 5],
        [0, 6, 0, 5, 5],
        [1e30, 0, 0, 5, 5],
    ]
    rois = torch.tensor([row for pair in zip([good] * len(bad), bad, strict=True) for row in pair], device=device)
    maps = features(8).to(device, memory_format=torch.channels_last)
    roi_align(maps, rois, 3, validate=False)  # compiled, loaded
    with no_waiting():
        found = roi_align(maps, rois, 3, validate=False)
    assert found[1::2].isnan().all()
    assert not found[::2].isnan().any()
    with pytest.raises(OperatorInputError, match="rois row 7: expected finite numbers"):
        roi_align(maps, rois, 3)


def test_work_is_ordered_on_the_stream_it_was_given_to(device: torch.device) -> None:
    maps, rois = features(64, size=(50, 84)).to(device), make_rois(100, batch=2, width=84, height=50).to(device)
    expected = roi_align(2 * maps, rois, 7)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the map below is late
        found = roi_align(maps * 2, rois, 7, validate=False)
    stream.synchronize()
    assert torch.equal(found, expected)


def test_captured_in_a_graph(device: torch.device) -> None:
    maps, rois = features(64).to(device, memory_format=torch.channels_last), make_rois(30, 2, 19, 11).to(device)
    roi_align(maps, rois, 7, validate=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = roi_align(maps, rois, 7, validate=False)
    maps.mul_(3)
    graph.replay()
    assert torch.equal(found, roi_align(maps, rois, 7))


def test_several_devices_in_one_process() -> None:
    maps, rois = features(32), make_rois(30, batch=2, width=19, height=11)
    expected = roi_align(maps, rois, 7)
    for index in range(torch.cuda.device_count()):  # the current device stays the first
        found = roi_align(maps.to(f"cuda:{index}"), rois, 7)
        assert found.device.index == index
        assert relative_error(found.cpu(), expected) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_pool(device: torch.device, mode: str) -> None:
    maps = features(5).to(device)
    assert roi_align(maps, torch.empty(0, 5), (2, 3), mode=mode).shape == (0, 5, 2, 3)
    assert roi_align(maps[:, :0], torch.zeros(3, 5), 7, mode=mode).shape == (3, 0, 7, 7)


def test_inside_compile_and_inference_mode(device: torch.device) -> None:
    maps, rois = features(16).to(device), make_rois(9, batch=2, width=19, height=11).to(device)
    expected = roi_align(maps, rois, 7)
    compiled = torch.compile(lambda m, r: roi_align(m, r, 7), backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(maps, rois), expected)


def test_out_is_filled(device: torch.device) -> None:
    maps, rois = features(16).to(device), make_rois(9, batch=2, width=19, height=11)
    out = torch.full((len(rois), 16, 7, 7), float("nan"), device=device)
    assert roi_align(maps, rois, 7, out=out) is out
    assert torch.equal(out, roi_align(maps, rois, 7))


def test_more_than_2_to_the_31_elements_of_input(device: torch.device) -> None:
    maps = torch.zeros(1, 16400, 8200, 16, dtype=torch.bfloat16, device=device).permute(0, 3, 1, 2)
    assert maps.numel() > 2**31
    maps[:, :, -8:, -8:] = 3.0
    roi = torch.tensor([[0, 8200 - 6, 16400 - 6, 8200, 16400]], dtype=torch.float64)
    for ratio in (0, 2):
        assert roi_align(maps, roi, 2, sampling_ratio=ratio).eq(3).all()


def test_more_than_2_to_the_31_elements_of_output(device: torch.device) -> None:
    maps = features(1024, torch.float16).to(device, memory_format=torch.channels_last)
    rois = make_rois(4400, batch=2, width=19, height=11).to(device)
    pooled = roi_align(maps, rois, 22, sampling_ratio=1)
    assert pooled.numel() > 2**31
    assert torch.equal(pooled[-3:], roi_align(maps, rois[-3:], 22, sampling_ratio=1))
    assert not pooled.isnan().any()


def test_in_a_thread_of_its_own(device: torch.device) -> None:
    """A new thread has no context, and torch's allocator needs no call of CUDA to hand out memory again."""
    maps, rois = features(8).to(device), make_rois(9, batch=2, width=19, height=11).to(device)
    expected = roi_align(maps, rois, 4)
    out, found = torch.empty_like(expected), []
    thread = threading.Thread(target=lambda: found.append(roi_align(maps, rois, 4, out=out, validate=False)))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("scale", [1 / 14, 0.1])
def test_scales_that_are_no_powers_of_two(device: torch.device, scale: float) -> None:
    maps, rois = features(4, size=(60, 60)), whole_cell_rois(20_000, scale)
    expected = roi_align(maps, rois, 7, spatial_scale=scale)
    found = roi_align(maps.to(device), rois.to(device), 7, spatial_scale=scale, kernel="cuda")
    assert relative_error(found.cpu(), expected) < 1e-5


def test_float32_is_not_tf32(device: torch.device) -> None:
    backbone = load_backbone(Settings(backbone="resnet18", weights="random:0"))
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = backbone(images)[0][0]
        backbone.to(device)
        exact, coarse = (backbone(images.to(device), precision)[0][0].cpu() for precision in ("float32", "tf32"))
    assert relative_error(exact, expected) < 1e-5
    if cuda.capability(device) >= 80:
        assert 1e-5 < relative_error(coarse, expected) < 1e-1
