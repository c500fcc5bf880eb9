"""Check the arguments of `roi_align` before any kernel runs; errors name the argument, and the row of a table."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.config import MAX_SAMPLING_RATIO, Mode, Reduce
from roialign_cli.errors import OperatorInputError, quoted
from roialign_cli.ops.request import REDUCTIONS, Request

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

Choice = TypeVar("Choice", bound=str)


def input_error(where: str, found: str, hint: str = "") -> OperatorInputError:
    """Return the error of an argument; other operators than `roi_align` replace the name, see `names_errors`."""
    return OperatorInputError("roi-align-input", f"roi_align: {where}: {found}", hint)


def check_maps(features: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the maps as a list, one per level; all [N, C, H, W] of one N, C, floating type and device."""
    maps = [features] if isinstance(features, Tensor) else list(features) if isinstance(features, Iterable) else []
    if not maps or not all(isinstance(m, Tensor) for m in maps):
        raise input_error("features", "expected a tensor or a non-empty list of tensors, one per level")
    first = maps[0]
    for i, m in enumerate(maps):
        where = "features" if len(maps) == 1 else f"features[{i}]"
        check_memory(where, m)
        if m.dim() != 4:
            raise input_error(where, f"expected shape [N, C, H, W], found {list(m.shape)}")
        if m.dtype not in DTYPES:
            raise input_error(where, f"expected a floating type, found {m.dtype}", "convert with .float()")
        if m.shape[2] == 0 or m.shape[3] == 0:
            raise input_error(where, f"expected a map of at least one cell, found {m.shape[2]} x {m.shape[3]}")
        if m.shape[:2] != first.shape[:2] or m.dtype != first.dtype or m.device != first.device:
            found = f"{list(m.shape)} {m.dtype} on {m.device}"
            expected = f"expected N, C, type and device of features[0], {list(first.shape)}"
            raise input_error(where, f"{expected}, found {found}")
    return maps


def check_rois(rois: Tensor | Sequence[Tensor], features: Tensor) -> Tensor:
    """Return RoIs as one table [K, 5]; a list of boxes [L, 4] per image gets the index of its image in front."""
    if isinstance(rois, Tensor):
        check_memory("rois", rois)
        if rois.dim() != 2 or rois.shape[1] != 5:
            found = list(rois.shape)
            raise input_error("rois", f"expected shape [K, 5] (batch index, x1, y1, x2, y2), found {found}")
        _check_real("rois", rois)
        return rois
    if not isinstance(rois, Iterable):
        raise input_error("rois", f"expected a tensor or a list of tensors, found {type(rois).__name__}")
    boxes, batch = list(rois), features.shape[0]
    for i, b in enumerate(boxes):
        if isinstance(b, Tensor):
            check_memory(f"rois[{i}]", b)
        if not isinstance(b, Tensor) or b.dim() != 2 or b.shape[1] != 4:
            found = list(b.shape) if isinstance(b, Tensor) else type(b).__name__
            raise input_error(f"rois[{i}]", f"expected boxes of shape [L, 4], found {found}")
        _check_real("rois", b)
        if b.device != boxes[0].device:
            raise input_error(f"rois[{i}]", f"expected the device of rois[0], {boxes[0].device}, found {b.device}")
    if len(boxes) != batch:
        raise input_error("rois", f"expected one tensor of boxes for each of {batch} images, found {len(boxes)}")
    if not boxes:
        return features.new_empty((0, 5), dtype=torch.float64)
    exact = torch.float32 if all(b.dtype == torch.float32 for b in boxes) else torch.float64
    tables = [torch.cat([b.new_full((b.shape[0], 1), i, dtype=exact), b.to(exact)], dim=1) for i, b in enumerate(boxes)]
    return torch.cat(tables)


def check_rotated_boxes(rois: Tensor) -> Tensor:
    """Return rotated boxes [K, 6]."""
    if not isinstance(rois, Tensor) or rois.dim() != 2 or rois.shape[1] != 6:
        found = list(rois.shape) if isinstance(rois, Tensor) else type(rois).__name__
        expected = "expected shape [K, 6] (batch index, centre x, centre y, width, height, angle)"
        raise input_error("rois", f"{expected}, found {found}")
    check_memory("rois", rois)
    _check_real("rois", rois)
    return rois


def scale_array(request: Request) -> npt.NDArray[np.float64]:
    """Return the scales of a request, one per level."""
    return np.array(request.scales, np.float64)


def check_bin_values(where: str, values: Tensor, shape: Sequence[int]) -> None:
    """Check that values of bins, such as offsets, have a shape."""
    if not isinstance(values, Tensor) or list(values.shape) != list(shape):
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise input_error(where, f"expected shape {list(shape)}, found {found}")
    check_memory(where, values)
    _check_real(where, values)


def check_no_gradient(where: str, values: Tensor) -> None:
    """Check that no gradient is asked for where there is none."""
    if values.requires_grad and torch.is_grad_enabled():
        raise input_error(where, "expected no gradient, found requires_grad", "pass them with .detach()")


def check_finite(where: str, values: npt.NDArray[np.float64]) -> None:
    """Check that values [K, ...] of bins are finite; the error names the first bad row."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    _check_rows(where, rows, np.asarray(~np.isfinite(rows).all(axis=1)), "expected finite numbers")


def check_points(points: Tensor, batch: int | None) -> None:
    """Check points [P, 3]; with `batch`, the number of images, every row, too."""
    if not isinstance(points, Tensor) or points.dim() != 2 or points.shape[1] != 3:
        found = list(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise input_error("points", f"expected shape [P, 3] (batch index, x, y), found {found}")
    check_memory("points", points)
    _check_real("points", points)
    if batch is None or torch.compiler.is_compiling() or is_stand_in(points):
        return
    _check_places("points", points.detach().to("cpu", torch.float64).numpy(), batch, [])


def check_levels(levels: Tensor | None, count: int, rows: int) -> Tensor | None:
    """Return the level of each RoI: [K] integers, needed where there are several maps."""
    if levels is None:
        if count > 1:
            raise input_error("levels", f"expected the level of each RoI for {count} maps, found None")
        return None
    if not isinstance(levels, Tensor):
        raise input_error("levels", f"expected a tensor of {rows} integers, found {type(levels).__name__}")
    check_memory("levels", levels)
    whole = not (levels.is_floating_point() or levels.is_complex() or levels.is_quantized or levels.dtype == torch.bool)
    if levels.dim() != 1 or levels.shape[0] != rows or not whole:
        raise input_error("levels", f"expected {rows} integers, found {list(levels.shape)} {levels.dtype}")
    return levels


def check_scales(spatial_scale: float | Sequence[float], count: int) -> list[float]:
    """Return one scale per level, each finite and above 0."""
    scales = list(spatial_scale) if isinstance(spatial_scale, Sequence) else [spatial_scale] * count
    if len(scales) != count:
        expected = f"expected one number or one for each of {count} levels"
        raise input_error("spatial_scale", f"{expected}, found {len(scales)}")
    for scale in scales:
        if not isinstance(scale, int | float) or not math.isfinite(scale) or scale <= 0:
            raise input_error("spatial_scale", f"expected a finite number above 0, found {scale!r}")
    return [float(scale) for scale in scales]


def check_output_size(output_size: int | Sequence[int]) -> list[int]:
    """Return the number of bins as [height, width]."""
    sides = list(output_size) if isinstance(output_size, Sequence) else [output_size, output_size]
    if len(sides) != 2:
        raise input_error("output_size", f"expected one number or (height, width), found {output_size!r}")
    return [_check_whole("output_size", side, least=1) for side in sides]


def check_sampling_ratio(sampling_ratio: int) -> int:
    """Return the sampling ratio, from 0 to MAX_SAMPLING_RATIO."""
    ratio = _check_whole("sampling_ratio", sampling_ratio, least=0)
    if ratio > MAX_SAMPLING_RATIO:
        expected = f"expected at most {MAX_SAMPLING_RATIO}, found {sampling_ratio}"
        raise input_error("sampling_ratio", expected, "mode exact is the limit of ever more samples, and faster")
    return ratio


def check_choice(where: str, value: Choice, choices: Sequence[str]) -> Choice:
    """Return a word if it is one of the choices."""
    if value not in choices:
        raise input_error(where, f"expected one of {', '.join(choices)}, found {value!r}")
    return value


def check_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """Return the type of the result if it is a floating type, or None."""
    if dtype is not None and dtype not in DTYPES:
        raise input_error("dtype", f"expected a floating type, found {dtype}")
    return dtype


def make_request(
    maps: Sequence[Tensor],
    rois: Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    mode: Mode,
    levels: Tensor | None,
    reduce: Reduce,
    dtype: torch.dtype | None,
    *,
    modes: Sequence[str],
) -> Request:
    """Return a call as a request; maps and rois are checked already, `modes` are those that the operator has."""
    return Request(
        maps=maps,
        rois=rois,
        mode=check_choice("mode", mode, modes),
        reduce=check_choice("reduce", reduce, REDUCTIONS),
        dtype=check_dtype(dtype) or maps[0].dtype,
        levels=check_levels(levels, len(maps), rois.shape[0]),
        output_size=check_output_size(output_size),
        scales=check_scales(spatial_scale, len(maps)),
        sampling_ratio=check_sampling_ratio(sampling_ratio),
        aligned=bool(aligned),
    )


def check_values(request: Request) -> None:
    """Check every row of rois and levels; the error names the first bad row."""
    table, levels = request.table
    count = len(request.maps)
    _check_places("rois", table, request.maps[0].shape[0], request.scales)
    if table.shape[1] == 5:
        flipped = (table[:, 3] < table[:, 1]) | (table[:, 4] < table[:, 2])
        _check_rows("rois", table, flipped, "expected x1 <= x2 and y1 <= y2")
    else:
        negative = (table[:, 3] < 0) | (table[:, 4] < 0)
        _check_rows("rois", table, negative, "expected width and height of at least 0")
    wrong: npt.NDArray[np.bool_] = (levels < 0) | (levels >= count)
    if wrong.any():
        row = int(wrong.argmax())
        raise input_error(f"levels row {row}", f"expected 0 to {count - 1}, found {levels[row]}")


def is_stand_in(tensor: Tensor) -> bool:
    """Return whether a tensor only stands in for one.

    This is a fake tensor of torch, one inside a transform of torch.func, or a subclass that overrides every operation.
    """
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return True
    return is_transformed(tensor)


def is_transformed(tensor: Tensor) -> bool:
    """Return whether a tensor is inside a transform of torch.func."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def check_memory(where: str, tensor: Tensor) -> None:
    """Check that a tensor has strided memory of its own, which kernels read by address."""
    if tensor.is_nested:
        raise input_error(where, "expected a plain tensor, found a nested one", "pass a list of tensors")
    if tensor.layout != torch.strided:
        raise input_error(where, f"expected a strided tensor, found layout {tensor.layout}", "convert with .to_dense()")
    if torch.compiler.is_compiling():
        return  # tensors are stand-ins then, which torch handles
    inner = tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(inner):
        if not torch._C._functorch.is_gradtrackingtensor(inner):
            found = "expected a plain tensor, found one inside a transform of torch.func such as vmap"
            raise input_error(where, found, "use a loop")
        inner = torch._C._functorch.get_unwrapped(inner)
    if tensor.device.type == "meta" and not is_stand_in(tensor):
        raise input_error(where, "expected a tensor with values, found one on the meta device")


def check_out(out: Tensor, request: Request) -> None:
    """Check that `out` is memory that a kernel can write to; `check_out_shape` checks its shape and type."""
    if not isinstance(out, Tensor):
        raise input_error("out", f"expected a tensor, found {type(out).__name__}")
    check_memory("out", out)
    if torch.compiler.is_compiling():
        return
    if out.is_neg():
        raise input_error("out", "expected a plain tensor, found a lazily negated view", "resolve_neg() makes one")
    if is_stand_in(out) or has_stand_in(request):
        raise input_error("out", "expected none with fake tensors or other stand-ins, found one")


def check_out_shape(out: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Check that `out` can hold the result as it is."""
    if not (out.shape == shape and out.dtype == dtype and out.device == device and out.is_contiguous()):
        found = f"{list(out.shape)} {out.dtype} on {out.device}, strides {out.stride()}"
        raise input_error("out", f"expected contiguous {list(shape)} {dtype} on {device}, found {found}")


def has_stand_in(request: Request) -> bool:
    """Return whether some tensor of a request has no memory that a kernel could read."""
    return any(is_stand_in(t) for t in (*request.maps, request.rois, request.levels) if t is not None)


def _check_real(where: str, values: Tensor) -> None:
    if values.dtype == torch.bool or values.is_complex() or values.is_quantized:
        raise input_error(where, f"expected real numbers, found {values.dtype}")


def _check_places(where: str, table: npt.NDArray[np.float64], batch: int, scales: Sequence[float]) -> None:
    """Check that rows of (batch index, coordinates) are finite, in map cells, too, and lie on one of the images."""
    with np.errstate(over="ignore"):
        # Twice the largest scale: sizes in map cells must be finite as well as coordinates.
        finite = np.isfinite(table * (2 * max([1.0, *scales]))).all(axis=1)
    _check_rows(where, table, np.asarray(~finite), "expected finite numbers, in map cells too")
    index = table[:, 0]
    wrong: npt.NDArray[np.bool_] = (index != np.floor(index)) | (index < 0) | (index >= batch)
    _check_rows(where, table, wrong, f"expected a whole batch index from 0 to {batch - 1}")


def _check_rows(where: str, table: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        found = [float(f"{value:.9g}") for value in table[row]]
        raise input_error(f"{where} row {row}", f"{expected}, found {quoted(found)}")


def _check_whole(where: str, value: object, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise input_error(where, f"expected a whole number of at least {least}, found {value!r}")
    return number
