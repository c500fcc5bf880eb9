"""Test NVRTC without a GPU: every architecture and specialisation compiles and fits in registers; the cache; the errors."""

from __future__ import annotations

import multiprocessing
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.requests import make_request
from helpers.sample_data import ROOT
from helpers.tensors import relative_error

from roialign_cli import config
from roialign_cli.errors import KernelError
from roialign_cli.ops import dispatch
from roialign_cli.ops.cuda import launch, nvrtc
from roialign_cli.ops.cuda import run as cuda

try:
    nvrtc.version()
except KernelError as error:  # a torch without CUDA
    pytest.skip(error.message, allow_module_level=True)

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
ADD = """
struct Arguments { const float *a, *b; float *sum; long long n; };
extern "C" __global__ void add(const __grid_constant__ Arguments to) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < to.n) to.sum[i] = SCALE * (to.a[i] + to.b[i]);
}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def frame_bytes(cubin: bytes, kernel: str) -> int:
    """Return the local memory of a kernel per thread, spills included: EIATTR_FRAME_SIZE in `.nv.info` of its CUBIN."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_index = struct.unpack_from("<3H", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * size) for i in range(count)]
    text = headers[names_index][4]

    def string(start: int, offset: int) -> str:
        return cubin[start + offset : cubin.index(b"\0", start + offset)].decode()

    sections = {string(text, header[0]): header for header in headers}
    strings, symbols, info = (sections[name] for name in (".strtab", ".symtab", ".nv.info"))
    found, at = {}, info[4]
    while at < info[4] + info[5]:
        layout, attribute, length = struct.unpack_from("<BBH", cubin, at)
        if (layout, attribute) == (4, 0x11):
            symbol, frame = struct.unpack_from("<2I", cubin, at + 4)
            (name,) = struct.unpack_from("<I", cubin, symbols[4] + 24 * symbol)
            found[string(strings[4], name)] = frame
        at += 4 + (length if layout == 4 else 0)
    return found[kernel]


def test_the_reader_of_frames_sees_spills() -> None:
    hungry = """extern "C" __global__ void __launch_bounds__(1024) hungry(float *x, int n) {
        float keep[64];
        for (int i = 0; i < 64; ++i) keep[i] = x[i];
        for (int i = 0; i < n; ++i) keep[(i * 7) % 64] += x[64 + i];
        for (int i = 0; i < 64; ++i) x[i] = keep[i];
    }"""
    assert frame_bytes(nvrtc.compile_source(hungry, (), 90).code, "hungry") >= 256
    assert frame_bytes(nvrtc.compile_source(ADD, (("SCALE", "2"),), 90).code, "add") == 0


def specialisations() -> list[tuple[int, launch.Defines]]:
    """Return what the named configurations can meet on every architecture, and everything on two, for long lists, too."""
    modes = {config.load(path.stem, {}, others=frozenset({"vary"})).mode for path in (ROOT / "configs").glob("*.yaml")}
    wanted = []
    for capability in ARCHITECTURES:
        everything = capability in (75, 90)
        for dtype in launch.ELEMENTS:
            for mode in ("avg", "max", "exact") if everything else sorted(modes):
                vector = launch.LOAD_BYTES // dtype.itemsize
                for overflow in (False, True) if everything else (False,):
                    wanted.append((capability, launch.specialise(dtype, mode, vector, overflow=overflow)))
    return wanted


@pytest.mark.slow
def test_every_specialisation_spills_a_few_values_at_most() -> None:
    """Registers for four blocks are worth more than a few values kept in memory, outside of the loops over cells."""

    def check(wanted: tuple[int, launch.Defines]) -> tuple[object, int]:
        capability, defines = wanted
        binary = nvrtc.compile_source(cuda.source(), defines, capability)
        assert (binary.kind, binary.architecture) == ("cubin", f"sm_{capability}")
        return wanted, frame_bytes(binary.code, cuda.ENTRY)

    with ThreadPoolExecutor() as pool:
        frames = list(pool.map(check, specialisations()))
    assert len(frames) > 40
    assert [(wanted, frame) for wanted, frame in frames if frame > 64] == []
    plain = launch.specialise(torch.float32, "avg", 4)
    assert {frame for (_, defines), frame in frames if defines == plain} == {0}


@pytest.mark.parametrize("mode", ["avg", "max", "exact"])
@pytest.mark.parametrize("vector", [1, 2])
def test_narrow_loads_and_long_lists_compile(mode: str, vector: int) -> None:
    for overflow in (False, True):
        defines = launch.specialise(torch.bfloat16, mode, vector, overflow=overflow)
        assert nvrtc.compile_source(cuda.source(), defines, 90).code.startswith(b"\x7fELF")


def test_the_cache_is_used_and_knows_what_matters(cache: Path) -> None:
    first = nvrtc.compile_source(ADD, (("SCALE", "2"),), 90)
    again = nvrtc.compile_source(ADD, (("SCALE", "2"),), 90)
    assert (first.cached, again.cached) == (False, True)
    assert again.code == first.code
    assert not nvrtc.compile_source(ADD, (("SCALE", "3"),), 90).cached
    assert not nvrtc.compile_source(ADD, (("SCALE", "2"),), 80).cached
    assert not nvrtc.compile_source(ADD + "\n", (("SCALE", "2"),), 90).cached
    assert nvrtc.cache_folder() == cache / "roialign" / "cuda"


def test_without_a_cache_folder_it_compiles_in_memory(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        assert not nvrtc.compile_source(ADD, (("SCALE", "2"),), 90).cached


def test_a_cache_that_cannot_be_written_is_read(cache: Path) -> None:
    kept = nvrtc.compile_source(ADD, (("SCALE", "2"),), 90)
    folder = nvrtc.cache_folder() / "tmp"  # where a new entry is staged
    folder.rmdir()
    folder.write_text("in the way")
    assert nvrtc.compile_source(ADD, (("SCALE", "2"),), 90).code == kept.code
    assert not nvrtc.compile_source(ADD, (("SCALE", "5"),), 90).cached


def _compile(_: int) -> bytes:
    return nvrtc.compile_source(ADD, (("SCALE", "2"),), 90).code


def test_several_processes_compile_at_once() -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        codes = pool.map(_compile, range(6), chunksize=1)
    assert len(set(codes)) == 1


def test_a_refusal_shows_the_log_the_architecture_and_the_options() -> None:
    with pytest.raises(KernelError) as caught:
        nvrtc.compile_source(ADD, (("SCALE", "no_such_name"),), 89)
    for part in ("-arch=sm_89", "-DSCALE=no_such_name", 'identifier "no_such_name" is undefined', nvrtc.version()):
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("capability", "expected"),
    [(90, ("cubin", "sm_90")), (87, ("cubin", "sm_86")), (121, ("cubin", "sm_120")), (140, ("ptx", "compute_120"))],
)
def test_the_target_is_the_device_or_the_nearest_that_runs_on_it(capability: int, expected: tuple[str, str]) -> None:
    assert nvrtc.target(capability, [75, 80, 86, 90, 120]) == expected


@pytest.mark.parametrize("capability", [61, 70])
def test_a_device_older_than_nvrtc_is_refused(capability: int) -> None:
    with pytest.raises(KernelError, match=rf"capability 7.5 or later, found {capability / 10}"):
        nvrtc.target(capability, [75, 80, 90])


def old_core() -> ModuleType:
    """Return a cuda.core that lacks most names, as version 0.4 does."""
    core = ModuleType("cuda.core")
    core.Device = None
    return core


@pytest.mark.parametrize(
    ("core", "found"),
    [(None, "cuda.core"), (old_core(), "no attribute 'ObjectCode'")],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, core: ModuleType | None, found: str) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    for attempt in (lambda: nvrtc.compile_source(ADD, (), 90), lambda: nvrtc.load(ADD, "add", (), 90)):
        with pytest.raises(KernelError, match="expected the packages cuda-core") as caught:
            attempt()
        assert caught.value.reference == "kernel-unavailable"
        assert found in caught.value.message


def test_without_the_package_torchvision_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    for cached in (cuda.unavailable_reason, dispatch._warn):
        cached.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="kernel torchvision serves cuda:0: "):
            assert dispatch.choose_kernel("auto", torch.device("cuda", 0), "avg") == "torchvision"
    finally:
        cuda.unavailable_reason.cache_clear()


def test_a_variant_that_cannot_be_built_later_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("kernel-compile", "NVRTC: expected something else")

    monkeypatch.setitem(dispatch.KERNELS, "cuda", refuse)
    dispatch._warn.cache_clear()
    maps, rois = [torch.randn(1, 4, 9, 9)], torch.tensor([[0.0, 1, 2, 6, 7]])
    request = make_request(maps, rois, None, (3, 3), [1.0], 2, True, "avg")
    with pytest.warns(RuntimeWarning, match="kernel torchvision serves cpu: NVRTC: expected something else"):
        found = dispatch.run_kernel(request, "auto", "cuda", None)
    assert relative_error(found, dispatch.KERNELS["reference"](request, None)) < 1e-5
    for kernel, mode in (("cuda", "avg"), ("auto", "exact")):
        with pytest.raises(KernelError, match="expected something else"):
            dispatch.run_kernel(replace(request, mode=mode), kernel, "cuda", None)


def test_nothing_of_cuda_is_imported_before_it_is_needed() -> None:
    code = "import sys, roialign_cli.ops; sys.exit(len({'cuda.core', 'cuda.bindings.nvrtc'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
