"""What the readers of box files share: errors and columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import InputError

Column = npt.NDArray[np.generic]


def bad(where: str | Path, found: str, hint: str = "") -> InputError:
    """The error of a box file that cannot be read as its format."""
    return InputError("boxes-format", f"{where}: {found}", hint)


def column(values: Sequence[int | str]) -> Column:
    """Labels or ids as int64 where all are integers that fit, as strings otherwise."""
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    return np.array([str(value) for value in values], np.str_)


def offsets(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """[0, c0, c0 + c1, ...]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def as_boxes(rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Rows of four numbers as [N, 4] float32."""
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is named by the check that follows
        return np.array(rows, np.float64).reshape(-1, 4).astype(np.float32)
