"""Stored values that are no numbers, and values beyond float16's range: found, cut to it, counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class ValueReport:
    """How many values are NaN or infinite, and how many were finite but beyond float16's range and have been cut to it."""

    not_finite: int = 0
    saturated: int = 0

    def __add__(self, other: ValueReport) -> ValueReport:
        return ValueReport(self.not_finite + other.not_finite, self.saturated + other.saturated)

    def __bool__(self) -> bool:
        return self != ValueReport()

    def __str__(self) -> str:
        told = {"not finite": self.not_finite, "beyond the range of float16 and cut to it": self.saturated}
        return ", ".join(f"{count} value{'s' * (count > 1)} {what}" for what, count in told.items() if count)

    @classmethod
    def of(cls, not_finite: Tensor, saturated: Tensor) -> Self:
        """Counted from masks."""
        return cls(int(not_finite.sum()), int(saturated.sum()))


def all_finite(rows: Tensor) -> bool:
    """Whether every value is a finite number; one pass at the speed of memory."""
    return rows.numel() == 0 or all(bool(bound.isfinite()) for bound in rows.aminmax())


def clip_to_float16(rows: Tensor, exact: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Cut what float16 could not hold, in place: masks of the values that are not finite, and of those cut.

    `exact` gives the rows in float32, by which an overflow is told from an infinity of the model's own.
    """
    strange = ~rows.isfinite()
    saturated = strange & exact().to(rows.device).isfinite() if rows.dtype == torch.float16 else strange & False
    rows[saturated] = rows[saturated].clamp(-FLOAT16_MAX, FLOAT16_MAX)
    return strange & ~saturated, saturated
