"""Choose the kernel that serves a call of RoI Align."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from roialign_cli.errors import KernelError
from roialign_cli.ops import checks, reference, torchvision
from roialign_cli.ops.cells import Cells
from roialign_cli.ops.cpu import cells as cpu_cells
from roialign_cli.ops.cpu import run as cpu
from roialign_cli.ops.cuda import cells as cuda_cells
from roialign_cli.ops.cuda import run as cuda
from roialign_cli.ops.request import Request, finish

Kernel = Callable[[Request, Tensor | None], Tensor]
KERNELS: dict[str, Kernel] = {
    "cpu": cpu.run,
    "cuda": cuda.run,
    "torchvision": torchvision.run,
    "reference": reference.run,
}


def choose_kernel(kernel: str, device: torch.device, mode: str, dtype: torch.dtype = torch.float32) -> str:
    """Return the name of the kernel for tensors of a device and type in a mode; `auto` means the fastest available.

    Where the CUDA kernel is not available, `auto` warns once with the reason and takes torchvision's operator.
    Raises KernelError if no kernel can serve the call.
    """
    if kernel != "auto" and kernel not in KERNELS:
        names = ", ".join(["auto", *KERNELS])
        raise KernelError("kernel-unknown", f"kernel: expected one of {names}, found {kernel!r}")
    if kernel in ("cpu", "cuda") and device.type != kernel:
        raise KernelError("kernel-device", f"kernel {kernel}: expected a {kernel} device, found {device}", "use auto")
    if kernel == "auto" and device.type == "cpu":
        return "cpu"
    if kernel == "cuda" or (kernel == "auto" and device.type == "cuda"):
        reason = cuda.unavailable_reason(device, dtype, mode)
        if reason is None:
            return "cuda"
        if kernel == "cuda" or mode != "avg":
            raise reason
        _warn(f"kernel torchvision serves {device}: {reason.message}")
    if kernel == "auto":
        kernel = "torchvision"
    if kernel == "torchvision" and mode != "avg":
        message = f"kernel torchvision, on {device}: expected mode avg, found {mode}"
        raise KernelError("kernel-mode", message, "use kernel auto")
    return kernel


def run_kernel(request: Request, kernel: str, name: str, out: Tensor | None) -> Tensor:
    """Run the kernel of this name, which `choose_kernel` has chosen for `kernel`.

    A variant of the CUDA kernel that cannot be built, loaded or planned for this request is replaced by torchvision's
    operator, as `choose_kernel` does for the variant that it tries.
    """
    try:
        return KERNELS[name](request, out)
    except KernelError as error:
        if kernel != "auto" or name != "cuda" or request.mode != "avg":
            raise
        _warn(f"kernel torchvision serves {request.maps[0].device}: {error.message}")
        return KERNELS["torchvision"](request, out)


def pool_cells(cells: Cells, kernel: str, define: Callable[[], Tensor] | None, out: Tensor | None) -> Tensor:
    """Return the pooled features of regions whose bins are lists of cells.

    `define` computes [K, C, PH, PW] by the definition, for kernel `reference`; None if there is none. Raises
    KernelError if no kernel can serve the call: torchvision has none for such regions.
    """
    request = cells.request
    device = request.maps[0].device
    if out is not None:
        checks.check_out_shape(out, request.shape, request.dtype, device)
    if kernel == "reference" and define is not None:
        return finish(define().to(device), request, out).to(request.dtype)
    if kernel not in ("auto", "cpu", "cuda"):
        raise KernelError("kernel-unknown", f"kernel: expected auto, cpu, cuda or reference, found {kernel!r}")
    if kernel not in ("auto", device.type):
        raise KernelError("kernel-device", f"kernel {kernel}: expected a {kernel} device, found {device}", "use auto")
    if device.type == "cpu":
        return cpu_cells.run(cells, out)
    if device.type != "cuda":
        raise KernelError(
            "kernel-device", f"expected maps on the cpu or on CUDA, found {device}", "move them to the cpu"
        )
    reason = cuda.unavailable_reason(device, request.maps[0].dtype, request.mode)
    if reason is not None:
        raise reason
    return cuda_cells.run(cells, out)


@functools.cache
def _warn(message: str) -> None:
    """Warn once per process."""
    warnings.warn(message, RuntimeWarning, stacklevel=4)
