"""What `doctor` finds out: the environment, and how far each kernel is from the float64 reference."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import dataclass

import torch

from roialign_cli.ops import choose, cpu_kernels, roi_align
from roialign_cli.ops.request import Mode
from roialign_cli.version import __version__

PACKAGES = ("torch", "torchvision", "numba", "numpy", "h5py", "pillow", "msgspec")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@dataclass(frozen=True)
class KernelCheck:
    """One kernel in one mode and type against the reference: the largest error over the largest value."""

    kernel: str
    mode: Mode
    dtype: str
    error: float
    tolerance: float
    passed: bool


def environment() -> dict[str, str]:
    """Versions, processor, devices, and which kernel `auto` means."""
    started = time.perf_counter()
    roi_align(torch.zeros(1, 1, 1, 1), torch.zeros(1, 5), 1, kernel="cpu")
    first_call = time.perf_counter() - started
    if torch.cuda.is_available():
        cuda = f"{torch.cuda.device_count()} devices, the first {torch.cuda.get_device_name(0)}; kernel torchvision"
    else:
        cuda = "none: " + (
            "torch is built without it" if torch.version.cuda is None else "no driver or no device found"
        )
    return {
        "roialign": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "cpu threads": str(torch.get_num_threads()),
        "cuda": cuda,
        "kernel auto": choose("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"), "avg"),
        "cpu kernel": f"ready {first_call:.2f} s after the first call; machine code in {cpu_kernels.cache_folder()}",
    }


def check_kernels() -> list[KernelCheck]:
    """Every kernel, mode and type that runs on the CPU, on boxes inside, across and outside a non-square map."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 35, 13, 21, generator=generator, dtype=torch.float64)
    corner = torch.rand(24, 2, generator=generator, dtype=torch.float64) * 60 - 15
    size = torch.rand(24, 2, generator=generator, dtype=torch.float64) * 50
    batch = torch.randint(0, 2, (24, 1), generator=generator)
    rois = torch.cat([batch, corner, corner + size], dim=1)

    def pooled(kernel: str, mode: Mode, dtype: torch.dtype) -> torch.Tensor:
        return roi_align(features.to(dtype), rois, (3, 5), spatial_scale=0.5, mode=mode, kernel=kernel).double()

    modes: tuple[Mode, ...] = ("avg", "max", "exact")
    cases = [("cpu", mode, dtype) for mode in modes for dtype in TOLERANCES]
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
