"""The weights of map cells for masks: per bin, the mean over the part of the mask in it (Numba, `nogil`).

A mask is a set of disjoint trapezoids with horizontal bases, [T, 6]: y0, y1, left and right at y0, left and right at y1, in
pixels of the RoIs; mask_pieces.py makes them. The bins of a RoI are cut along the lines between cell centres into pieces, on
each of which the bilinear surface is a polynomial. The integrals of 1, u, v and uv over the part of the mask in each piece
then give the weights. The lists are filled as in weights.py.
"""

from collections import namedtuple

import numpy as np

from roialign_cli.ops.cpu.jit import inlined, jit

BY_MASK, BY_BIN = 0, 1
MIN_EXTENT = 1e-6  # map cells: an empty bin is widened to it, so that its area is not zero
OUTSIDE = -2  # the cell of pieces outside of the map
CORNERS = 16

# One axis of a RoI. Its `count` pieces reach from cut[i] to cut[i + 1] and begin right of the centre of cell[i]; those of bin p
# are first[p]:first[p + 1].
Pieces = namedtuple("Pieces", ["cut", "cell", "first"])


@inlined
def _add(cells, weight, slot, count, cell, share):
    """Add a share to the weight of a cell in the list of the current bin; count on when the arrays are full."""
    entry = slot[cell]
    if entry >= 0:
        weight[entry] += share
    else:
        if count < cells.size:
            slot[cell] = count
            cells[count] = cell
            weight[count] = share
        count += 1
    return count


@jit
def _cut_axis(start, bin_size, bins, size, cut, cell, first):
    """Cut the bins of an axis into pieces at cell centres and at the ends of the map; return the number of pieces."""
    count = 0
    for p in range(bins):
        first[p] = count
        at, end = start + p * bin_size, start + (p + 1) * bin_size
        while at < end:
            if at < -1.0:
                stop, inside = min(end, -1.0), OUTSIDE
            elif at < size:
                inside = int(np.floor(at))
                stop = min(end, inside + 1.0)
            else:
                stop, inside = end, OUTSIDE
            cut[count], cell[count] = at, inside
            count += 1
            at = stop
    first[bins] = count
    cut[count] = start + bins * bin_size
    return count


@jit
def _find_piece(cut, count, at):
    """Return the piece that contains a coordinate, or the first or last one."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) >> 1
        if cut[middle] <= at:
            low = middle
        else:
            high = middle - 1
    return low


@jit
def _add_rectangle(y, rows, x, columns, low, high, left, right, moments):
    """Add a rectangle, low..high and left..right, to the moments of all pieces."""
    low, high = max(low, y.cut[0]), min(high, y.cut[rows])
    left, right = max(left, x.cut[0]), min(right, x.cut[columns])
    if low >= high or left >= right:
        return
    y_cut, y_cell, x_cut, x_cell = y.cut, y.cell, x.cut, x.cell
    leftmost = _find_piece(x_cut, columns, left)
    i = _find_piece(y_cut, rows, low)
    while i < rows and y_cut[i] < high:
        a, b = max(low, y_cut[i]), min(high, y_cut[i + 1])
        tall, middle_v = b - a, (a + b) / 2 - y_cell[i]
        j = leftmost
        while j < columns and x_cut[j] < right:
            c, d = max(left, x_cut[j]), min(right, x_cut[j + 1])
            area, middle_u = (d - c) * tall, (c + d) / 2 - x_cell[j]
            moments[i, j, 0] += area
            moments[i, j, 1] += area * middle_u
            moments[i, j, 2] += area * middle_v
            moments[i, j, 3] += area * middle_u * middle_v
            j += 1
        i += 1


@jit
def _add_trapezoid(y, rows, x, columns, sides, moments, work):
    """Add a trapezoid, `sides` as in the rows of a mask, to the moments of all pieces."""
    y0, y1, left0, right0, left1, right1 = sides
    if left0 == left1 and right0 == right1:
        _add_rectangle(y, rows, x, columns, y0, y1, left0, right0, moments)
        return
    low, high = max(y0, y.cut[0]), min(y1, y.cut[rows])
    if low >= high:
        return
    rest, part, above = work[0], work[1], work[2]
    i = _find_piece(y.cut, rows, low)
    while i < rows and y.cut[i] < high:
        a, b = max(low, y.cut[i]), min(high, y.cut[i + 1])
        s, t = (a - y0) / (y1 - y0), (b - y0) / (y1 - y0)
        left_a, right_a = left0 + s * (left1 - left0), right0 + s * (right1 - right0)
        left_b, right_b = left0 + t * (left1 - left0), right0 + t * (right1 - right0)
        rest[0, 0], rest[1, 0], rest[2, 0], rest[3, 0] = left_a, right_a, right_b, left_b
        rest[0, 1], rest[1, 1], rest[2, 1], rest[3, 1] = a, a, b, b
        n, right = 4, max(right_a, right_b)
        if min(left_a, left_b) < x.cut[0]:
            _, n = _cut_at(rest, n, x.cut[0], part, above)
            rest, above = above, rest
        j = _find_piece(x.cut, columns, min(left_a, left_b))
        while n >= 3 and j < columns and x.cut[j] < right:
            found, n = _cut_at(rest, n, x.cut[j + 1], part, above)
            rest, above = above, rest
            if found >= 3:
                _add_polygon(part, found, x.cell[j], y.cell[i], moments[i, j])
            j += 1
        i += 1


@jit
def _cut_at(source, n, at, left, right):
    """Cut a convex polygon source[:n] (u, v) along the line u = at; return the numbers of corners of both parts."""
    lefts = rights = 0
    for i in range(n):
        j = i + 1 if i + 1 < n else 0
        here, there = source[i, 0] - at, source[j, 0] - at
        if here <= 0.0:
            left[lefts, 0], left[lefts, 1] = source[i, 0], source[i, 1]
            lefts += 1
        if here >= 0.0:
            right[rights, 0], right[rights, 1] = source[i, 0], source[i, 1]
            rights += 1
        if (here < 0.0 < there) or (there < 0.0 < here):
            v = source[i, 1] + here / (here - there) * (source[j, 1] - source[i, 1])
            left[lefts, 0], left[lefts, 1] = at, v
            right[rights, 0], right[rights, 1] = at, v
            lefts += 1
            rights += 1
    return lefts, rights


@jit
def _add_polygon(corners, n, x, y, moments):
    """Add the integrals of 1, u, v and uv over a polygon, with u and v counted from (x, y)."""
    for i in range(n):
        j = i + 1 if i + 1 < n else 0
        a, b = corners[i, 0] - x, corners[i, 1] - y
        c, d = corners[j, 0] - x, corners[j, 1] - y
        cross = a * d - c * b
        moments[0] += cross / 2
        moments[1] += cross * (a + c) / 6
        moments[2] += cross * (b + d) / 6
        moments[3] += cross * (2 * a * b + a * d + c * b + 2 * c * d) / 24


@jit
def masked(rows, table, masks, maps, shape, ptr, cells, weight, slot, coverage):
    """Fill the lists of masked RoIs, and the rows of coverage [K, bins] with the share of each bin that its mask covers.

    table: (rois [K, 5], levels [K], scales). masks: (first [K + 1], trapezoids [T, 6]), those of RoI k are
    first[k]:first[k + 1]. shape: (ph, pw, ratio, aligned, exact, normalize).
    """
    rois, levels, scales = table
    first, trapezoids = masks
    ph, pw, ratio, aligned, exact, normalize = shape
    bins, count = ph * pw, 0
    side = max(maps[:, 1].max(), maps[:, 2].max())
    y = Pieces(np.empty(side + 3 * ph + 8), np.empty(side + 3 * ph + 8, np.int64), np.empty(ph + 1, np.int64))
    x = Pieces(np.empty(side + 3 * pw + 8), np.empty(side + 3 * pw + 8, np.int64), np.empty(pw + 1, np.int64))
    work, sides = np.empty((3, CORNERS, 2)), np.empty(6)
    space = np.empty(1)
    ptr[0] = 0
    for i in range(len(rows)):
        k = rows[i]
        if (i + 1) * bins >= ptr.size:
            return i
        level = maps[levels[k]]
        height, width, scale = level[1], level[2], scales[levels[k]]
        offset = 0.5 if aligned else 0.0
        left, top = rois[k, 1] * scale - offset, rois[k, 2] * scale - offset
        roi_w, roi_h = rois[k, 3] * scale - offset - left, rois[k, 4] * scale - offset - top
        if not aligned:
            roi_w, roi_h = max(roi_w, 1.0), max(roi_h, 1.0)
        grid_x = float(ratio) if ratio > 0 else np.ceil(roi_w / pw)
        grid_y = float(ratio) if ratio > 0 else np.ceil(roi_h / ph)
        wide, tall = max(roi_w, MIN_EXTENT * pw), max(roi_h, MIN_EXTENT * ph)
        left, top = left - (wide - roi_w) / 2, top - (tall - roi_h) / 2
        bin_w, bin_h = wide / pw, tall / ph
        grid_x, grid_y = max(grid_x, 1.0), max(grid_y, 1.0)
        if exact:
            n_y = _cut_axis(top, bin_h, ph, height, y.cut, y.cell, y.first)
            n_x = _cut_axis(left, bin_w, pw, width, x.cut, x.cell, x.first)
            if space.size < n_y * n_x * 4:
                space = np.empty(n_y * n_x * 4)
            moments = space[: n_y * n_x * 4].reshape(n_y, n_x, 4)
            moments[:] = 0.0
            for t in range(first[k], first[k + 1]):
                for s in range(6):
                    sides[s] = trapezoids[t, s] * scale - offset
                _add_trapezoid(y, n_y, x, n_x, sides, moments, work)
        for p in range(ph):
            for q in range(pw):
                b, begin = p * pw + q, count
                if exact:
                    covered = 0.0
                    for m in range(y.first[p], y.first[p + 1]):
                        for n in range(x.first[q], x.first[q + 1]):
                            area = moments[m, n, 0]
                            covered += area
                            cy, cx = y.cell[m], x.cell[n]
                            if area == 0.0 or cy == OUTSIDE or cx == OUTSIDE:
                                continue
                            mu, mv, muv = moments[m, n, 1], moments[m, n, 2], moments[m, n, 3]
                            upper, lower = max(cy, 0) * width, min(cy + 1, height - 1) * width
                            near, far = max(cx, 0), min(cx + 1, width - 1)
                            count = _add(cells, weight, slot, count, upper + near, area - mu - mv + muv)
                            count = _add(cells, weight, slot, count, upper + far, mu - muv)
                            count = _add(cells, weight, slot, count, lower + near, mv - muv)
                            count = _add(cells, weight, slot, count, lower + far, muv)
                    whole = bin_w * bin_h
                else:
                    covered = 0.0
                    x0, y0 = left + q * bin_w, top + p * bin_h
                    for t in range(first[k], first[k + 1]):
                        for s in range(6):
                            sides[s] = trapezoids[t, s] * scale - offset
                        count, inside = _sample_trapezoid(
                            cells, weight, slot, count, sides, x0, y0, bin_w, bin_h, grid_x, grid_y, height, width
                        )
                        covered += inside
                    whole = grid_x * grid_y
                for e in range(begin, min(count, cells.size)):
                    cell = cells[e]
                    slot[cell] = -1
                    cells[e] = cell // width * level[4] + cell % width * level[5]
                    weight[e] /= covered if normalize == BY_MASK else whole
                if count > cells.size:
                    return i
                coverage[k, b] = min(covered / whole, 1.0)
                ptr[i * bins + b + 1] = count
    return len(rows)


@jit
def _sample_trapezoid(cells, weight, slot, count, sides, x0, y0, bin_w, bin_h, grid_x, grid_y, height, width):
    """Add the samples of a bin that lie in a trapezoid, each with weight one; return how many these are, too."""
    low, high, left0, right0, left1, right1 = sides
    inside = 0.0
    i = max(np.floor((low - y0) / bin_h * grid_y) - 1.0, 0.0)
    stop = min(np.ceil((high - y0) / bin_h * grid_y) + 1.0, grid_y)
    while i < stop:
        v = y0 + (i + 0.5) * bin_h / grid_y
        i += 1.0
        if v < low or v >= high:
            continue
        share = (v - low) / (high - low)
        left, right = left0 + share * (left1 - left0), right0 + share * (right1 - right0)
        j = max(np.floor((left - x0) / bin_w * grid_x) - 1.0, 0.0)
        last = min(np.ceil((right - x0) / bin_w * grid_x) + 1.0, grid_x)
        while j < last:
            u = x0 + (j + 0.5) * bin_w / grid_x
            j += 1.0
            if u < left or u >= right:
                continue
            inside += 1.0
            if -1.0 <= u <= width and -1.0 <= v <= height:
                a, b = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
                cx, cy = int(a), int(b)
                far, lower = min(cx + 1, width - 1), min(cy + 1, height - 1) * width
                fx, fy = a - cx, b - cy
                count = _add(cells, weight, slot, count, cy * width + cx, (1.0 - fy) * (1.0 - fx))
                count = _add(cells, weight, slot, count, cy * width + far, (1.0 - fy) * fx)
                count = _add(cells, weight, slot, count, lower + cx, fy * (1.0 - fx))
                count = _add(cells, weight, slot, count, lower + far, fy * fx)
    return count, inside
