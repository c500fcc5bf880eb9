"""Regions whose bins are lists of weighted map cells: the one form in which all but upright boxes reach the kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.ops.request import Request

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """Hold the lists of some RoIs in arrays that are used again.

    Bin b of the i-th RoI reads the cells at offset[ptr[i * bins + b]:ptr[i * bins + b + 1]], bytes from the first cell of its
    map, with these weights. outside [rows * bins] says which bins have samples outside of the map. `slot` is scratch memory.
    """

    ptr: Indices
    offset: Indices
    weight: npt.NDArray[np.float64]
    outside: npt.NDArray[np.bool_]
    slot: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, rows: int, bins: int, entries: int, cells: int) -> Lists:
        """Return arrays for a number of RoIs with `entries` entries in all, on maps of at most `cells` cells."""
        return cls(
            ptr=np.zeros(rows * bins + 1, np.int64),
            offset=np.empty(entries, np.int64),
            weight=np.empty(entries, np.float64),
            outside=np.zeros(rows * bins, np.bool_),
            slot=np.full(cells, -1, np.int32),
        )

    def larger(self) -> Lists:
        """Return arrays for twice as many entries."""
        entries = 2 * len(self.offset)
        return dataclasses.replace(self, offset=np.empty(entries, np.int64), weight=np.empty(entries, np.float64))


# Fills the lists of RoIs `rows`, on maps described as kernel.py does, and returns how many of them it has finished.
Fill = Callable[[Indices, Indices, Lists], int]


@dataclass(frozen=True)
class Cells:
    """A call of an operator whose bins are lists of cells.

    request: the arguments, prepared, with maps that are channels-last: [N * maps_per_image, C, H, W], where each bin reads its
    own if there are several per image; rois have the columns of the operator. fill: writes the lists. maximum: entries are
    samples, four each, of which the largest counts.
    """

    request: Request
    fill: Fill
    maximum: bool = False
    maps_per_image: int = 1

    def without_reduction(self) -> Cells:
        """Return the call whose bins are not reduced."""
        return replace(self, request=replace(self.request, reduce="none"))


def fill_lists(fill: Fill, rows: Indices, maps: Indices, lists: Lists) -> Iterator[tuple[Indices, Lists]]:
    """Yield RoIs in the given order, as many at a time as arrays hold, with their lists; the next ones overwrite these.

    Arrays too small for the lists of one RoI are replaced by larger ones.
    """
    at = 0
    while at < len(rows):
        done = fill(rows[at:], maps, lists)
        if done == 0:
            lists = lists.larger()
            continue
        yield rows[at : at + done], lists
        at += done


def channels_last(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return maps whose channels are contiguous; others are copied whole."""
    return [m if m.stride(1) == 1 or m.shape[1] == 1 else m.contiguous(memory_format=torch.channels_last) for m in maps]


def host_arrays(*tensors: Tensor) -> list[npt.NDArray[Any]]:
    """Return float64 arrays of tensors on the host; waits for their device."""
    return [np.ascontiguousarray(tensor.detach().resolve_neg().to("cpu", torch.float64).numpy()) for tensor in tensors]
