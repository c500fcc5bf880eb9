"""Run the bundled CUDA kernel: compile it for the device of the tensors, launch it on torch's current stream."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.resources import files

import torch
from torch import Tensor

from roialign_cli.errors import KernelError
from roialign_cli.ops.cuda import nvrtc
from roialign_cli.ops.cuda.launch import LOAD_BYTES, can_reduce, plan_launch, specialise
from roialign_cli.ops.request import Request, finish
from roialign_cli.system.device_queue import upload

ENTRY = "roi_align"


@functools.cache
def source(kernel: str = ENTRY) -> str:
    """Return the source of a kernel, with what the kernels share in front."""
    parts = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("elements.cuh", f"{kernel}.cu"))
    return "".join(parts)


def run(request: Request, out: Tensor | None) -> Tensor:
    """Return the pooled features of a request on CUDA tensors, in `out` if given.

    Does not wait for the device. Invalid rows (see `validate` of `roi_align`) give NaN.
    Raises KernelError if the kernel cannot be built, loaded or launched here.
    """
    device = request.maps[0].device
    if request.reduce != "none" and not can_reduce(request):
        return finish(run(replace(request, reduce="none"), None), request, out)
    if out is None:
        out = torch.empty(request.shape, dtype=request.dtype, device=device)
    if out.numel() == 0:
        return out
    request = replace(
        request,
        maps=tuple(
            m.contiguous(memory_format=torch.channels_last) if should_repack(m, request) else m for m in request.maps
        ),
        rois=upload(request.rois, device),
        levels=None if request.levels is None else upload(request.levels, device),
    )
    with torch.cuda.device(device):
        nvrtc.use_device(torch.cuda.current_device())
        launch = plan_launch(request, out, _processors(device))
        kernel = nvrtc.load(source(), ENTRY, launch.defines, capability(device))
        stream = torch.cuda.current_stream(device).cuda_stream
        nvrtc.launch(kernel, launch.grid, launch.threads, launch.shared, stream, launch.call)
    return out


def should_repack(features: Tensor, request: Request) -> bool:
    """Return whether a map should be copied to channels-last first: its RoIs read more cells than the map has.

    Threads own channels. They gather a map of another layout value by value, which is about as slow as copying it whole.
    """
    n, channels, height, width = features.shape
    if features.stride(1) == 1 or channels == 1:
        return False
    ph, pw = request.output_size
    samples = 2 * (request.sampling_ratio or 2)  # cells on either side of each sample
    return len(request.rois) / len(request.maps) * ph * pw * samples**2 > n * height * width


def capability(device: torch.device) -> int:
    """Return the compute capability of a device, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def unavailable_reason(device: torch.device, dtype: torch.dtype, mode: str) -> KernelError | None:
    """Return why the kernel cannot run on a device, or None; builds and loads the kernel once per process."""
    vector = LOAD_BYTES // dtype.itemsize
    try:
        with torch.cuda.device(device):
            nvrtc.version()  # says what is missing
            nvrtc.use_device(torch.cuda.current_device())
            nvrtc.load(source(), ENTRY, specialise(dtype, mode, vector), capability(device))
    except KernelError as error:
        return error
    except (AssertionError, RuntimeError) as error:  # torch raises these if it finds no driver or no such device
        message = f"kernel cuda: expected a device that torch can use, found: {str(error).strip()}"
        return KernelError("kernel-unavailable", message, "use the cpu")
    return None


@functools.cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
