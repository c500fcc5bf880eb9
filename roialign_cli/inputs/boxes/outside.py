"""Refuse boxes of which most lie outside their images, and name the likely cause: another convention, or other images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Floats, Integers
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.units import LAYOUTS, Numbers, Units
from roialign_cli.types import BoxTable

SLACK_PIXELS = 1.0
SLACK_SHARE = 0.01  # of the image's side, by which boxes in the right convention may reach out of it
FAR_SHARE = 0.1  # of the image's side; boxes that reach out less are common: context was added, or objects are cut
REFUSED_SHARE = 0.5  # of the boxes
EXPLAINED_SHARE = 0.9  # of the boxes must lie in their images in another convention, for it to be the likely cause
JUDGED_BOXES = 100_000


def far_outside(boxes: Floats, sizes: Integers, share: float = FAR_SHARE) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of boxes that reach out of their image by more than a share of it; sizes [N, 2] are (width, height)."""
    slack = np.maximum(SLACK_PIXELS, share * sizes)
    mask: npt.NDArray[np.bool_] = ((boxes[:, :2] < -slack) | (boxes[:, 2:] > sizes + slack)).any(axis=1)
    return mask


def outside_error(table: BoxTable, sizes: Integers, number: int) -> InputError:
    """Return the error of a table, with boxes in pixels, of which `number` boxes lie outside; sizes [M, 2] (height, width)."""
    of_row = np.repeat(sizes[:, ::-1], np.diff(table.offset), axis=0)
    wrong = far_outside(table.boxes, of_row) & (of_row.min(axis=1, initial=1) > 0)
    row = int(wrong.argmax())
    image = int(np.searchsorted(table.offset, row, side="right")) - 1
    shown = ", ".join(f"{value:.6g}" for value in table.boxes[row].tolist())
    first = f'the first is [{shown}] in the {_shape(sizes[image])} of "{table.names[image]}"'
    found = f"found {number} of {len(table.boxes)} outside, {first}"
    cause, hint = ("", "") if table.rotated is not None else _likely_cause(table, of_row)  # whose units are fixed
    message = f"expected boxes inside of their images, {found}{cause and f': {cause}'}"
    return InputError("boxes-outside", message, hint or "--allow-outside accepts them as they are")


def _likely_cause(table: BoxTable, sizes: Integers) -> tuple[str, str]:
    """Return what explains boxes that lie outside, and the option that mends it; empty strings if nothing does."""
    known = np.flatnonzero(sizes.min(axis=1, initial=1) > 0)[:JUDGED_BOXES]
    sizes, units = sizes[known], Units.parse(table.units)
    sides = np.concatenate([sizes, sizes], axis=1)
    numbers = units.numbers(table.boxes[known] / (sides if units.relative else np.ones_like(sides)))
    for layout in LAYOUTS:
        for relative in (False, True):
            other = Units(layout, relative)
            if other != units and _fits(other.corners(numbers) * (sides if relative else 1), sizes):
                words = "with x and y swapped" if "yx" in (layout[:2], units.layout[:2]) else f"{other}, not {units}"
                return f"they would fit as {words}", f"--box-units {other}"
    swapped = table.boxes[known][:, [1, 0, 3, 2]]
    if _fits(swapped, sizes):
        return "they would fit with x and y swapped", ""
    factor = float((table.boxes[known][:, 2:] / sizes).max(initial=0))
    if factor > 1 and (table.boxes[known] >= 0).all():
        return f"they would fit images that are {factor:.2g} times as large", ""
    return "", ""


def _fits(corners: Numbers | Floats, sizes: Integers) -> bool:
    """Return whether nearly all boxes have their corners in order and lie in their images."""
    ordered = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return bool((ordered & ~far_outside(corners.astype(np.float32), sizes, SLACK_SHARE)).mean() >= EXPLAINED_SHARE)


def _shape(size: Integers) -> str:
    height, width = size.tolist()
    return f"{width} x {height} pixels"
