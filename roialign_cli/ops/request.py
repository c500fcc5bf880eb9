"""One call of RoI Align: what every kernel is given. Validation happens here, once, and names the bad row."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.config import MAX_SAMPLING_RATIO
from roialign_cli.errors import OperatorInputError

Mode = Literal["avg", "max", "exact"]
Reduce = Literal["none", "mean", "max"]
MODES: tuple[Mode, ...] = get_args(Mode)
REDUCTIONS: tuple[Reduce, ...] = get_args(Reduce)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Request:
    """The arguments of a call, in one form.

    maps: one [N, C, H, W] per level. rois [K, 5], float32 or float64, and levels [K] int64 (None: all on level 0), both
    contiguous, on the device they came on.
    """

    maps: tuple[Tensor, ...]
    rois: Tensor
    levels: Tensor | None
    scales: tuple[float, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool
    mode: Mode
    reduce: Reduce
    dtype: torch.dtype  # of the result

    @property
    def bins_shape(self) -> tuple[int, int, int, int]:
        """Shape of the pooled features before they are reduced, [K, C, PH, PW]."""
        return (self.rois.shape[0], self.maps[0].shape[1], *self.output_size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result: [K, C, PH, PW], or [K, C] if it is reduced."""
        return self.bins_shape if self.reduce == "none" else self.bins_shape[:2]

    @cached_property
    def table(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """rois [K, 5] and levels [K] on the host; waits for their device, once."""
        if self.levels is None:
            rois = self.rois.to("cpu", torch.float64).numpy()
            return rois, np.zeros(len(rois), np.int64)
        if self.levels.device == self.rois.device != torch.device("cpu"):
            both = torch.cat([self.rois.double(), self.levels.double()[:, None]], dim=1).cpu().numpy()
            return np.ascontiguousarray(both[:, :5]), both[:, 5].astype(np.int64)
        return self.rois.to("cpu", torch.float64).numpy(), self.levels.cpu().numpy()


def make(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    mode: str,
    reduce: str = "none",
    dtype: torch.dtype | None = None,
) -> Request:
    """The request of arguments whose form `check_form` has found good; numbers are in the right types."""
    exact = rois.dtype if rois.dtype in (torch.float32, torch.float64) else torch.float64
    return Request(
        # Lazily negated views keep the sign outside of their memory, which is all that kernels see.
        maps=tuple(m.detach().resolve_neg() for m in features),
        rois=rois.detach().resolve_neg().to(exact).contiguous(),
        levels=None if levels is None else levels.detach().resolve_neg().to(torch.int64).contiguous(),
        scales=tuple(scales),
        output_size=(output_size[0], output_size[1]),
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        mode=cast("Mode", mode),
        reduce=cast("Reduce", reduce),
        dtype=dtype or features[0].dtype,
    )


def finish(pooled: Tensor, request: Request, out: Tensor | None) -> Tensor:
    """Pooled features [K, C, PH, PW] reduced as asked for, in `out` where one is given: for kernels that do not."""
    if request.reduce != "none":
        wide = pooled if pooled.dtype == torch.float64 else pooled.float()
        pooled = wide.mean(dim=(2, 3)) if request.reduce == "mean" else wide.amax(dim=(2, 3))
    return pooled if out is None else out.copy_(pooled)


@dataclass(frozen=True)
class Form:
    """Arguments of good form: all that can be known of them without their values."""

    maps: list[Tensor]
    rois: Tensor
    output_size: list[int]
    scales: list[float]
    sampling_ratio: int


def check_form(
    features: Tensor | Sequence[Tensor],
    rois: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    sampling_ratio: int,
    mode: str,
    levels: Tensor | None,
    reduce: str,
    dtype: torch.dtype | None,
) -> Form:
    """Check the arguments of `roi_align` (see there) but for the values of tensors, or raise OperatorInputError."""
    maps = _check_maps(features)
    table = _check_rois(rois, maps[0])
    if mode not in MODES:
        raise input_error("mode", f"expected one of {', '.join(MODES)}, found {mode!r}")
    if reduce not in REDUCTIONS:
        raise input_error("reduce", f"expected one of {', '.join(REDUCTIONS)}, found {reduce!r}")
    if dtype is not None and dtype not in DTYPES:
        raise input_error("dtype", f"expected a floating type, found {dtype}")
    _check_levels(levels, len(maps), table.shape[0])
    return Form(
        maps,
        table,
        _check_output_size(output_size),
        _check_scales(spatial_scale, len(maps)),
        _check_ratio(sampling_ratio),
    )


def check_values(request: Request) -> None:
    """Check every row of rois and levels, or raise OperatorInputError naming the first bad one."""
    table, levels = request.table
    batch, count = request.maps[0].shape[0], len(request.maps)
    with np.errstate(over="ignore"):
        finite = np.isfinite(table * (2 * max(1.0, *request.scales))).all(axis=1)  # and so are sizes, in map cells
    _first_bad_row(table, np.asarray(~finite), "expected finite numbers, in map cells too")
    index = table[:, 0]
    wrong: npt.NDArray[np.bool_] = (index != np.floor(index)) | (index < 0) | (index >= batch)
    _first_bad_row(table, wrong, f"expected a whole batch index from 0 to {batch - 1}")
    _first_bad_row(table, (table[:, 3] < table[:, 1]) | (table[:, 4] < table[:, 2]), "expected x1 <= x2 and y1 <= y2")
    wrong = (levels < 0) | (levels >= count)
    if wrong.any():
        row = int(wrong.argmax())
        raise input_error(f"levels row {row}", f"expected 0 to {count - 1}, found {levels[row]}")


def input_error(where: str, found: str, hint: str = "") -> OperatorInputError:
    """The error of an argument."""
    return OperatorInputError("roi-align-input", f"roi_align: {where}: {found}", hint)


def stands_in(tensor: Tensor) -> bool:
    """Whether a tensor only stands for one: torch's fake tensors, and other types that take over every operation."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def check_memory(where: str, tensor: Tensor) -> None:
    """Check that a tensor has values at addresses of its own, as kernels read them, or raise OperatorInputError."""
    if tensor.is_nested:
        raise input_error(where, "expected a plain tensor, found a nested one", "pass a list of tensors")
    if tensor.layout != torch.strided:
        raise input_error(where, f"expected a strided tensor, found layout {tensor.layout}", "convert with .to_dense()")
    if torch.compiler.is_compiling():
        return  # by stand-ins that torch knows how to handle
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise input_error(
            where, "expected a plain tensor, found one inside a transform of torch.func such as vmap", "use a loop"
        )
    if tensor.device.type == "meta" and not stands_in(tensor):
        raise input_error(where, "expected a tensor with values, found one on the meta device")


def _check_maps(features: Tensor | Sequence[Tensor]) -> list[Tensor]:
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
            raise input_error(
                where, f"expected N, C, type and device of features[0], {list(first.shape)}, found {found}"
            )
        if m.requires_grad and torch.is_grad_enabled():
            raise input_error(where, "expected no gradient, found requires_grad", "call under torch.inference_mode()")
    return maps


def _check_rois(rois: Tensor | Sequence[Tensor], features: Tensor) -> Tensor:
    if not isinstance(rois, Tensor):
        if not isinstance(rois, Iterable):
            raise input_error("rois", f"expected a tensor or a list of tensors, found {type(rois).__name__}")
        boxes, batch = list(rois), features.shape[0]
        for i, b in enumerate(boxes):
            if isinstance(b, Tensor):
                check_memory(f"rois[{i}]", b)
            if not isinstance(b, Tensor) or b.dim() != 2 or b.shape[1] != 4:
                found = list(b.shape) if isinstance(b, Tensor) else type(b).__name__
                raise input_error(f"rois[{i}]", f"expected boxes of shape [L, 4], found {found}")
            _check_numbers(b)
            if b.device != boxes[0].device:
                raise input_error(f"rois[{i}]", f"expected the device of rois[0], {boxes[0].device}, found {b.device}")
        if len(boxes) != batch:
            raise input_error("rois", f"expected one tensor of boxes for each of {batch} images, found {len(boxes)}")
        if not boxes:
            return features.new_empty((0, 5), dtype=torch.float64)
        exact = torch.float32 if all(b.dtype == torch.float32 for b in boxes) else torch.float64
        numbered = [
            torch.cat([b.new_full((b.shape[0], 1), i, dtype=exact), b.to(exact)], dim=1) for i, b in enumerate(boxes)
        ]
        return torch.cat(numbered)
    check_memory("rois", rois)
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise input_error("rois", f"expected shape [K, 5] (batch index, x1, y1, x2, y2), found {list(rois.shape)}")
    _check_numbers(rois)
    return rois


def _check_numbers(values: Tensor) -> None:
    if values.dtype == torch.bool or values.is_complex() or values.is_quantized:
        raise input_error("rois", f"expected real numbers, found {values.dtype}")


def _first_bad_row(table: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise input_error(f"rois row {row}", f"{expected}, found {[float(f'{v:.9g}') for v in table[row]]}")


def _check_levels(levels: Tensor | None, count: int, rows: int) -> None:
    if levels is None:
        if count > 1:
            raise input_error("levels", f"expected the level of each RoI for {count} maps, found None")
        return
    if not isinstance(levels, Tensor):
        raise input_error("levels", f"expected a tensor of {rows} integers, found {type(levels).__name__}")
    check_memory("levels", levels)
    whole = not (levels.is_floating_point() or levels.is_complex() or levels.is_quantized or levels.dtype == torch.bool)
    if levels.dim() != 1 or levels.shape[0] != rows or not whole:
        raise input_error("levels", f"expected {rows} integers, found {list(levels.shape)} {levels.dtype}")


def _check_scales(spatial_scale: float | Sequence[float], count: int) -> list[float]:
    scales = list(spatial_scale) if isinstance(spatial_scale, Sequence) else [spatial_scale] * count
    if len(scales) != count:
        raise input_error(
            "spatial_scale", f"expected one number or one for each of {count} levels, found {len(scales)}"
        )
    for scale in scales:
        if not isinstance(scale, int | float) or not math.isfinite(scale) or scale <= 0:
            raise input_error("spatial_scale", f"expected a finite number above 0, found {scale!r}")
    return [float(scale) for scale in scales]


def _check_output_size(output_size: int | Sequence[int]) -> list[int]:
    sides = list(output_size) if isinstance(output_size, Sequence) else [output_size, output_size]
    if len(sides) != 2:
        raise input_error("output_size", f"expected one number or (height, width), found {output_size!r}")
    return [_whole("output_size", side, least=1) for side in sides]


def _check_ratio(sampling_ratio: int) -> int:
    ratio = _whole("sampling_ratio", sampling_ratio, least=0)
    if ratio > MAX_SAMPLING_RATIO:
        expected = f"expected at most {MAX_SAMPLING_RATIO}, found {sampling_ratio}"
        raise input_error("sampling_ratio", expected, "mode exact is the limit of ever more samples, and faster")
    return ratio


def _whole(where: str, value: object, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise input_error(where, f"expected a whole number of at least {least}, found {value!r}")
    return number
