"""RoI Align: the public operator, and which kernel runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from roialign_cli.errors import KernelError
from roialign_cli.ops import cpu, reference, request, torchvision
from roialign_cli.ops.request import Mode, Request

__all__ = ["choose", "roi_align"]

Kernel = Callable[[Request, Tensor | None], Tensor]
KERNELS: dict[str, Kernel] = {"cpu": cpu.run, "torchvision": torchvision.run, "reference": reference.run}


def choose(kernel: str, device: str, mode: str) -> str:
    """The name of the kernel that serves tensors of a device type in a mode: `auto` takes the fastest there is.

    Raises KernelError if there is none.
    """
    if kernel == "auto":
        kernel = "cpu" if device == "cpu" else "torchvision"
    if kernel == "torchvision" and mode != "avg":
        message = f"kernel torchvision, on {device}: expected mode avg, found {mode}"
        raise KernelError(
            "kernel-mode", message, "use kernel auto" if device == "cpu" else "use the cpu for other modes"
        )
    if kernel == "cuda":
        message = "kernel cuda: expected the bundled CUDA kernel, found none: it is not part of this version"
        raise KernelError("kernel-unavailable", message, "use --kernel auto, which takes the fastest there is")
    if kernel not in KERNELS:
        names = ", ".join(["auto", *KERNELS])
        raise KernelError("kernel-unknown", f"kernel: expected one of {names}, found {kernel!r}")
    if kernel == "cpu" and device != "cpu":
        raise KernelError(
            "kernel-device", f"kernel cpu: expected tensors on the cpu, found {device}", "use kernel auto"
        )
    return kernel


def roi_align(
    features: Tensor | Sequence[Tensor],
    rois: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    *,
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    mode: Mode = "avg",
    levels: Tensor | None = None,
    kernel: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Pool RoIs from feature maps without rounding their coordinates (Mask R-CNN, arXiv:1703.06870, section 3).

    Args:
        features: [N, C, H, W], or a list of such maps, one per level; float32, float64, float16 or bfloat16, any
            strides (channels-last is read in place).
        rois: [K, 5] rows (batch index, x1, y1, x2, y2) in image pixels, or a list of N tensors [L, 4].
        output_size: bins per side, one number or (height, width).
        spatial_scale: map cells per image pixel (1 / stride), one number or one per level.
        sampling_ratio: samples per bin and axis; 0 is adaptive, ceil(RoI size / output size).
        aligned: shift by half a cell so that pixel centres meet cell centres (detectron2's `aligned`).
        mode: `avg`; `max` over interpolated samples; `exact`, the integral mean: avg with infinitely many samples.
        levels: [K] integers, the map each RoI is pooled from; needed with several maps.
        kernel: `auto`, `cpu`, `torchvision` or `reference`.
        out: a contiguous [K, C, PH, PW] of the features' type to write into.

    Returns:
        [K, C, PH, PW] of the features' type; sums are float32 (float64 for float64).

    Raises:
        OperatorInputError: an argument without meaning; names the row.
        KernelError: the kernel cannot run on this device or in this mode.
    """
    call = request.check(features, rois, output_size, spatial_scale, sampling_ratio, aligned, mode, levels)
    device, dtype = call.maps[0].device, call.maps[0].dtype
    name = choose(kernel, device.type, mode)
    if out is not None:
        fits = out.shape == call.shape and out.dtype == dtype and out.device == device and out.is_contiguous()
        if not fits:
            found = f"{list(out.shape)} {out.dtype} on {out.device}, strides {out.stride()}"
            expected = f"contiguous {list(call.shape)} {dtype} on {device}"
            raise request.bad("out", f"expected {expected}, found {found}")
    result = KERNELS[name](call, out)
    return result if result.dtype == dtype else result.to(dtype)
