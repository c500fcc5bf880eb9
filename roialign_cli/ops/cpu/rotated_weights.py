"""The weights of map cells for rotated boxes (Numba, `nogil`).

Such a box is not a product of two axes, so each of its bins gets a list of cells and weights, whose weighted sum is the
mean of the samples, or the integral mean, of the bilinear surface over the bin. `kernel.pool_lists` sums them up. Between four
cell centres the surface is a bilinear polynomial, so its integral over a polygon follows from the polygon's moments 1, u, v
and uv (Green's theorem). docs/explanation/regions.md derives the formulas.

Each function fills the lists of RoIs `rows` one after the other, as far as the arrays reach, and returns how many RoIs it
has finished. Bin b of the i-th has the entries ptr[i * bins + b]:ptr[i * bins + b + 1] of `offset` (bytes from the first
cell of its map) and `weight`; outside[i * bins + b] says whether it has samples outside of the map (mode max). `slot` [cells
of the largest map] holds -1 between calls; within one, the entry of each cell.
"""

import numpy as np

from roialign_cli.ops.cpu.jit import inlined, inner, jit

AVG, MAX, EXACT = 0, 1, 2
MIN_EXTENT = 1e-6  # map cells: an empty bin is widened to it, so that its mean is defined
CORNERS = 16  # of a convex polygon of at most 4 corners that is cut by at most 4 lines, with room to spare


@inlined
def _add(cells, weight, slot, count, cell, share):
    """Add a share to the weight of a cell in the list of the current bin; count on when the arrays are full."""
    if share == 0.0:
        return count
    entry = slot[cell]
    if entry >= 0:
        weight[entry] += share
        return count
    if count < cells.size:
        slot[cell] = count
        cells[count] = cell
        weight[count] = share
    return count + 1


@inlined
def _add_sample(cells, weight, slot, count, u, v, height, width, share):
    """Add a sample inside of the map, clamped to its cell centres, to the four cells around it."""
    u, v = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
    x, y = int(u), int(v)
    right, below = min(x + 1, width - 1), min(y + 1, height - 1)
    fx, fy = u - x, v - y
    count = _add(cells, weight, slot, count, y * width + x, share * (1.0 - fy) * (1.0 - fx))
    count = _add(cells, weight, slot, count, y * width + right, share * (1.0 - fy) * fx)
    count = _add(cells, weight, slot, count, below * width + x, share * fy * (1.0 - fx))
    return _add(cells, weight, slot, count, below * width + right, share * fy * fx)


@inlined
def _add_moments(cells, weight, slot, count, x, y, height, width, moments, scale):
    """Add the integral over a part of the unit square from cell centre (x, y), of which `moments` are 1, u, v and uv.

    Squares start at -1: between the border of the map and the first or last cell centre the surface is constant.
    """
    area, mu, mv, muv = moments[0] * scale, moments[1] * scale, moments[2] * scale, moments[3] * scale
    left, right = max(x, 0), min(x + 1, width - 1)
    top, below = max(y, 0), min(y + 1, height - 1)
    count = _add(cells, weight, slot, count, top * width + left, area - mu - mv + muv)
    count = _add(cells, weight, slot, count, top * width + right, mu - muv)
    count = _add(cells, weight, slot, count, below * width + left, mv - muv)
    return _add(cells, weight, slot, count, below * width + right, muv)


@inner
def _finish_bin(cells, slot, begin, count, level):
    """Turn the cells of a finished bin into byte offsets, and free their slots."""
    width, stride_y, stride_x = level[2], level[4], level[5]
    for e in range(begin, min(count, cells.size)):
        cell = cells[e]
        slot[cell] = -1
        cells[e] = cell // width * stride_y + cell % width * stride_x


# --- convex polygons ----------------------------------------------------------------------------------------------------


@inner
def _cut(source, n, axis, at, below, above):
    """Cut a convex polygon source[:n] (u, v) along a line u = at or v = at; return the corners of both parts."""
    low = high = 0
    for i in range(n):
        j = i + 1 if i + 1 < n else 0
        here, there = source[i, axis] - at, source[j, axis] - at
        if here <= 0.0:
            below[low] = source[i]
            low += 1
        if here >= 0.0:
            above[high] = source[i]
            high += 1
        if (here < 0.0 < there) or (there < 0.0 < here):
            share = here / (here - there)
            other = source[i, 1 - axis] + share * (source[j, 1 - axis] - source[i, 1 - axis])
            below[low, axis] = above[high, axis] = at
            below[low, 1 - axis] = above[high, 1 - axis] = other
            low += 1
            high += 1
    return low, high


@inner
def _add_polygon_moments(corners, n, x, y, moments):
    """Add the integrals of 1, u, v and uv over a polygon, with u and v counted from (x, y).

    They are computed from its first corner and then moved, so that small polygons keep their digits.
    """
    origin_u, origin_v = corners[0, 0], corners[0, 1]
    area = mu = mv = muv = 0.0
    for i in range(1, n - 1):
        a, b = corners[i, 0] - origin_u, corners[i, 1] - origin_v
        c, d = corners[i + 1, 0] - origin_u, corners[i + 1, 1] - origin_v
        cross = a * d - c * b
        area += cross / 2
        mu += cross * (a + c) / 6
        mv += cross * (b + d) / 6
        muv += cross * (2 * a * b + a * d + c * b + 2 * c * d) / 24
    u, v = origin_u - x, origin_v - y
    moments[0] += area
    moments[1] += mu + area * u
    moments[2] += mv + area * v
    moments[3] += muv + mu * v + mv * u + area * u * v


@inner
def _range_of(corners, n, axis):
    """Return the lowest and the highest coordinate of a polygon."""
    low = high = corners[0, axis]
    for i in range(1, n):
        low, high = min(low, corners[i, axis]), max(high, corners[i, axis])
    return low, high


@inner
def _whole_squares(strip, n, y):
    """Return the range of unit squares, from left to right, that lie wholly in a convex strip y..y + 1."""
    first, last = -np.inf, np.inf
    for line in range(2):
        left, right = np.inf, -np.inf
        for i in range(n):
            if strip[i, 1] == y + line:
                left, right = min(left, strip[i, 0]), max(right, strip[i, 0])
        first, last = max(first, left), min(last, right)
    return (int(np.ceil(first)), int(np.floor(last))) if first < last else (0, 0)


# --- rotated boxes --------------------------------------------------------------------------------------------------------


@jit
def rotated(rows, table, maps, shape, ptr, cells, weight, outside, slot):
    """Fill the lists of rotated boxes; `table` is (rois [K, 6], levels [K], scales), see `roi_align_rotated`."""
    rois, levels, scales = table
    ph, pw, ratio, aligned, mode, clockwise = shape
    bins = ph * pw
    count = 0
    work = np.empty((5, CORNERS, 2))
    moments = np.empty(4)
    ptr[0] = 0
    for i in range(len(rows)):
        k = rows[i]
        if (i + 1) * bins >= ptr.size:
            return i
        level = maps[levels[k]]
        height, width, scale = level[1], level[2], scales[levels[k]]
        offset = 0.5 if aligned else 0.0
        centre_u, centre_v = rois[k, 1] * scale - offset, rois[k, 2] * scale - offset
        box_w, box_h = rois[k, 3] * scale, rois[k, 4] * scale
        if not aligned:
            box_w, box_h = max(box_w, 1.0), max(box_h, 1.0)
        bin_w, bin_h = box_w / pw, box_h / ph
        angle = rois[k, 5] % 360.0 * (np.pi / 180.0)
        sine, cosine = np.sin(angle), np.cos(angle)
        if rois[k, 5] % 90.0 == 0.0:  # so that boxes turned by right angles have no rounded corners
            sine, cosine = np.round(sine), np.round(cosine)
        if clockwise:
            sine = -sine
        frame = (centre_u, centre_v, sine, cosine)
        grid_x = float(ratio) if ratio > 0 else np.ceil(bin_w)
        grid_y = float(ratio) if ratio > 0 else np.ceil(bin_h)
        for p in range(ph):
            for q in range(pw):
                b = i * bins + p * pw + q
                begin = count
                edges = (-0.5 * box_w + q * bin_w, -0.5 * box_h + p * bin_h, bin_w, bin_h)
                if mode == EXACT:
                    count = _integrate_turned_bin(
                        cells, weight, slot, count, frame, edges, height, width, work, moments
                    )
                else:
                    count, outside[b] = _sample_turned_bin(
                        cells, weight, slot, count, frame, edges, grid_x, grid_y, height, width, mode
                    )
                if mode == MAX:
                    for e in range(begin, min(count, cells.size)):
                        cell = cells[e]
                        cells[e] = cell // width * level[4] + cell % width * level[5]
                else:
                    _finish_bin(cells, slot, begin, count, level)
                if count > cells.size:
                    return i
                ptr[b + 1] = count
    return len(rows)


@inner
def _clip_range(first, stop, begin, step, slope, base, low, high):
    """Narrow a range of samples i, at base + slope * (begin + (i + 0.5) * step), to those near low..high."""
    if slope != 0.0 and step > 0.0:
        a, b = (low - base) / slope, (high - base) / slope
        a, b = min(a, b), max(a, b)
        first = max(first, np.floor((a - begin) / step) - 1.0)
        stop = min(stop, np.ceil((b - begin) / step) + 1.0)
    return first, stop


@inner
def _sample_turned_bin(cells, weight, slot, count, frame, edges, grid_x, grid_y, height, width, mode):
    """Write the samples of one bin of a rotated box: weights of cells, or in mode max four entries for each sample."""
    centre_u, centre_v, sine, cosine = frame
    left, top, bin_w, bin_h = edges
    share = 1.0 / (grid_x * grid_y) if grid_x > 0.0 and grid_y > 0.0 else 0.0
    step_x, step_y = bin_w / grid_x if grid_x > 0.0 else 0.0, bin_h / grid_y if grid_y > 0.0 else 0.0
    # Rows of samples outside of the map are skipped without visiting them: a huge box has too many.
    low = high = 0.0
    for corner in range(4):
        u, v = (width if corner & 1 else -1.0) - centre_u, (height if corner & 2 else -1.0) - centre_v
        yy = u * sine + v * cosine
        low, high = (yy, yy) if corner == 0 else (min(low, yy), max(high, yy))
    first, stop = _clip_range(0.0, grid_y, top, step_y, 1.0, 0.0, low, high)
    inside = 0.0
    i = first
    while i < stop:
        yy = top + (i + 0.5) * bin_h / grid_y
        i += 1.0
        row_u, row_v = centre_u + yy * sine, centre_v + yy * cosine
        j, last = _clip_range(0.0, grid_x, left, step_x, cosine, row_u, -1.0, float(width))
        j, last = _clip_range(j, last, left, step_x, -sine, row_v, -1.0, float(height))
        while j < last:
            xx = left + (j + 0.5) * bin_w / grid_x
            j += 1.0
            u, v = row_u + xx * cosine, row_v - xx * sine
            if -1.0 <= u <= width and -1.0 <= v <= height:
                inside += 1.0
                if mode == MAX:
                    count = _add_corners(cells, weight, count, u, v, height, width)
                else:
                    count = _add_sample(cells, weight, slot, count, u, v, height, width, share)
                if count > cells.size:
                    return count, False
    return count, inside < grid_x * grid_y


@inner
def _add_corners(cells, weight, count, u, v, height, width):
    """Write the four cells around a sample as entries of their own, also those of weight zero."""
    if count + 4 > cells.size:
        return cells.size + 1
    u, v = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
    x, y = int(u), int(v)
    fx, fy = u - x, v - y
    for corner in range(4):
        down, right = corner >> 1, corner & 1
        cells[count + corner] = min(y + down, height - 1) * width + min(x + right, width - 1)
        weight[count + corner] = (fy if down else 1.0 - fy) * (fx if right else 1.0 - fx)
    return count + 4


@inner
def _integrate_turned_bin(cells, weight, slot, count, frame, edges, height, width, work, moments):
    """Write the integral mean over one bin of a rotated box: the bin is cut along the lines between cell centres."""
    centre_u, centre_v, sine, cosine = frame
    left, top, bin_w, bin_h = edges
    wide, high = max(bin_w, MIN_EXTENT), max(bin_h, MIN_EXTENT)
    left, top = left - (wide - bin_w) / 2, top - (high - bin_h) / 2
    rest, strip, piece, other, spare = work[0], work[1], work[2], work[3], work[4]
    for corner in range(4):
        xx = left + (wide if corner in (1, 2) else 0.0)
        yy = top + (high if corner >= 2 else 0.0)
        rest[corner, 0] = centre_u + yy * sine + xx * cosine
        rest[corner, 1] = centre_v + yy * cosine - xx * sine
    n, scale = 4, 1.0 / (wide * high)
    for axis in range(2):  # the part inside of the map
        limit = float(width if axis == 0 else height)
        _, n = _cut(rest, n, axis, -1.0, spare, other)
        n, _ = _cut(other, n, axis, limit, rest, spare)
    if n < 3:
        return count
    v_low, v_high = _range_of(rest, n, 1)
    for y in range(int(np.floor(v_low)), int(np.ceil(v_high))):
        strip_n, rest_n = _cut(rest, n, 1, y + 1.0, strip, other)
        rest, other, n = other, rest, rest_n
        if strip_n < 3:
            continue
        u_low, u_high = _range_of(strip, strip_n, 0)
        x, last = int(np.floor(u_low)), int(np.ceil(u_high))
        whole, after = _whole_squares(strip, strip_n, float(y))
        while x < last and strip_n >= 3:
            if whole <= x < after:  # these lie in the bin as they are
                moments[0], moments[1], moments[2], moments[3] = 1.0, 0.5, 0.5, 0.25
                while x < after:
                    count = _add_moments(cells, weight, slot, count, x, y, height, width, moments, scale)
                    x += 1
                _, strip_n = _cut(strip, strip_n, 0, float(x), piece, spare)
            else:
                piece_n, strip_n = _cut(strip, strip_n, 0, x + 1.0, piece, spare)
                if piece_n >= 3:
                    moments[:] = 0.0
                    _add_polygon_moments(piece, piece_n, x, y, moments)
                    count = _add_moments(cells, weight, slot, count, x, y, height, width, moments, scale)
                x += 1
            strip, spare = spare, strip
        if n < 3:
            break
    return count
