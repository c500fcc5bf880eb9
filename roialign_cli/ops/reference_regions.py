"""Define RoI Align of other regions than upright boxes as plain float64 loops: the reference of the tests.

Sources: detectron2's ROIAlignRotated; Deformable ConvNets (arXiv:1703.06211, section 2.2, and arXiv:1811.11168, section 3.2);
R-FCN (arXiv:1605.06409, section 2). Each function returns float64 [K, C, PH, PW] on the CPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.ops.reference import Axis, Map, axis, integrate, interpolate
from roialign_cli.ops.request import Request

Point = tuple[float, float]  # u, v in map cells
Numbers = npt.NDArray[np.float64]
MIN_EXTENT = 1e-6  # map cells: an empty bin is widened to it where its area divides


def rotated(request: Request, clockwise: bool) -> Tensor:
    """Pool rotated boxes [K, 6]."""
    ph, pw = request.output_size
    result = np.zeros(request.bins_shape)
    for k, (features, row, scale) in enumerate(_rows(request)):
        _, x, y, width, height, angle = row
        offset = 0.5 if request.aligned else 0.0
        centre_u, centre_v = x * scale - offset, y * scale - offset
        least = 0.0 if request.aligned else 1.0
        box_w, box_h = max(width * scale, least), max(height * scale, least)
        a = math.radians(math.fmod(-angle if clockwise else angle, 360))

        def place(xx: float, yy: float, u: float = centre_u, v: float = centre_v, a: float = a) -> Point:
            return (yy * math.sin(a) + xx * math.cos(a) + u, yy * math.cos(a) - xx * math.sin(a) + v)

        grid_x = request.sampling_ratio or math.ceil(box_w / pw)
        grid_y = request.sampling_ratio or math.ceil(box_h / ph)
        for p in range(ph):
            for q in range(pw):
                top, left = -box_h / 2 + p * box_h / ph, -box_w / 2 + q * box_w / pw
                if request.mode == "exact":
                    wide, tall = max(box_w / pw, MIN_EXTENT), max(box_h / ph, MIN_EXTENT)
                    left, top = left - (wide - box_w / pw) / 2, top - (tall - box_h / ph) / 2
                    ends = ((left, top), (left + wide, top), (left + wide, top + tall), (left, top + tall))
                    bin_corners = [place(*corner) for corner in ends]
                    result[k, :, p, q] = integrate_polygon(features, bin_corners) / (wide * tall)
                    continue
                samples = [
                    interpolate(features, *reversed(place(left + (j + 0.5) * box_w / pw / grid_x,
                                                          top + (i + 0.5) * box_h / ph / grid_y)))
                    for i in range(grid_y) for j in range(grid_x)
                ]  # fmt: skip
                if samples:
                    result[k, :, p, q] = np.max(samples, 0) if request.mode == "max" else np.mean(samples, 0)
    return torch.from_numpy(result)


def masked(request: Request, first: Tensor, trapezoids: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    """Pool masked RoIs, of which RoI k has the trapezoids first[k]:first[k + 1]; return coverage [K, PH, PW], too."""
    ph, pw = request.output_size
    result, coverage = np.zeros(request.bins_shape), np.zeros((len(request.rois), ph, pw))
    for k, (features, row, scale) in enumerate(_rows(request)):
        offset = 0.5 if request.aligned else 0.0
        y_axis, x_axis = (_with_area(one) for one in _axes(request, row, scale))
        mine = trapezoids[int(first[k]) : int(first[k + 1])].double().cpu().numpy() * scale - offset
        for p in range(ph):
            for q in range(pw):
                (top, bottom), (left, right) = y_axis.edges(p), x_axis.edges(q)
                if request.mode == "exact":
                    parts = [_clip_to(_corners(one), left, right, top, bottom) for one in mine]
                    total = sum((integrate_polygon(features, part) for part in parts), np.zeros(features.shape[0]))
                    covered, whole = sum(map(_area, parts)), (bottom - top) * (right - left)
                else:
                    places = [(u, v) for v in y_axis.samples(p) for u in x_axis.samples(q)]
                    inside = [(u, v) for u, v in places if any(_contains(one, u, v) for one in mine)]
                    values = (interpolate(features, v, u) for u, v in inside)
                    total = sum(values, np.zeros(features.shape[0]))
                    covered, whole = float(len(inside)), float(len(places))
                if covered > 0:
                    coverage[k, p, q] = covered / whole
                    result[k, :, p, q] = total / (covered if normalize == "mask" else whole)
    return torch.from_numpy(result), torch.from_numpy(coverage)


def deformable(request: Request, offsets: Numbers, modulation: Numbers, gamma: float) -> Tensor:
    """Pool RoIs whose bins are moved by offsets [K, 2, PH, PW] and multiplied by modulation [K, PH, PW], or ones if empty."""
    ph, pw = request.output_size
    result = np.zeros(request.bins_shape)
    for k, (features, row, scale) in enumerate(_rows(request)):
        y_axis, x_axis = _axes(request, row, scale)
        for p in range(ph):
            for q in range(pw):
                dx, dy = gamma * offsets[k, :, p, q]
                bin_y = Axis(y_axis.edges(p)[0] + dy * y_axis.bin * ph, y_axis.bin, 1, y_axis.grid)
                bin_x = Axis(x_axis.edges(q)[0] + dx * x_axis.bin * pw, x_axis.bin, 1, x_axis.grid)
                factor = modulation[k, p, q] if modulation.size else 1.0
                result[k, :, p, q] = factor * _mean(features, bin_y, bin_x, request.mode)
    return torch.from_numpy(result)


def position_sensitive(request: Request) -> Tensor:
    """Pool RoIs of which bin (p, q) of channel c reads channel (c * PH + p) * PW + q of the maps."""
    ph, pw = request.output_size
    channels = request.maps[0].shape[1] // (ph * pw)
    result = np.zeros((len(request.rois), channels, ph, pw))
    for k, (features, row, scale) in enumerate(_rows(request)):
        y_axis, x_axis = _axes(request, row, scale)
        for p in range(ph):
            for q in range(pw):
                bin_y = Axis(y_axis.edges(p)[0], y_axis.bin, 1, y_axis.grid)
                bin_x = Axis(x_axis.edges(q)[0], x_axis.bin, 1, x_axis.grid)
                result[k, :, p, q] = _mean(features[p * pw + q :: ph * pw], bin_y, bin_x, request.mode)
    return torch.from_numpy(result)


def integrate_polygon(features: Map, polygon: Sequence[Point]) -> Map:
    """Return the integral of the bilinear surface over a polygon, [C].

    In each square between cell centres the surface is a polynomial of degree two, of which the integral over a triangle is its
    area times the mean over the middles of its edges.
    """
    total = np.zeros(features.shape[0])
    height, width = features.shape[1:]
    inside = _clip_to(polygon, -1, width, -1, height)
    if len(inside) < 3:
        return total
    us, vs = zip(*inside, strict=True)
    for y in range(math.floor(min(vs)), math.ceil(max(vs))):
        for x in range(math.floor(min(us)), math.ceil(max(us))):
            part = _clip_to(inside, x, x + 1, y, y + 1)
            for b, c in itertools.pairwise(part[1:]):
                corners = (part[0], b, c)
                middles = [
                    ((s[0] + t[0]) / 2, (s[1] + t[1]) / 2)
                    for s, t in zip(corners, corners[1:] + corners[:1], strict=True)
                ]
                total += _area(corners) * np.mean([interpolate(features, v, u) for u, v in middles], 0)
    return total


def _rows(request: Request) -> Iterator[tuple[Map, Numbers, float]]:
    """Yield the map [C, H, W], the row and the scale of each RoI."""
    maps = [m.detach().to("cpu", torch.float64).numpy() for m in request.maps]
    for row, level in zip(*request.table, strict=True):
        yield maps[level][int(row[0])], row, request.scales[level]


def _axes(request: Request, row: Numbers, scale: float) -> tuple[Axis, Axis]:
    """Return the axes of an upright RoI, y and x."""
    (ph, pw), ratio, aligned = request.output_size, request.sampling_ratio, request.aligned
    return axis(row[2], row[4], scale, ph, ratio, aligned), axis(row[1], row[3], scale, pw, ratio, aligned)


def _with_area(one: Axis) -> Axis:
    """Return an axis whose bins are not empty."""
    wide = max(one.bin, MIN_EXTENT)
    return Axis(one.start - (wide - one.bin) * one.bins / 2, wide, one.bins, max(one.grid, 1))


def _mean(features: Map, y: Axis, x: Axis, mode: str) -> Map:
    """Return the mean of the samples of a single bin, or its integral mean."""
    if mode == "exact":
        return integrate(features, y.edges(0), x.edges(0))
    samples = [interpolate(features, v, u) for v in y.samples(0) for u in x.samples(0)]
    mean: Map = np.mean(samples, 0) if samples else np.zeros(features.shape[0])
    return mean


def _corners(sides: Numbers) -> list[Point]:
    """Return the corners of a trapezoid."""
    y0, y1, left0, right0, left1, right1 = sides
    return [(left0, y0), (right0, y0), (right1, y1), (left1, y1)]


def _contains(sides: Numbers, u: float, v: float) -> bool:
    y0, y1, left0, right0, left1, right1 = sides
    if not y0 <= v < y1:
        return False
    share = (v - y0) / (y1 - y0)
    return bool(left0 + share * (left1 - left0) <= u < right0 + share * (right1 - right0))


def _area(polygon: Sequence[Point]) -> float:
    if not polygon:
        return 0.0
    near = [(u - polygon[0][0], v - polygon[0][1]) for u, v in polygon[1:]]
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(near)) / 2


def _clip_to(polygon: Sequence[Point], left: float, right: float, top: float, bottom: float) -> list[Point]:
    """Return the part of a polygon in a rectangle (Sutherland and Hodgman, Reentrant polygon clipping, 1974)."""
    sides: list[Callable[[Point], float]] = [
        lambda at: at[0] - left, lambda at: right - at[0], lambda at: at[1] - top, lambda at: bottom - at[1],
    ]  # fmt: skip
    found = list(polygon)
    for distance in sides:
        source, found = found, []
        for a, b in zip(source, source[1:] + source[:1], strict=True):
            here, there = distance(a), distance(b)
            if here >= 0:
                found.append(a)
            if (here > 0 > there) or (here < 0 < there):
                share = here / (here - there)
                found.append((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])))
    return found
