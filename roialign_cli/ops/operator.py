"""RoI Align: the public operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from roialign_cli.ops import request
from roialign_cli.ops.dispatch import KERNELS, choose_kernel
from roialign_cli.ops.request import Form, Mode, Reduce, Request


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
    reduce: Reduce = "none",
    dtype: torch.dtype | None = None,
    kernel: str = "auto",
    validate: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Pool RoIs from feature maps without rounding their coordinates (Mask R-CNN, arXiv:1703.06870, section 3).

    Inference only. `torch.compile` and `torch.export` see one node, `roialign::roi_align`.

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
        reduce: `mean` or `max` over the bins of each RoI, which are then never stored.
        dtype: type of the result, the features' own by default; sums are rounded once.
        kernel: `auto`, `cpu`, `cuda`, `torchvision` or `reference`.
        validate: check every row of `rois` and `levels`, for which CUDA tensors are waited for, once. False spares the
            wait where the bundled CUDA kernel runs: there a row without meaning gives NaN. Others check always.
        out: a contiguous tensor of the result's shape and type to write into.

    Returns:
        [K, C, PH, PW], or [K, C] with `reduce`; sums are float32 (float64 for float64).

    Raises:
        OperatorInputError: an argument without meaning; names the row.
        KernelError: the kernel cannot run on this device or in this mode.
    """
    form = request.check_form(features, rois, output_size, spatial_scale, sampling_ratio, mode, levels, reduce, dtype)
    arguments = (
        form.maps, form.rois, levels, form.output_size, form.scales, form.sampling_ratio, bool(aligned), mode,
        reduce, dtype,
    )  # fmt: skip
    if out is not None:
        _check_out(out, form, levels)
    # Plain tensors, eagerly, go straight: torch's dispatcher takes longer than a small call does.
    compiling = torch.compiler.is_compiling()
    if not compiling and (out is not None or (all(type(m) is Tensor for m in form.maps) and not _fake(form, levels))):
        return _pool(request.make(*arguments), kernel, validate, out)
    pooled: Tensor = _registered(*arguments, kernel, validate)
    return pooled if out is None else _checked(out, pooled).copy_(pooled)


def _fake(form: Form, levels: Tensor | None) -> bool:
    """Whether some tensor has no memory that a kernel could read."""
    return any(map(request.stands_in, [*form.maps, form.rois, *([] if levels is None else [levels])]))


def _check_out(out: Tensor, form: Form, levels: Tensor | None) -> None:
    """What is written to must be memory; its shape and type are checked once they are known."""
    if not isinstance(out, Tensor):
        raise request.input_error("out", f"expected a tensor, found {type(out).__name__}")
    request.check_memory("out", out)
    if torch.compiler.is_compiling():
        return
    if out.is_neg():
        raise request.input_error(
            "out", "expected a plain tensor, found a lazily negated view", "resolve_neg() makes one"
        )
    if request.stands_in(out) or _fake(form, levels):
        raise request.input_error("out", "expected none with fake tensors or other stand-ins, found one")


def _checked(out: Tensor, expected: Tensor | Request) -> Tensor:
    """`out`, if it can hold the result as it is."""
    first = expected if isinstance(expected, Tensor) else expected.maps[0]
    shape, dtype, device = expected.shape, expected.dtype, first.device
    if not (out.shape == shape and out.dtype == dtype and out.device == device and out.is_contiguous()):
        found = f"{list(out.shape)} {out.dtype} on {out.device}, strides {out.stride()}"
        raise request.input_error("out", f"expected contiguous {list(shape)} {dtype} on {device}, found {found}")
    return out


def _pool(call: Request, kernel: str, validate: bool, out: Tensor | None) -> Tensor:
    if out is not None:
        _checked(out, call)
    name = choose_kernel(kernel, call.maps[0].device, call.mode, call.maps[0].dtype)
    if validate or name != "cuda":
        request.check_values(call)
    result = KERNELS[name](call, out)
    return result if result.dtype == call.dtype else result.to(call.dtype)


@torch.library.custom_op("roialign::roi_align", mutates_args=())
def _registered(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    mode: str,
    reduce: str,
    dtype: torch.dtype | None,
    kernel: str,
    validate: bool,
) -> Tensor:
    call = request.make(maps, rois, levels, output_size, scales, sampling_ratio, aligned, mode, reduce, dtype)
    return _pool(call, kernel, validate, None)


@_registered.register_fake
def _shape_only(*arguments: Any) -> Tensor:
    *described, _kernel, _validate = arguments
    call = request.make(*described)
    return call.maps[0].new_empty(call.shape, dtype=call.dtype)
