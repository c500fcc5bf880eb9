"""One validated call of RoI Align: what every kernel is given. Validation happens here, once, and names the bad row."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.errors import OperatorInputError

Mode = Literal["avg", "max", "exact"]
MODES: tuple[Mode, ...] = get_args(Mode)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Request:
    """Checked arguments. maps: one [N, C, H, W] per level; rois [K, 5] and levels [K] on the host."""

    maps: tuple[Tensor, ...]
    rois: npt.NDArray[np.float64]
    levels: npt.NDArray[np.int64]
    scales: npt.NDArray[np.float64]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool
    mode: Mode

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the result, [K, C, PH, PW]."""
        return (len(self.rois), self.maps[0].shape[1], *self.output_size)


def check(
    features: Tensor | Sequence[Tensor],
    rois: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    mode: str,
    levels: Tensor | None,
) -> Request:
    """Validate the arguments of `roi_align` (see there) or raise OperatorInputError."""
    maps = _check_maps([features] if isinstance(features, Tensor) else features)
    table = _check_rois(rois, batch=maps[0].shape[0])
    if mode not in MODES:
        raise bad("mode", f"expected one of {', '.join(MODES)}, found {mode!r}")
    return Request(
        maps=maps,
        rois=table,
        levels=_check_levels(levels, len(maps), len(table)),
        scales=_check_scales(spatial_scale, len(maps)),
        output_size=_check_output_size(output_size),
        sampling_ratio=_whole("sampling_ratio", sampling_ratio, least=0),
        aligned=bool(aligned),
        mode=mode,
    )


def bad(where: str, found: str, hint: str = "") -> OperatorInputError:
    """The error of an argument."""
    return OperatorInputError("roi-align-input", f"roi_align: {where}: {found}", hint)


def _check_maps(features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    maps = tuple(features)
    if not maps or not all(isinstance(m, Tensor) for m in maps):
        raise bad("features", "expected a tensor or a non-empty list of tensors, one per level")
    first = maps[0]
    for i, m in enumerate(maps):
        where = "features" if len(maps) == 1 else f"features[{i}]"
        if m.dim() != 4:
            raise bad(where, f"expected shape [N, C, H, W], found {list(m.shape)}")
        if m.dtype not in DTYPES:
            raise bad(where, f"expected a floating type, found {m.dtype}", "convert with .float()")
        if m.shape[2] == 0 or m.shape[3] == 0:
            raise bad(where, f"expected a map of at least one cell, found {m.shape[2]} x {m.shape[3]}")
        if m.shape[:2] != first.shape[:2] or m.dtype != first.dtype or m.device != first.device:
            found = f"{list(m.shape)} {m.dtype} on {m.device}"
            raise bad(where, f"expected N, C, type and device of features[0], {list(first.shape)}, found {found}")
        if m.requires_grad and torch.is_grad_enabled():
            raise bad(where, "expected no gradient, found requires_grad", "call under torch.inference_mode()")
    return maps


def _check_rois(rois: Tensor | Sequence[Tensor], batch: int) -> npt.NDArray[np.float64]:
    if not isinstance(rois, Tensor):
        boxes = list(rois)
        for i, b in enumerate(boxes):
            if not isinstance(b, Tensor) or b.dim() != 2 or b.shape[1] != 4:
                found = list(b.shape) if isinstance(b, Tensor) else type(b).__name__
                raise bad(f"rois[{i}]", f"expected boxes of shape [L, 4], found {found}")
        if len(boxes) != batch:
            raise bad("rois", f"expected one tensor of boxes for each of {batch} images, found {len(boxes)}")
        parts = [_host(b) for b in boxes]
        index = np.repeat(np.arange(len(parts), dtype=np.float64), [len(p) for p in parts])
        table = np.column_stack([index, np.concatenate([np.empty((0, 4)), *parts])])
    elif rois.dim() != 2 or rois.shape[1] != 5:
        raise bad("rois", f"expected shape [K, 5] (batch index, x1, y1, x2, y2), found {list(rois.shape)}")
    else:
        table = _host(rois)
    _first_bad_row(table, ~np.isfinite(table).all(axis=1), "expected finite numbers")
    index = table[:, 0]
    wrong = (index != np.floor(index)) | (index < 0) | (index >= batch)
    _first_bad_row(table, wrong, f"expected a whole batch index from 0 to {batch - 1}")
    _first_bad_row(table, (table[:, 3] < table[:, 1]) | (table[:, 4] < table[:, 2]), "expected x1 <= x2 and y1 <= y2")
    return np.ascontiguousarray(table)


def _first_bad_row(table: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise bad(f"rois row {row}", f"{expected}, found {[float(f'{v:.9g}') for v in table[row]]}")


def _host(values: Tensor) -> npt.NDArray[np.float64]:
    if values.dtype == torch.bool or values.is_complex():
        raise bad("rois", f"expected real numbers, found {values.dtype}")
    return np.asarray(values.detach().to("cpu", torch.float64).numpy())


def _check_levels(levels: Tensor | None, count: int, rows: int) -> npt.NDArray[np.int64]:
    if levels is None:
        if count > 1:
            raise bad("levels", f"expected the level of each RoI for {count} maps, found None")
        return np.zeros(rows, np.int64)
    if levels.dim() != 1 or len(levels) != rows or levels.is_floating_point() or levels.dtype == torch.bool:
        raise bad("levels", f"expected {rows} integers, found {list(levels.shape)} {levels.dtype}")
    table = np.ascontiguousarray(levels.detach().to("cpu", torch.int64).numpy())
    wrong = (table < 0) | (table >= count)
    if wrong.any():
        row = int(wrong.argmax())
        raise bad(f"levels row {row}", f"expected 0 to {count - 1}, found {table[row]}")
    return table


def _check_scales(spatial_scale: float | Sequence[float], count: int) -> npt.NDArray[np.float64]:
    scales = list(spatial_scale) if isinstance(spatial_scale, Sequence) else [spatial_scale] * count
    if len(scales) != count:
        raise bad("spatial_scale", f"expected one number or one for each of {count} levels, found {len(scales)}")
    for scale in scales:
        if not isinstance(scale, int | float) or not math.isfinite(scale) or scale <= 0:
            raise bad("spatial_scale", f"expected a finite number above 0, found {scale!r}")
    return np.array(scales, np.float64)


def _check_output_size(output_size: int | Sequence[int]) -> tuple[int, int]:
    sides = list(output_size) if isinstance(output_size, Sequence) else [output_size, output_size]
    if len(sides) != 2:
        raise bad("output_size", f"expected one number or (height, width), found {output_size!r}")
    return _whole("output_size", sides[0], least=1), _whole("output_size", sides[1], least=1)


def _whole(where: str, value: object, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise bad(where, f"expected a whole number of at least {least}, found {value!r}")
    return number
