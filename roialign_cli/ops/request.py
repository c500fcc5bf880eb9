"""One call of RoI Align as every kernel receives it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.config import Mode, Reduce

MODES: tuple[Mode, ...] = get_args(Mode)
REDUCTIONS: tuple[Reduce, ...] = get_args(Reduce)


@dataclass(frozen=True)
class Request:
    """The arguments of a call, checked except for the values in tensors. The fields are those of `SCHEMA`, in its order.

    maps: one [N, C, H, W] per level. rois [K, 5], or [K, 6] of rotated boxes. levels [K], or None where all RoIs are on level
    0. output_size (height, width). scales: map cells per image pixel, one per level. dtype: that of the result.
    """

    maps: Sequence[Tensor]
    rois: Tensor
    levels: Tensor | None
    output_size: Sequence[int]
    scales: Sequence[float]
    sampling_ratio: int
    aligned: bool
    mode: str
    reduce: str
    dtype: torch.dtype

    def prepared(self) -> Request:
        """Return the request with tensors as kernels read them.

        Maps and tables are plain tensors outside of autograd; rois are float32 or float64 and levels int64, contiguous, on
        the device they came on.
        """
        exact = self.rois.dtype if self.rois.dtype in (torch.float32, torch.float64) else torch.float64
        return dataclasses.replace(
            self,
            # A lazily negated view keeps its sign outside of its memory, and kernels only see the memory.
            maps=tuple(features.detach().resolve_neg() for features in self.maps),
            rois=self.rois.detach().resolve_neg().to(exact).contiguous(),
            levels=None if self.levels is None else self.levels.detach().resolve_neg().to(torch.int64).contiguous(),
        )

    def arguments(self) -> tuple[Any, ...]:
        """Return the fields in order, as the registered operator takes them."""
        return tuple(getattr(self, name) for name in FIELDS)

    @property
    def bins_shape(self) -> tuple[int, int, int, int]:
        """Shape of the pooled features before they are reduced, [K, C, PH, PW]."""
        height, width = self.output_size
        return (self.rois.shape[0], self.maps[0].shape[1], height, width)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result: [K, C, PH, PW], or [K, C] if it is reduced."""
        return self.bins_shape if self.reduce == "none" else self.bins_shape[:2]

    @cached_property
    def table(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """rois and levels [K] on the host; waits for their device, once."""
        if self.levels is None:
            rois = self.rois.to("cpu", torch.float64).numpy()
            return rois, np.zeros(len(rois), np.int64)
        if self.levels.device == self.rois.device != torch.device("cpu"):
            both = torch.cat([self.rois.double(), self.levels.double()[:, None]], dim=1).cpu().numpy()
            return np.ascontiguousarray(both[:, :-1]), both[:, -1].astype(np.int64)
        return self.rois.to("cpu", torch.float64).numpy(), self.levels.cpu().numpy()


FIELDS = tuple(field.name for field in dataclasses.fields(Request))
SCHEMA = (  # of the fields, as torch.compile and torch.export see them
    "Tensor[] maps, Tensor rois, Tensor? levels, SymInt[] output_size, float[] scales, SymInt sampling_ratio, "
    "bool aligned, str mode, str reduce, ScalarType? dtype"
)


def sum_type(request: Request) -> torch.dtype:
    """Return the type of the sums of a request."""
    return torch.float64 if request.maps[0].dtype == torch.float64 else torch.float32


def new_totals(request: Request) -> list[Tensor]:
    """Return zeros [N, C, H, W] for each map of a request, channels-last, of the type of its sums."""
    unit = sum_type(request)
    return [torch.zeros_like(m, dtype=unit, memory_format=torch.channels_last) for m in request.maps]


def finish(pooled: Tensor, request: Request, out: Tensor | None) -> Tensor:
    """Reduce pooled features [K, C, PH, PW] as requested, into `out` if given; for kernels that do not reduce themselves."""
    if request.reduce != "none":
        wide = pooled if pooled.dtype == torch.float64 else pooled.float()
        pooled = wide.mean(dim=(2, 3)) if request.reduce == "mean" else wide.amax(dim=(2, 3))
    return pooled if out is None else out.copy_(pooled)
