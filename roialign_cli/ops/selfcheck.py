"""Check this installation for `doctor`: the environment, and the error of each kernel against the float64 reference."""

from __future__ import annotations

import importlib.metadata
import platform
import time
import warnings
from dataclasses import dataclass

import torch

from roialign_cli.config import Mode
from roialign_cli.errors import KernelError
from roialign_cli.ops import roi_align
from roialign_cli.ops.cpu.kernel import cache_folder
from roialign_cli.ops.cuda import nvrtc
from roialign_cli.ops.cuda import run as cuda
from roialign_cli.ops.cuda.launch import LOAD_BYTES, specialise
from roialign_cli.ops.dispatch import choose_kernel
from roialign_cli.version import __version__

PACKAGES = ("torch", "torchvision", "numba", "numpy", "h5py", "pillow", "msgspec", "cuda-core")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@dataclass(frozen=True)
class KernelCheck:
    """Hold the error of one kernel in one mode and type against the reference: largest error over largest value."""

    kernel: str
    mode: Mode
    dtype: str
    error: float
    tolerance: float
    passed: bool


def environment() -> dict[str, str]:
    """Return versions, processor, devices, and the kernel that `auto` means."""
    started = time.perf_counter()
    roi_align(torch.zeros(1, 1, 1, 1), torch.zeros(1, 5), 1, kernel="cpu")
    first_call = time.perf_counter() - started
    cuda_facts = _cuda_facts()  # first: afterwards the code that it times would be compiled already
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the line `cuda kernel` states the reason
        auto = choose_kernel("auto", _device(), "avg")
    return {
        "roialign": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in PACKAGES},
        "cpu threads": str(torch.get_num_threads()),
        "cpu kernel": f"ready {first_call:.2f} s after the first call; machine code in {cache_folder()}",
        **cuda_facts,
        "kernel auto": auto,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cuda_facts() -> dict[str, str]:
    """Return the CUDA device, its driver and how our kernel was built for it; one line if there is no device."""
    if torch.version.cuda is None:
        return {"cuda": "none: torch is built without it"}
    if not torch.cuda.is_available():
        return {"cuda": "none: no driver or no device found"}
    device = _device()
    facts = {
        "cuda": f"{torch.cuda.device_count()} devices, the first {torch.cuda.get_device_name(device)}",
        "cuda driver": nvrtc.driver_version(),
    }
    try:
        facts["nvrtc"] = nvrtc.version()
        defines = specialise(torch.float32, "avg", LOAD_BYTES // 4)
        binary = nvrtc.compile_source(cuda.source(), defines, cuda.capability(device))
    except KernelError as error:
        return {**facts, "cuda kernel": f"none: {error.message}"}
    how = "taken from the cache" if binary.cached else "compiled"
    facts["cuda kernel"] = f"{binary.kind} for {binary.architecture}, {how} in {binary.seconds:.3f} s"
    facts["cuda kernel cache"] = str(nvrtc.cache_folder() or "none: no home folder")
    unavailable_reason = cuda.unavailable_reason(device, torch.float32, "avg")
    return facts if unavailable_reason is None else {**facts, "cuda kernel": f"none: {unavailable_reason.message}"}


def check_kernels() -> list[KernelCheck]:
    """Check every kernel, mode and type that runs here on boxes inside, across and outside a non-square map."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 35, 13, 21, generator=generator, dtype=torch.float64)
    corner = torch.rand(24, 2, generator=generator, dtype=torch.float64) * 60 - 15
    size = torch.rand(24, 2, generator=generator, dtype=torch.float64) * 50
    batch = torch.randint(0, 2, (24, 1), generator=generator)
    rois = torch.cat([batch, corner, corner + size], dim=1)

    def pooled(kernel: str, mode: Mode, dtype: torch.dtype) -> torch.Tensor:
        maps = features.to(device if kernel == "cuda" else "cpu", dtype)
        return roi_align(maps, rois, (3, 5), spatial_scale=0.5, mode=mode, kernel=kernel).double().cpu()

    modes: tuple[Mode, ...] = ("avg", "max", "exact")
    device = _device()
    ours = ["cpu"]
    if device.type == "cuda" and cuda.unavailable_reason(device, torch.float32, "avg") is None:
        ours.append("cuda")
    cases = [(kernel, mode, dtype) for kernel in ours for mode in modes for dtype in TOLERANCES]
    cases.append(("torchvision", "avg", torch.float32))
    checks = []
    for kernel, mode, dtype in cases:
        expected = roi_align(
            features.to(dtype).double(), rois, (3, 5), spatial_scale=0.5, mode=mode, kernel="reference"
        )
        error = float((pooled(kernel, mode, dtype) - expected).abs().max() / expected.abs().max())
        name, limit = str(dtype).removeprefix("torch."), TOLERANCES[dtype]
        checks.append(KernelCheck(kernel, mode, name, error, limit, error <= limit))
    return checks
