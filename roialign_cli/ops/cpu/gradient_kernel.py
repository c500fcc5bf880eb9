"""The compiled CPU kernel of gradients: it adds what RoIs pass back to the cells of the maps (Numba, `nogil`).

The weights are those of the forward pass (docs/explanation/kernels.md), read the other way round:

    gradient[b, c, y, x] += sum over p and q of wy[p, y] * wx[q, x] * passed[k, c, p, q]

A call owns a range of channels and takes the RoIs in the given order, so that each sum has one order and no two threads add
to the same cell. ops/cpu/gradient.py calls it. Functions that it calls are in this file, as in kernel.py.
"""

import numpy as np

from roialign_cli.ops.cpu.intrinsics import LANES, address, pointer, transpose, widen_float
from roialign_cli.ops.cpu.jit import inner, jit


@inner
def _add_sum(out, source, offset, weight, first, stop, n):
    """out[c] += sum over e of weight[e] * source[offset[e] bytes][c] for c < n; two terms per pass save loads of out."""
    o = pointer(out, weight)
    e = first
    while e + 1 < stop:
        w0, w1 = weight[e], weight[e + 1]
        s0, s1 = pointer(source + offset[e], weight), pointer(source + offset[e + 1], weight)
        for c in range(n):
            o[c] += w0 * s0[c] + w1 * s1[c]
        e += 2
    if e < stop:
        w0, s0 = weight[e], pointer(source + offset[e], weight)
        for c in range(n):
            o[c] += w0 * s0[c]


@inner
def _by_cell(bins, ptr, cell, weight64, step, cells, cell_ptr, entry, offset, weight):
    """Turn the lists of an axis round: cell j, at cells[j], is read by the bins with weight[cell_ptr[j]:cell_ptr[j + 1]].

    offset: bin * step. Cells ascend, and the bins of a cell, too. Returns the number of cells.
    """
    count = 0
    for e in range(ptr[bins]):
        place = count - 1
        while place >= 0 and cells[place] > cell[e]:
            place -= 1
        if place < 0 or cells[place] != cell[e]:
            place = count  # bins ascend: a new cell lies beyond all known ones
            cells[place] = cell[e]
            cell_ptr[place + 1] = 0
            count += 1
        entry[e] = place
        cell_ptr[place + 1] += 1
    cell_ptr[0] = 0
    for j in range(count):
        cell_ptr[j + 1] += cell_ptr[j]
    for p in range(bins - 1, -1, -1):  # from the last entry of each cell to the first
        for e in range(ptr[p + 1] - 1, ptr[p] - 1, -1):
            j = entry[e]
            cell_ptr[j + 1] -= 1
            offset[cell_ptr[j + 1]] = p * step
            weight[cell_ptr[j + 1]] = weight64[e]
    for j in range(count):
        cell_ptr[j] = cell_ptr[j + 1]
    cell_ptr[count] = ptr[bins]
    return count


@inner
def _load(tile, source, bins, n, wide, written, unit):
    """Read elements [n, bins] as a tile [bins, n] of the type of the sums; overlapping squares cover the remainders."""
    q, t, w = pointer(source, written), pointer(tile, unit), pointer(wide, unit)
    for i in range(bins * n):
        w[i] = widen_float(q[i], unit)
    if bins >= LANES and n >= LANES:
        for c_start in range(0, n, LANES):
            c = min(c_start, n - LANES)
            for s_start in range(0, bins, LANES):
                s = min(s_start, bins - LANES)
                square = pointer(wide + (c * bins + s) * unit.itemsize, unit)
                transpose(square, bins, pointer(tile + (s * n + c) * unit.itemsize, unit), n)
    else:
        for c in range(n):
            for s in range(bins):
                t[s * n + c] = w[c * bins + s]


@jit
def accumulate(passed, channels, first, stop, rows, table, maps, shape, y_lists, x_lists, types_of):
    """Add what RoIs pass back, passed [K, channels, ph, pw] (its address), to channels first..stop of gradients of maps.

    rows: the RoIs, in order; table: (image [K], level [K]). maps: the gradients, described as in kernel.py, of the type of the
    sums. lists: those of `kernel.axis_lists` for the rows. types_of: empty arrays of the types of `passed` and of the sums.
    """
    images, levels = table
    ph, pw = shape
    written, unit = types_of
    (y_ptr, y_cell, y_weight64), (x_ptr, x_cell, x_weight64) = y_lists, x_lists
    size, n, bins = unit.itemsize, stop - first, ph * pw
    entries = max(y_cell.shape[1], x_cell.shape[1])
    tile_of, wide_of, row_of = (
        np.empty(bins * n, unit.dtype),
        np.empty(bins * n, unit.dtype),
        np.empty(pw * n, unit.dtype),
    )
    tile, wide, row = address(tile_of), address(wide_of), address(row_of)
    entry = np.empty(entries, np.int64)
    y_cells, y_by_cell, y_offset = (
        np.empty(entries, np.int64),
        np.empty(entries + 1, np.int64),
        np.empty(entries, np.int64),
    )
    x_cells, x_by_cell, x_offset = (
        np.empty(entries, np.int64),
        np.empty(entries + 1, np.int64),
        np.empty(entries, np.int64),
    )
    y_weight, x_weight = np.empty(entries, unit.dtype), np.empty(entries, unit.dtype)
    for i in range(len(rows)):
        k = rows[i]
        level = maps[levels[k]]
        origin = level[0] + images[k] * level[3] + first * size
        y_step, x_step = pw * n * size, n * size
        heights = _by_cell(
            ph, y_ptr[i], y_cell[i], y_weight64[i], y_step, y_cells, y_by_cell, entry, y_offset, y_weight
        )
        widths = _by_cell(pw, x_ptr[i], x_cell[i], x_weight64[i], x_step, x_cells, x_by_cell, entry, x_offset, x_weight)
        if heights == 0 or widths == 0:
            continue
        _load(tile, passed + (k * channels + first) * bins * written.itemsize, bins, n, wide, written, unit)
        for j in range(heights):
            row_of[:] = 0.0
            _add_sum(row, tile, y_offset, y_weight, y_by_cell[j], y_by_cell[j + 1], pw * n)
            line = origin + y_cells[j] * level[4]
            for m in range(widths):
                _add_sum(line + x_cells[m] * level[5], row, x_offset, x_weight, x_by_cell[m], x_by_cell[m + 1], n)
    return tile_of.size + wide_of.size + row_of.size  # the last use, see `kernel.pool`
