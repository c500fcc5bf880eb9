"""Find and count stored values that are not finite, and clip values beyond the range of float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class ValueReport:
    """How many values are NaN or infinite, and how many were finite but beyond float16's range and are clipped to it."""

    not_finite: int = 0
    saturated: int = 0

    def __add__(self, other: ValueReport) -> ValueReport:
        return ValueReport(self.not_finite + other.not_finite, self.saturated + other.saturated)

    def __bool__(self) -> bool:
        return self != ValueReport()

    def __str__(self) -> str:
        counts = {"not finite": self.not_finite, "beyond the range of float16 and cut to it": self.saturated}
        return ", ".join(f"{count} value{'s' * (count > 1)} {what}" for what, count in counts.items() if count)

    @classmethod
    def from_masks(cls, not_finite: Tensor, saturated: Tensor) -> Self:
        """Count the values that two boolean masks select."""
        return cls(int(not_finite.sum()), int(saturated.sum()))


def finite_flag(rows: Tensor) -> Tensor:
    """Return a bool, on the device of the rows, that says whether every value is a finite number; reads them once."""
    return torch.stack(rows.aminmax()).isfinite().all()


def all_finite(rows: Tensor) -> bool:
    """Return whether every value is a finite number."""
    return rows.numel() == 0 or bool(finite_flag(rows))


def clip_to_float16(rows: Tensor, compute_float32: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Clip values that float16 cannot hold, in place; return masks of the values not finite, and of those clipped.

    `compute_float32` returns the same rows in float32, which tell an overflow of float16 from an infinity of the model.
    """
    strange = ~rows.isfinite()
    saturated = (
        strange & compute_float32().to(rows.device).isfinite() if rows.dtype == torch.float16 else strange & False
    )
    rows[saturated] = rows[saturated].clamp(-FLOAT16_MAX, FLOAT16_MAX)
    return strange & ~saturated, saturated
