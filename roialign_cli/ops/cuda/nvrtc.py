"""Compile CUDA C++ for the device at hand with NVRTC (through `cuda.core`), cache the machine code on disk, launch it.

This module knows nothing of RoIs. It needs no compiler and no CUDA toolkit: NVRTC is a library that comes with torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import KernelError
from roialign_cli.system.cache import user_cache

CACHE_BYTES = 64 << 20
CORE_NAMES = ("Device", "ObjectCode", "Program", "ProgramOptions")  # of cuda.core, which are used here
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
Defines = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Binary:
    """Hold machine code (CUBIN), or PTX for a device newer than NVRTC supports; `seconds` is the time it took to get."""

    code: bytes
    kind: str
    architecture: str
    cached: bool
    seconds: float


def version() -> str:
    """Return the version of NVRTC, such as 13.2. Raises KernelError if it is missing."""
    _, major, minor = _bindings()[1].nvrtcVersion()
    return f"{major}.{minor}"


def driver_version() -> str:
    """Return the newest CUDA version that the driver supports, such as 13.0."""
    from cuda.bindings import driver

    _, number = driver.cuDriverGetVersion()
    return f"CUDA {number // 1000}.{number % 1000 // 10}"


def architectures() -> list[int]:
    """Return the compute capabilities that NVRTC compiles machine code for, such as 90, in ascending order."""
    return sorted(_bindings()[1].nvrtcGetSupportedArchs()[1])


def target(capability: int, known: list[int]) -> tuple[str, str]:
    """Return the kind and architecture to compile to: machine code, or PTX for a device newer than all that are known.

    Machine code runs on later devices of the same generation: code for 8.0 runs on 8.6, code for 7.5 does not run on 8.0.
    """
    same = [arch for arch in known if arch // 10 == capability // 10 and arch <= capability]
    if same:
        return "cubin", f"sm_{same[-1]}"
    if capability > known[-1]:
        return "ptx", f"compute_{known[-1]}"
    message = f"NVRTC {version()}: expected a device of compute capability {known[0] / 10} or later"
    raise KernelError("kernel-unavailable", f"{message}, found {capability / 10}", "use kernel torchvision")


def cache_folder() -> Path | None:
    """Return the folder that keeps machine code between runs; None if there is no home folder."""
    return user_cache("cuda")


def compile_source(source: str, defines: Defines, capability: int) -> Binary:
    """Compile for a compute capability such as 90, or take the code from the cache.

    Several processes may call this at once. A cache that cannot be read or written is ignored.

    Raises:
        KernelError: NVRTC is missing or fails; the message then has its log, the architecture and the options.
    """
    started = time.perf_counter()
    core, _ = _bindings()
    kind, architecture = target(capability, architectures())
    options = core.ProgramOptions(arch=architecture, std="c++17", define_macro=list(defines) or None)
    cache, key = _open_cache(), b""
    if cache is not None:
        from cuda.core.utils import make_program_cache_key

        key = make_program_cache_key(code=source, code_type="c++", options=options, target_type=kind)
        code = None
        with contextlib.suppress(OSError):
            code = cache.get(key)
        if code is not None:
            return Binary(code, kind, architecture, True, time.perf_counter() - started)
    try:
        code = bytes(core.Program(source, "c++", options).compile(kind).code)
    except Exception as error:  # cuda.core's error classes differ from version to version
        given = " ".join([f"-arch={architecture}", "-std=c++17", *(f"-D{name}={value}" for name, value in defines)])
        message = f"NVRTC {version()}: expected the kernel to compile with {given}, found: {str(error).strip()}"
        raise KernelError("kernel-compile", message, "use kernel torchvision, and report this") from error
    if cache is not None:
        with contextlib.suppress(OSError):  # the folder is read-only or full: the next run compiles again
            cache[key] = code
    return Binary(code, kind, architecture, False, time.perf_counter() - started)


@functools.cache
def load(source: str, entry: str, defines: Defines, capability: int) -> Any:
    """Return the kernel `entry` (a cuda.core Kernel), ready to launch on every device of that compute capability.

    Needs a current device, see `use_device`. Raises what `compile_source` raises, KernelError if the driver
    cannot load the code, and MemoryError if the device has no memory left for it.
    """
    core, _ = _bindings()
    binary = compile_source(source, defines, capability)
    read = core.ObjectCode.from_cubin if binary.kind == "cubin" else core.ObjectCode.from_ptx
    try:
        return read(binary.code).get_kernel(entry)
    except Exception as error:
        if OUT_OF_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        message = f"the driver: expected to load {entry} for {binary.architecture}, found: {str(error).strip()}"
        raise KernelError("kernel-load", message, "use kernel torchvision, or update the driver") from error


def use_device(device: int) -> None:
    """Make a device, given by its number, current for the driver's calls of this thread.

    Torch chooses devices through CUDA's runtime, whose calls do so by the way. In a new thread there may have been none, as
    torch's allocator needs no call to hand out memory again.
    """
    from cuda.bindings import driver

    result, context = driver.cuCtxGetCurrent()
    if result != driver.CUresult.CUDA_SUCCESS or not int(context):
        _bindings()[0].Device(device).set_current()


def launch(
    kernel: Any, grid: tuple[int, int, int], threads: int, shared: int, stream: int, argument: npt.NDArray[np.void]
) -> None:
    """Launch a kernel on a stream, given by its address, of the current device; does not wait.

    `argument` is the kernel's one parameter, a record passed by value; `shared` is in bytes. `cuda.core.launch` takes no
    records, so this calls the driver through its bindings. Raises KernelError if the driver refuses the launch, and
    MemoryError if the device has no memory left for it.
    """
    from cuda.bindings import driver

    pointers = np.array([argument.ctypes.data], np.uint64)
    (result,) = driver.cuLaunchKernel(
        driver.CUfunction(int(kernel.handle)), *grid, threads, 1, 1, shared, driver.CUstream(stream),
        pointers.ctypes.data, 0,
    )  # fmt: skip
    if result == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryError(f"{result.name} at the launch of a kernel")
    if result != driver.CUresult.CUDA_SUCCESS:
        found = f"{result.name}, for grid {grid}, {threads} threads, {shared} bytes"
        raise KernelError("kernel-launch", f"the driver: expected the kernel to start, found {found}")


def _bindings() -> tuple[Any, Any]:
    """Return cuda.core and the bindings of NVRTC, with the library loaded. Raises KernelError if one is missing or too old."""
    try:
        core: Any = importlib.import_module("cuda.core")
        nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
        for name in CORE_NAMES:
            getattr(core, name)
        nvrtc.nvrtcVersion()
    except Exception as error:  # the bindings raise errors of their own if they find no library
        message = (
            f"NVRTC: expected the packages cuda-core (1.0 or later) and nvidia-cuda-nvrtc, found: {str(error).strip()}"
        )
        raise KernelError("kernel-unavailable", message, "install a torch built for CUDA") from error
    return core, nvrtc


def _open_cache() -> Any:
    folder = cache_folder()
    try:
        from cuda.core.utils import FileStreamProgramCache

        return FileStreamProgramCache(folder, max_size_bytes=CACHE_BYTES) if folder else None
    except (ImportError, OSError):
        return None
