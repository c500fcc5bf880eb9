"""Interpret the four numbers of a box: which they are, and whether they are pixels or shares of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

RELATIVE = "-relative"


@dataclass(frozen=True)
class Units:
    """The meaning of the four numbers of a box. `layout` is one of LAYOUTS."""

    layout: str
    relative: bool = False  # shares of the image's width and height, instead of pixels

    @classmethod
    def parse(cls, text: str) -> Units:
        """Parse the value of --box-units, such as cxcywh-relative."""
        return cls(text.removesuffix(RELATIVE), text.endswith(RELATIVE))

    def __str__(self) -> str:
        return self.layout + RELATIVE * self.relative

    def corners(self, numbers: Numbers) -> Numbers:
        """Return boxes [N, 4] as x1, y1, x2, y2, in the same units."""
        # Numbers that are not finite stay so, and those that overflow become infinite; `check_values` reports them.
        with np.errstate(invalid="ignore", over="ignore"):
            return np.stack(LAYOUTS[self.layout].to_corners(*numbers.T), axis=1) if len(numbers) else numbers

    def numbers(self, corners: Numbers) -> Numbers:
        """Return the numbers [N, 4] from which `corners` makes these corners."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.stack(LAYOUTS[self.layout].from_corners(*corners.T), axis=1) if len(corners) else corners


Convert = Callable[[Numbers, Numbers, Numbers, Numbers], tuple[Numbers, Numbers, Numbers, Numbers]]


@dataclass(frozen=True)
class _Layout:
    to_corners: Convert
    from_corners: Convert


LAYOUTS: Mapping[str, _Layout] = {
    "xyxy": _Layout(lambda x1, y1, x2, y2: (x1, y1, x2, y2), lambda x1, y1, x2, y2: (x1, y1, x2, y2)),
    "xywh": _Layout(lambda x, y, w, h: (x, y, x + w, y + h), lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1)),
    "cxcywh": _Layout(
        lambda x, y, w, h: (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
        lambda x1, y1, x2, y2: ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
    ),
    "yxyx": _Layout(lambda y1, x1, y2, x2: (x1, y1, x2, y2), lambda x1, y1, x2, y2: (y1, x1, y2, x2)),
}


def enclose_rotated(boxes: Numbers, degrees: Numbers) -> Numbers:
    """Return corners [N, 4] of the smallest upright boxes around boxes (cx, cy, w, h) [N, 4] rotated by angles [N]."""
    x, y, w, h = boxes.T
    with np.errstate(invalid="ignore", over="ignore"):
        cos, sin = np.abs(np.cos(np.radians(degrees))), np.abs(np.sin(np.radians(degrees)))
        half_w, half_h = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
        return np.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=1)
