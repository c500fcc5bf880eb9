"""The weights of map cells for masks: per bin, the mean over the part of the mask in it (Numba, `nogil`).

A mask is a set of disjoint trapezoids with horizontal bases, [T, 6]: y0, y1, left and right at y0, left and right at y1, in
pixels of the RoIs; mask_pieces.py makes them. The bins of a RoI are cut along the lines between cell centres into pieces, on
each of which the bilinear surface is a polynomial, so that the integrals over mask and piece give the weights of four cells.
The weights of runs of pixels are products: those along y are added up over the runs of a column of pixels, and then
multiplied by those of the column along x. The lists are filled as in rotated_weights.py.
"""

from collections import namedtuple

import numpy as np

from roialign_cli.ops.cpu.jit import inlined, inner, jit

BY_MASK, BY_BIN = 0, 1
MIN_EXTENT = 1e-6  # map cells: an empty bin is widened to it, so that its area is not zero
OUTSIDE = -2  # the cell of pieces outside of the map
CORNERS = 16

# One axis of a RoI. Piece i reaches from cut[i] to cut[i + 1]; cell[i] is the cell centre in which it begins. Weights are kept
# per entry: the pieces of a bin over n neighbouring cells share n + 1 entries, of which piece i adds to entry[i] and the next
# one. of_entry [E] are the cells of entries, and those of bin p are first[p]:first[p + 1].
Pieces = namedtuple("Pieces", ["cut", "cell", "entry", "of_entry", "first"])


@inner
def _cut_axis(start, bin_size, bins, size, axis):
    """Cut the bins of an axis at cell centres and at the ends of the map; return the numbers of pieces and entries."""
    cut, cell, entry, of_entry, first = axis
    pieces = entries = 0
    for p in range(bins):
        first[p] = entries
        at, end = start + p * bin_size, start + (p + 1) * bin_size
        while at < end:
            inside = OUTSIDE
            if at < -1.0:
                stop = min(end, -1.0)
            elif at < size:
                inside = int(np.floor(at))
                stop = min(end, inside + 1.0)
            else:
                stop = end
            cut[pieces], cell[pieces], entry[pieces] = at, inside, entries
            of_entry[entries] = inside if inside == OUTSIDE else max(inside, 0)
            entries += 1
            if inside != OUTSIDE and (stop == end or stop == size):
                of_entry[entries] = min(inside + 1, size - 1)
                entries += 1
            pieces += 1
            at = stop
    first[bins] = entries
    cut[pieces] = start + bins * bin_size
    return pieces, entries


@inner
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


@inner
def _add_run(axis, pieces, low, high, sums):
    """Add the weights of the interval low..high to the sums [E + 1] of an axis; return the range of entries that it touches."""
    cut, cell, entry, _, _ = axis
    low, high = max(low, cut[0]), min(high, cut[pieces])
    if low >= high:
        return 0, 0
    i = _find_piece(cut, pieces, low)
    first = entry[i]
    while i < pieces and cut[i] < high:
        a, b = max(low, cut[i]), min(high, cut[i + 1])
        next_share = 0.0 if cell[i] == OUTSIDE else (a + b) / 2 - cell[i]
        sums[entry[i]] += (b - a) * (1.0 - next_share)
        sums[entry[i] + 1] += (b - a) * next_share
        i += 1
    return first, entry[i - 1] + 2


@inner
def _add_column(axis, pieces, left, right, sums, first, stop, total):
    """Add the weights of an interval along x times the sums first..stop along y to the total [Ex, Ey]; clear the sums."""
    cut, cell, entry, _, _ = axis
    left, right = max(left, cut[0]), min(right, cut[pieces])
    if left < right:
        j = _find_piece(cut, pieces, left)
        while j < pieces and cut[j] < right:
            a, b = max(left, cut[j]), min(right, cut[j + 1])
            next_share = 0.0 if cell[j] == OUTSIDE else (a + b) / 2 - cell[j]
            here, beside = (b - a) * (1.0 - next_share), (b - a) * next_share
            x = entry[j]
            for y in range(first, stop):
                total[x, y] += here * sums[y]
                total[x + 1, y] += beside * sums[y]
            j += 1
    for y in range(first, stop):
        sums[y] = 0.0


@inner
def _add_trapezoid(y, n_y, x, n_x, mask, t, total, work):
    """Add the weights of trapezoid t, which is cut into polygons in one piece each, to the total [Ex, Ey]."""
    y0, y1, left0, right0, left1, right1 = mask[t, 0], mask[t, 1], mask[t, 2], mask[t, 3], mask[t, 4], mask[t, 5]
    low, high = max(y0, y.cut[0]), min(y1, y.cut[n_y])
    if low >= high:
        return
    rest, part, above = work[0], work[1], work[2]
    i = _find_piece(y.cut, n_y, low)
    while i < n_y and y.cut[i] < high:
        a, b = max(low, y.cut[i]), min(high, y.cut[i + 1])
        above_a, above_b = (a - y0) / (y1 - y0), (b - y0) / (y1 - y0)
        left_a, right_a = left0 + above_a * (left1 - left0), right0 + above_a * (right1 - right0)
        left_b, right_b = left0 + above_b * (left1 - left0), right0 + above_b * (right1 - right0)
        rest[0, 0], rest[1, 0], rest[2, 0], rest[3, 0] = left_a, right_a, right_b, left_b
        rest[0, 1], rest[1, 1], rest[2, 1], rest[3, 1] = a, a, b, b
        n, right = 4, max(right_a, right_b)
        if min(left_a, left_b) < x.cut[0]:
            _, n = _cut_at(rest, n, x.cut[0], part, above)
            rest, above = above, rest
        j = _find_piece(x.cut, n_x, min(left_a, left_b))
        while n >= 3 and j < n_x and x.cut[j] < right:
            found, n = _cut_at(rest, n, x.cut[j + 1], part, above)
            rest, above = above, rest
            if found >= 3:
                _add_polygon(part, found, x.cell[j], y.cell[i], x.entry[j], y.entry[i], total)
            j += 1
        i += 1


@inner
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


@inner
def _add_polygon(corners, n, x, y, x_entry, y_entry, total):
    """Add the weights of a polygon right of and below cell centre (x, y): its moments 1, u, v and uv give them.

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
    mu, mv, muv = mu + area * u, mv + area * v, muv + mu * v + mv * u + area * u * v
    if x == OUTSIDE:  # only the area counts
        mu = muv = 0.0
    if y == OUTSIDE:
        mv = muv = 0.0
    total[x_entry, y_entry] += area - mu - mv + muv
    total[x_entry + 1, y_entry] += mu - muv
    total[x_entry, y_entry + 1] += mv - muv
    total[x_entry + 1, y_entry + 1] += muv


@inlined
def _make_pieces(side, bins):
    """Allocate the lists of an axis of up to `side` cells."""
    pieces = side + 3 * bins + 8
    return Pieces(
        np.empty(pieces), np.empty(pieces, np.int64), np.empty(pieces, np.int64),
        np.empty(pieces + 2 * bins, np.int64), np.empty(bins + 1, np.int64),
    )  # fmt: skip


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
    y, x = _make_pieces(side, ph), _make_pieces(side, pw)
    sums, space, work = np.zeros(y.of_entry.size + 2), np.empty(1), np.empty((3, CORNERS, 2))
    rows_of, columns_of = np.empty((ph, 2), np.int64), np.empty((pw, 2), np.int64)
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
        grid_x = max(float(ratio) if ratio > 0 else np.ceil(roi_w / pw), 1.0)
        grid_y = max(float(ratio) if ratio > 0 else np.ceil(roi_h / ph), 1.0)
        wide, tall = max(roi_w, MIN_EXTENT * pw), max(roi_h, MIN_EXTENT * ph)
        left, top = left - (wide - roi_w) / 2, top - (tall - roi_h) / 2
        bin_w, bin_h = wide / pw, tall / ph
        mask = trapezoids[first[k] : first[k + 1]] * scale - offset
        if exact:
            n_y, e_y = _cut_axis(top, bin_h, ph, height, y)
            n_x, e_x = _cut_axis(left, bin_w, pw, width, x)
            if space.size < (e_x + 1) * (e_y + 1):
                space = np.empty((e_x + 1) * (e_y + 1))
            total = space[: (e_x + 1) * (e_y + 1)].reshape(e_x + 1, e_y + 1)
            total[:] = 0.0
            _integrate(mask, y, n_y, x, n_x, sums, total, work)
        else:
            _find_overlaps(mask, 0, 0, 1, 1, top, bin_h, rows_of)
            _find_overlaps(mask, 2, 4, 3, 5, left, bin_w, columns_of)
        for p in range(ph):
            for q in range(pw):
                b, begin, whole = p * pw + q, count, bin_w * bin_h
                covered = 0.0
                if exact:
                    for s in range(x.first[q], x.first[q + 1]):
                        cell_x = x.of_entry[s]
                        for t in range(y.first[p], y.first[p + 1]):
                            share, cell_y = total[s, t], y.of_entry[t]
                            covered += share
                            if share == 0.0 or cell_x == OUTSIDE or cell_y == OUTSIDE:
                                continue
                            if count < cells.size:
                                cells[count], weight[count] = cell_y * level[4] + cell_x * level[5], share
                            count += 1
                else:
                    place = (left + q * bin_w, top + p * bin_h, bin_w, bin_h, grid_x, grid_y)
                    for t in range(max(rows_of[p, 0], columns_of[q, 0]), min(rows_of[p, 1], columns_of[q, 1])):
                        count, inside = _sample_trapezoid(cells, weight, slot, count, mask, t, place, height, width)
                        covered += inside
                    whole = grid_x * grid_y
                    for e in range(begin, min(count, cells.size)):
                        cell = cells[e]
                        slot[cell] = -1
                        cells[e] = cell // width * level[4] + cell % width * level[5]
                for e in range(begin, min(count, cells.size)):
                    weight[e] /= covered if normalize == BY_MASK else whole
                if count > cells.size:
                    return i
                coverage[k, b] = min(max(covered / whole, 0.0), 1.0)
                ptr[i * bins + b + 1] = count
    return len(rows)


@inner
def _find_overlaps(mask, low, other_low, high, other_high, start, bin_size, found):
    """Write for each bin of an axis, [bins, 2], which trapezoids may reach into it: from the first one to after the last one.

    Trapezoids come sorted along one axis, so these are few. The other numbers are the columns that bound them along the axis.
    """
    for p in range(len(found)):
        begin, end = start + p * bin_size, start + (p + 1) * bin_size
        first = last = 0
        for t in range(len(mask)):
            if max(mask[t, high], mask[t, other_high]) > begin and min(mask[t, low], mask[t, other_low]) < end:
                first, last = first if last else t, t + 1
        found[p, 0], found[p, 1] = first, last


@inner
def _integrate(mask, y, n_y, x, n_x, sums, total, work):
    """Add the weights of all trapezoids of a mask, in map cells, to the total [Ex, Ey]."""
    first, stop = total.shape[1], 0  # entries of the sums that are not zero
    for t in range(len(mask)):
        left, right = mask[t, 2], mask[t, 3]
        if left == mask[t, 4] and right == mask[t, 5]:
            low, high = _add_run(y, n_y, mask[t, 0], mask[t, 1], sums)
            if low < high:
                first, stop = min(first, low), max(stop, high)
            n = t + 1
            if n < len(mask) and mask[n, 2] == mask[n, 4] == left and mask[n, 3] == mask[n, 5] == right:
                continue  # another run of the same column
            _add_column(x, n_x, left, right, sums, first, stop, total)
            first, stop = total.shape[1], 0
        else:
            _add_trapezoid(y, n_y, x, n_x, mask, t, total, work)


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


@inner
def _count_steps(begin, step, limit):
    """Return how many of the samples begin + (i + 0.5) * step, i from 0, lie below a limit, before rounding is corrected."""
    return np.ceil((limit - begin) / step - 0.5)


@inner
def _sample_trapezoid(cells, weight, slot, count, mask, t, place, height, width):
    """Add the samples of a bin that lie in a trapezoid, each with weight one; return how many these are, too.

    Samples outside of the map are counted without visiting them one by one: a huge box has too many.
    """
    low, high, left0, right0, left1, right1 = mask[t, 0], mask[t, 1], mask[t, 2], mask[t, 3], mask[t, 4], mask[t, 5]
    x0, y0, bin_w, bin_h, grid_x, grid_y = place
    if high <= y0 or low >= y0 + bin_h:
        return count, 0.0
    inside = 0.0
    i = max(_count_steps(y0, bin_h / grid_y, low) - 1.0, 0.0)
    stop = min(_count_steps(y0, bin_h / grid_y, high) + 1.0, grid_y)
    while i < stop:
        v = y0 + (i + 0.5) * bin_h / grid_y
        i += 1.0
        if v < low or v >= high:
            continue
        share = (v - low) / (high - low)
        left, right = left0 + share * (left1 - left0), right0 + share * (right1 - right0)
        first = _first_sample(x0, bin_w, grid_x, left)
        last = _first_sample(x0, bin_w, grid_x, right)
        inside += max(last - first, 0.0)
        if not -1.0 <= v <= height:
            continue
        j = max(first, _count_steps(x0, bin_w / grid_x, -1.0) - 1.0)
        last = min(last, _count_steps(x0, bin_w / grid_x, float(width)) + 1.0)
        while j < last:
            u = x0 + (j + 0.5) * bin_w / grid_x
            j += 1.0
            if -1.0 <= u <= width:
                a, b = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
                cx, cy = int(a), int(b)
                far, lower = min(cx + 1, width - 1), min(cy + 1, height - 1) * width
                fx, fy = a - cx, b - cy
                count = _add(cells, weight, slot, count, cy * width + cx, (1.0 - fy) * (1.0 - fx))
                count = _add(cells, weight, slot, count, cy * width + far, (1.0 - fy) * fx)
                count = _add(cells, weight, slot, count, lower + cx, fy * (1.0 - fx))
                count = _add(cells, weight, slot, count, lower + far, fy * fx)
    return count, inside


@inner
def _first_sample(begin, bin_size, grid, limit):
    """Return the number of the first sample of a bin at or beyond a limit, from 0 to grid."""
    i = min(max(_count_steps(begin, bin_size / grid, limit), 0.0), grid)
    while i > 0.0 and begin + (i - 0.5) * bin_size / grid >= limit:
        i -= 1.0
    while i < grid and begin + (i + 0.5) * bin_size / grid < limit:
        i += 1.0
    return i
