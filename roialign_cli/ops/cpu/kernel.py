"""The compiled CPU kernel: per-axis weights, banded sums over channels, tiled transpose (Numba, `nogil`).

All functions that this kernel calls are in this one file: Numba's disk cache notices changes to the file of the cached
function, but not to the files of the functions that it calls. docs/explanation/kernels.md derives the weights.

Maps are read channels-last through a table of addresses, so one compiled function serves any number of levels:

    maps[level] = (address, height, width, stride_n, stride_y, stride_x)        strides in bytes, channels contiguous

ElementTypes holds empty arrays that carry element types: `stored` that of the maps and `written` that of the output
(float32, float64, uint16 for bfloat16 bits, int16 for float16 bits), `unit` that of the weights and sums (float32 or
float64). Addresses are raw pointers on purpose: Numba's array indexing wraps negative indices, which keeps LLVM from
vectorising the loops over channels (16 times slower, measured). Constants are passed to functions as np.int64(0), since
Numba would compile another variant of the function for a plain 0.
"""

from collections import namedtuple

import numpy as np

from roialign_cli.ops.cpu.intrinsics import (
    LANES,
    LINE,
    address,
    fence,
    narrow_float,
    pointer,
    stream_line,
    transpose,
    widen_float,
)
from roialign_cli.ops.cpu.jit import inlined, inner, inner_rounded, jit

AVG, MAX, EXACT = 0, 1, 2
NONE, MEAN, LARGEST = 0, 1, 2
BLOCK = 256  # channels at a time: the runs are long enough, and the tile of a 14x14 output fits the second-level cache

# --- one axis: samples, or the integral, as weights of map cells ------------------------------------------------------


@inner_rounded
def _cut_axis(low, high, scale, aligned, bins, ratio):
    """Return where a RoI begins along an axis, its extent, that of a bin, in map cells, and the samples per bin."""
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset
    extent = high * scale - offset - start
    if not aligned:
        extent = max(extent, 1.0)
    return start, extent, extent / bins, float(ratio) if ratio > 0 else np.ceil(extent / bins)


@inner_rounded
def _sample_axis(start, bin_size, grid, bins, size, ptr, at):
    """Write the clamped coordinates at[ptr[p]:ptr[p+1]] of the samples of bin p that lie in [-1, size], ascending.

    `grid`, the number of samples per bin, is a float because adaptive grids of huge boxes exceed any integer type.
    """
    count = 0
    for p in range(bins):
        ptr[p] = count
        begin = start + p * bin_size
        step = bin_size / grid if grid > 0.0 else 0.0
        i, stop = 0.0, grid
        if step > 0.0:  # skip samples outside of the map without visiting them: a huge box has too many
            i = max(i, np.floor((-1.0 - begin) / step) - 1.0)
            stop = min(stop, np.ceil((size - begin) / step) + 1.0)
        for _ in range(int(max(stop - i, 0.0))):
            sample = begin + (i + 0.5) * step
            i += 1.0
            if -1.0 <= sample <= size and count < at.size:
                at[count] = min(max(sample, 0.0), size - 1.0)
                count += 1
    ptr[bins] = count


@inner
def _add(count, first, index, weight, at, last, share):
    """Add `share` of the clamped coordinate `at` to its two cells; samples ascend, so only the last two entries can match."""
    low = int(at)
    fraction = at - low
    for side in range(2):
        cell = min(low + side, last)
        part = share * (fraction if side else 1.0 - fraction)
        if part == 0.0:
            continue
        if count > first and index[count - 1] == cell:
            weight[count - 1] += part
        elif count > first + 1 and index[count - 2] == cell:
            weight[count - 2] += part
        elif count < index.size:
            index[count] = cell
            weight[count] = part
            count += 1
    return count


@inner
def _average_axis(grid, bins, size, sample_ptr, at, ptr, index, weight):
    """Write the weights of the mean over samples: bin p reads cells index[ptr[p]:ptr[p+1]]; shared cells are merged."""
    count = np.int64(0)
    for p in range(bins):
        ptr[p] = count
        for s in range(sample_ptr[p], sample_ptr[p + 1]):
            count = _add(count, ptr[p], index, weight, at[s], size - 1, 1.0 / grid)
    ptr[bins] = count


@inner_rounded
def _exact_axis(start, bin_size, bins, size, ptr, index, weight):
    """Write the weights of the integral mean over each bin, the limit of infinitely many samples.

    Between neighbouring cells the interpolated surface is linear, so a piece contributes its length times the value at its
    middle. An empty bin counts as one sample.
    """
    count = np.int64(0)
    for p in range(bins):
        ptr[p] = count
        begin, end = start + p * bin_size, start + (p + 1) * bin_size
        low, high = max(begin, -1.0), min(end, float(size))
        if end > begin and low < high:
            for cell in range(int(np.floor(low)), int(np.ceil(high))):
                a, b = max(low, float(cell)), min(high, cell + 1.0)
                middle = min(max(0.5 * (a + b), 0.0), size - 1.0)
                count = _add(count, ptr[p], index, weight, middle, size - 1, (b - a) / (end - begin))
        elif end <= begin and -1.0 <= begin <= size:
            count = _add(count, ptr[p], index, weight, min(max(begin, 0.0), size - 1.0), size - 1, 1.0)
    ptr[bins] = count


@inner
def _list_axis(start, bin_size, grid, bins, size, mode, sample_ptr, at, ptr, cell, weight):
    """Write the weights of an axis in mode avg or exact; `sample_ptr` and `at` are scratch memory for its samples."""
    if mode == EXACT:
        _exact_axis(start, bin_size, bins, size, ptr, cell, weight)
    else:
        _sample_axis(start, bin_size, grid, bins, size, sample_ptr, at)
        _average_axis(grid, bins, size, sample_ptr, at, ptr, cell, weight)


@inner
def _rows_to_offsets(count, weight64, index, stride, weight, offset):
    """Convert weights to the type of the sums, and cell numbers to byte offsets."""
    for e in range(count):
        weight[e] = weight64[e]
        offset[e] = index[e] * stride


@inner
def _index_unique_columns(count, weight64, index, weight, column, columns):
    """Write the distinct cells of the column weights to `columns`, and the index of each weight's cell to `column`."""
    distinct = 0
    for e in range(count):
        weight[e] = weight64[e]
        place = distinct - 1
        while place >= 0 and columns[place] > index[e]:
            place -= 1
        if place < 0 or columns[place] != index[e]:
            place = distinct  # bins ascend: a new cell lies beyond all known ones
            columns[place] = index[e]
            distinct += 1
        column[e] = place
    return distinct


# --- the loops over channels ------------------------------------------------------------------------------------------


@inner
def _combine(out, source, stored, offset, weight, first, stop, n):
    """out[c] = sum over e of weight[e] * source[offset[e] bytes][c] for c < n; four terms per pass save loads of out."""
    o = pointer(out, weight)
    if first == stop:
        for c in range(n):
            o[c] = 0.0
    e = first
    while e < stop:
        left = min(stop - e, 4)
        w0 = w1 = w2 = w3 = weight[e]
        s0 = s1 = s2 = s3 = pointer(source + offset[e], stored)
        if left > 1:
            w1, s1 = weight[e + 1], pointer(source + offset[e + 1], stored)
        if left > 2:
            w2, s2 = weight[e + 2], pointer(source + offset[e + 2], stored)
        if left > 3:
            w3, s3 = weight[e + 3], pointer(source + offset[e + 3], stored)
        if e > first:  # continuing the sum needs one more term, of weight one
            left = 4 if left == 4 else min(left, 2)
        if left == 4 and e > first:
            for c in range(n):
                o[c] += (w0 * widen_float(s0[c], weight) + w1 * widen_float(s1[c], weight)) + (
                    w2 * widen_float(s2[c], weight) + w3 * widen_float(s3[c], weight)
                )
        elif left == 4:
            for c in range(n):
                o[c] = (w0 * widen_float(s0[c], weight) + w1 * widen_float(s1[c], weight)) + (
                    w2 * widen_float(s2[c], weight) + w3 * widen_float(s3[c], weight)
                )
        elif left == 3:
            for c in range(n):
                o[c] = (
                    w0 * widen_float(s0[c], weight) + w1 * widen_float(s1[c], weight) + w2 * widen_float(s2[c], weight)
                )
        elif left == 2 and e > first:
            for c in range(n):
                o[c] += w0 * widen_float(s0[c], weight) + w1 * widen_float(s1[c], weight)
        elif left == 2:
            for c in range(n):
                o[c] = w0 * widen_float(s0[c], weight) + w1 * widen_float(s1[c], weight)
        elif e > first:
            for c in range(n):
                o[c] += w0 * widen_float(s0[c], weight)
        else:
            for c in range(n):
                o[c] = w0 * widen_float(s0[c], weight)
        e += left


@inner
def _max_into(out, value, unit, n):
    """out[c] = max(out[c], value[c]); NaN wins."""
    o, v = pointer(out, unit), pointer(value, unit)
    for c in range(n):
        o[c] = v[c] if (v[c] > o[c]) | (v[c] != v[c]) else o[c]


@inner
def _reduce(tile, bins, n, reduce, unit):
    """Replace the first row of a tile [bins, n] by the mean or the maximum over its rows."""
    o = pointer(tile, unit)
    for s in range(1, bins):
        row = tile + s * n * unit.itemsize
        if reduce == LARGEST:
            _max_into(tile, row, unit, n)
        else:
            v = pointer(row, unit)
            for c in range(n):
                o[c] += v[c]
    if reduce == MEAN:
        for c in range(n):
            o[c] /= bins


@inner
def _store(out, tile, bins, n, narrow, staging, written, unit):
    """Write a tile [bins, n] of sums as elements [n, bins] of the output; overlapping squares cover the remainders."""
    width = written.itemsize
    source = tile
    if narrow.size:
        source = address(narrow)
        t, q = pointer(tile, unit), pointer(source, written)
        for i in range(bins * n):
            q[i] = narrow_float(t[i], written)
    if bins >= LANES and n >= LANES:
        for c_start in range(0, n, LANES):
            c = min(c_start, n - LANES)
            place = out + c * bins * width
            target = address(staging) if staging.size else place
            for s_start in range(0, bins, LANES):
                s = min(s_start, bins - LANES)
                square = source + (s * n + c) * width
                transpose(pointer(square, written), n, pointer(target + s * width, written), bins)
            if staging.size:
                _stream(place, target, LANES * bins, written)
    else:
        q, o = pointer(source, written), pointer(out, written)
        for c in range(n):
            for s in range(bins):
                o[c * bins + s] = q[s * n + c]


@inner
def _stream(target, source, count, written):
    """Copy elements past the caches: stream whole lines, store the ends before and after them."""
    width = written.itemsize
    head = min((-target % LINE) // width, count)
    o, q = pointer(target, written), pointer(source, written)
    for i in range(head):
        o[i] = q[i]
    lines = (count - head) * width // LINE
    for line in range(lines):
        at = head * width + line * LINE
        stream_line(target + at, source + at)
    for i in range(head + lines * LINE // width, count):
        o[i] = q[i]


# --- one RoI: axes, channels, output ----------------------------------------------------------------------------------

# Plain tuples of arrays and numbers, which Numba passes by value.
Geometry = namedtuple("Geometry", ["ph", "pw", "ratio", "aligned", "mode", "reduce"])
ElementTypes = namedtuple("ElementTypes", ["stored", "written", "unit"])
# The lists of one axis. Bin p has the samples at[sample_ptr[p]:sample_ptr[p + 1]], clamped coordinates in map cells, and the
# weights weight[ptr[p]:ptr[p + 1]]. `cell` says what a weight applies to: along y the byte offset of a map row, along x the
# index of a map column in Workspace.columns.
Axis = namedtuple("Axis", ["sample_ptr", "at", "ptr", "cell", "weight"])
# Scratch memory of a thread. row [columns, n] holds one row of bins before it is combined along x, tile [bins, n] the bins;
# narrow is the tile in the type of the output, staging what is streamed past the caches. Unused ones are empty.
Workspace = namedtuple(
    "Workspace", ["y", "x", "columns", "x_offset", "index", "weight64", "row", "tile", "narrow", "staging"]
)


@inner
def _largest_side(maps):
    """Return the largest height or width of the maps."""
    side = np.int64(0)
    for level in range(len(maps)):
        side = max(side, maps[level, 1], maps[level, 2])
    return side


@inlined
def _make_axis(bins, samples, cells, unit):
    """Allocate the lists of one axis."""
    sample_ptr, ptr = np.empty(bins + 1, np.int64), np.empty(bins + 1, np.int64)
    return Axis(sample_ptr, np.empty(samples), ptr, np.empty(cells, np.int64), np.empty(cells, unit.dtype))


@inlined
def _make_workspace(maps, geometry, channels, stream, elements):
    """Allocate scratch memory for RoIs on any of the maps, `channels` at a time."""
    bins, side = geometry.ph * geometry.pw, _largest_side(maps)
    most_bins = max(geometry.ph, geometry.pw)
    samples = 2 * side + (max(geometry.ratio, 1) + 3) * most_bins + 8
    cells = side + 3 * most_bins + 4
    narrows = elements.written.itemsize != elements.unit.itemsize
    return Workspace(
        _make_axis(geometry.ph, samples, cells, elements.unit),
        _make_axis(geometry.pw, samples, cells, elements.unit),
        np.empty(cells, np.int64),
        np.empty(cells, np.int64),
        np.empty(cells, np.int64),
        np.empty(cells),
        np.empty(cells * channels, elements.unit.dtype),
        np.empty(bins * channels, elements.unit.dtype),
        np.empty(bins * channels if narrows else 0, elements.written.dtype),
        np.empty(LANES * bins if stream else 0, elements.written.dtype),
    )


@inlined
def _prepare_axes(work, roi, scale, level, geometry):
    """Fill the lists of both axes for one RoI; return its grid (y, x) and the number of distinct map columns it reads."""
    # Locals, since every access to an array in a tuple counts a reference, atomically.
    y_samples, y_at, y_ptr, y_cell, y_weight = work.y.sample_ptr, work.y.at, work.y.ptr, work.y.cell, work.y.weight
    x_samples, x_at, x_ptr, x_cell, x_weight = work.x.sample_ptr, work.x.at, work.x.ptr, work.x.cell, work.x.weight
    index, weight64 = work.index, work.weight64
    ph, pw, mode = geometry.ph, geometry.pw, geometry.mode
    height, width = level[1], level[2]
    left, _, bin_w, grid_x = _cut_axis(roi[1], roi[3], scale, geometry.aligned, pw, geometry.ratio)
    top, _, bin_h, grid_y = _cut_axis(roi[2], roi[4], scale, geometry.aligned, ph, geometry.ratio)
    if mode == MAX:
        _sample_axis(top, bin_h, grid_y, ph, height, y_samples, y_at)
        _sample_axis(left, bin_w, grid_x, pw, width, x_samples, x_at)
        return grid_y, grid_x, 0
    _list_axis(top, bin_h, grid_y, ph, height, mode, y_samples, y_at, y_ptr, index, weight64)
    _rows_to_offsets(y_ptr[ph], weight64, index, level[4], y_weight, y_cell)
    _list_axis(left, bin_w, grid_x, pw, width, mode, x_samples, x_at, x_ptr, index, weight64)
    columns = _index_unique_columns(x_ptr[pw], weight64, index, x_weight, x_cell, work.columns)
    if geometry.reduce == MEAN:
        # The mean over bins of a product of weights is the product of their means: one bin, whose list is all lists.
        y_ptr[1], x_ptr[1] = y_ptr[ph], x_ptr[pw]
        for e in range(y_ptr[1]):
            y_weight[e] /= ph * pw
    return grid_y, grid_x, columns


@inlined
def _pool_average(work, source, stride_x, rows, cols, columns, n, elements):
    """tile[p, q] = sum over y and x of wy[p, y] * wx[q, x] * map[y, x], for n channels of a map at `source`."""
    stored, unit = elements.stored, elements.unit
    y_ptr, y_offset, y_weight = work.y.ptr, work.y.cell, work.y.weight
    x_ptr, x_index, x_weight, x_offset = work.x.ptr, work.x.cell, work.x.weight, work.x_offset
    map_columns = work.columns
    row_at, tile_at, width = address(work.row), address(work.tile), unit.itemsize
    for e in range(x_ptr[cols]):
        x_offset[e] = x_index[e] * n * width
    beside = stride_x == n * stored.itemsize  # cells side by side are one run
    for p in range(rows):
        j = 0
        while j < columns:
            end = j + 1
            while beside and end < columns and map_columns[end] == map_columns[end - 1] + 1:
                end += 1
            cell, run = source + map_columns[j] * stride_x, (end - j) * n
            _combine(row_at + j * n * width, cell, stored, y_offset, y_weight, y_ptr[p], y_ptr[p + 1], run)
            j = end
        for q in range(cols):
            target = tile_at + (p * cols + q) * n * width
            _combine(target, row_at, unit, x_offset, x_weight, x_ptr[q], x_ptr[q + 1], n)


@inlined
def _pool_max(work, source, level, grid_y, grid_x, n, elements):
    """tile[p, q] = maximum over the interpolated samples of bin (p, q); samples outside of the map are zeros."""
    value, tile, stored, unit = address(work.row), address(work.tile), elements.stored, elements.unit
    offset, weight = np.empty(4, np.int64), np.empty(4, unit.dtype)
    height, width, sy, sx = level[1], level[2], level[4], level[5]
    y_ptr, y_at, x_ptr, x_at = work.y.sample_ptr, work.y.at, work.x.sample_ptr, work.x.at
    pw = x_ptr.size - 1
    for p in range(y_ptr.size - 1):
        for q in range(pw):
            target = tile + (p * pw + q) * n * unit.itemsize
            inside = (y_ptr[p + 1] - y_ptr[p]) * (x_ptr[q + 1] - x_ptr[q])
            o = pointer(target, unit)
            for c in range(n):
                o[c] = -np.inf if inside > 0 and inside == grid_y * grid_x else 0.0
            for i in range(y_ptr[p], y_ptr[p + 1]):
                y = int(y_at[i])
                fy = y_at[i] - y
                for j in range(x_ptr[q], x_ptr[q + 1]):
                    x = int(x_at[j])
                    fx = x_at[j] - x
                    for corner in range(4):
                        down, right = corner >> 1, corner & 1
                        offset[corner] = min(y + down, height - 1) * sy + min(x + right, width - 1) * sx
                        weight[corner] = (fy if down else 1.0 - fy) * (fx if right else 1.0 - fx)
                    _combine(value, source, stored, offset, weight, np.int64(0), np.int64(4), n)
                    _max_into(target, value, unit, n)


@jit
def pool(out, channels, first, stop, order, table, maps, shape, stream, types_of):
    """Pool the RoIs `order` over channels first..stop of their maps into out [K, channels, ph, pw] (its address).

    With `reduce`, out is [K, channels]. Channel 0 of the maps is output channel `first`. `stream` writes past the caches,
    which is right for an output too large to be in them when it is read. `table` is (rois [K, 5] float64, levels [K] int64,
    scales [levels] float64), `shape` the fields of Geometry and `types_of` those of ElementTypes: Numba takes plain tuples
    from Python much faster than named ones.
    """
    rois, levels, scales = table
    geometry = Geometry(shape[0], shape[1], shape[2], shape[3], shape[4], shape[5])
    elements = ElementTypes(types_of[0], types_of[1], types_of[2])
    work = _make_workspace(maps, geometry, min(BLOCK, stop - first), stream, elements)
    stored, written, unit, narrow, staging = elements.stored, elements.written, elements.unit, work.narrow, work.staging
    mode, reduce, rows, cols = geometry.mode, geometry.reduce, geometry.ph, geometry.pw
    if reduce == MEAN and mode != MAX:
        rows, cols = 1, 1
    bins = geometry.ph * geometry.pw if reduce == NONE else 1
    tile = address(work.tile)
    for k in order:
        level = maps[levels[k]]
        source = level[0] + int(rois[k, 0]) * level[3]
        grid_y, grid_x, columns = _prepare_axes(work, rois[k], scales[levels[k]], level, geometry)
        for c in range(first, stop, BLOCK):
            n = min(BLOCK, stop - c)
            block = source + (c - first) * stored.itemsize
            if mode == MAX:
                _pool_max(work, block, level, grid_y, grid_x, n, elements)
            else:
                _pool_average(work, block, level[5], rows, cols, columns, n, elements)
            if reduce != NONE:
                _reduce(tile, rows * cols, n, reduce, unit)
            place = out + (k * channels + c) * bins * written.itemsize
            _store(place, tile, bins, n, narrow, staging, written, unit)
    fence()
    return work.row.size + work.tile.size  # the last use: Numba frees an array after it, and addresses do not count


# --- lists of weights, for what is not pooled here ------------------------------------------------------------------------

# What weights are derived by: the low or high edge of the RoI along an axis, or a shift of the bin along it. The values of an
# axis follow each other.
NOTHING, LOW_X, HIGH_X, SHIFT_X, LOW_Y, HIGH_Y, SHIFT_Y = range(7)


@inner
def _rates(towards, low, p, bins, fixed):
    """Return whether to derive along an axis, whose first value of `towards` is `low`, and how fast the ends of bin p move."""
    kind = towards - low
    if towards == NOTHING or not 0 <= kind <= 2:
        return False, 0.0, 0.0
    if kind == 2 or fixed:
        rate = 0.0 if kind == 1 else 1.0
        return True, rate, rate
    if kind == 1:
        return True, p / bins, (p + 1) / bins
    return True, 1.0 - p / bins, 1.0 - (p + 1) / bins


@inner_rounded
def _list_bin(start, bin_size, grid, size, mode, rates, scratch, cell, weight):
    """Write the cells and weights of one bin along one axis, or their derivatives; return how many there are."""
    derive, rate_start, rate_end = rates
    sample_ptr, at, ptr = scratch
    if derive and (mode != EXACT or bin_size <= 0.0):
        return _slope_of_samples(
            start, bin_size, grid if mode != EXACT else 1.0, size, rate_start, rate_end, cell, weight
        )
    _list_axis(start, bin_size, grid, 1, size, mode, sample_ptr, at, ptr, cell, weight)
    count = ptr[1]
    if derive:
        # With M the mean of f over [a, b]: dM/da = (M - f(a)) / (b - a) and dM/db = (f(b) - M) / (b - a).
        for e in range(count):
            weight[e] *= (rate_start - rate_end) / bin_size
        count = _add_point(count, start, size, -rate_start / bin_size, cell, weight)
        count = _add_point(count, start + bin_size, size, rate_end / bin_size, cell, weight)
    return count


@inner_rounded
def _slope_of_samples(start, bin_size, grid, size, rate_start, rate_end, cell, weight):
    """Write the derivative of the mean over the samples of a bin.

    It is that to the right where the interpolated surface has a kink, and 0 for samples that are clamped or outside.
    """
    count = np.int64(0)
    step = bin_size / grid if grid > 0.0 else 0.0
    i, stop = 0.0, grid
    if step > 0.0:  # as in _sample_axis
        i = max(i, np.floor((-1.0 - start) / step) - 1.0)
        stop = min(stop, np.ceil((size - start) / step) + 1.0)
    for _ in range(int(max(stop - i, 0.0))):
        place = (i + 0.5) / grid
        sample = start + (i + 0.5) * step
        i += 1.0
        if 0.0 <= sample < size - 1.0:
            share = (rate_start + (rate_end - rate_start) * place) / grid
            count = _put(count, int(sample), -share, cell, weight)
            count = _put(count, int(sample) + 1, share, cell, weight)
    return count


@inner
def _add_point(count, at, size, share, cell, weight):
    """Add a share of the surface at a coordinate to a list."""
    if not -1.0 <= at <= size:
        return count
    inside = min(max(at, 0.0), size - 1.0)
    low = int(inside)
    if inside > low:
        count = _put(count, low + 1, share * (inside - low), cell, weight)
    return _put(count, low, share * (low + 1 - inside), cell, weight)


@inner
def _put(count, index, part, cell, weight):
    """Add a weight to the entry of a cell in an ascending list, or append it."""
    e = count - 1
    while e >= 0 and cell[e] > index:
        e -= 1
    if e >= 0 and cell[e] == index:
        weight[e] += part
        return count
    cell[count] = index
    weight[count] = part
    return count + 1


@jit
def axis_lists(rows, table, maps, shape, y_lists, x_lists):
    """Write the weights of both axes of RoIs: for the i-th one, bin p reads cell[i, ptr[i, p]:ptr[i, p + 1]].

    Lists are (ptr [R, bins + 1], cell [R, E], weight [R, E]); E is at least the side of the largest map + 3 * bins + 4.
    """
    rois, levels, scales = table
    ph, pw, ratio, aligned, mode = shape
    side, most_bins = _largest_side(maps), max(ph, pw)
    sample_ptr, at = np.empty(most_bins + 1, np.int64), np.empty(2 * side + (max(ratio, 1) + 3) * most_bins + 8)
    for i in range(len(rows)):
        k = rows[i]
        level, scale = maps[levels[k]], scales[levels[k]]
        for axis in range(2):
            ptr, cell, weight = y_lists if axis else x_lists
            bins, size = (ph, level[1]) if axis else (pw, level[2])
            start, _, bin_size, grid = _cut_axis(rois[k, 1 + axis], rois[k, 3 + axis], scale, aligned, bins, ratio)
            _list_axis(start, bin_size, grid, bins, size, mode, sample_ptr, at, ptr[i], cell[i], weight[i])


@jit
def product_lists(rows, table, maps, shape, moved, towards, ptr, cells, weight):
    """Fill the lists of bins that are upright rectangles of their own, as rotated_weights.py does for other regions.

    `moved` is (offsets [K, 2, ph, pw], modulation [K, ph, pw], gamma): bin (p, q) is moved by gamma * offset * (width, height)
    of its RoI and its weights are multiplied by its modulation. Either is empty, [0, ...], if there is none. `towards` is
    NOTHING, or what the weights are derived by, in map cells.
    """
    rois, levels, scales = table
    ph, pw, ratio, aligned, mode = shape
    offsets, modulation, gamma = moved
    bins, count = ph * pw, 0
    side = _largest_side(maps)
    samples, entries = 2 * side + max(ratio, 1) + 11, side + 7
    scratch = np.empty(2, np.int64), np.empty(samples), np.empty(2, np.int64)
    y_cell, x_cell = np.empty(entries, np.int64), np.empty(entries, np.int64)
    y_weight, x_weight = np.empty(entries), np.empty(entries)
    ptr[0] = 0
    for i in range(len(rows)):
        k = rows[i]
        if (i + 1) * bins >= ptr.size:
            return i
        level = maps[levels[k]]
        height, width, scale = level[1], level[2], scales[levels[k]]
        x, roi_w, bin_w, grid_x = _cut_axis(rois[k, 1], rois[k, 3], scale, aligned, pw, ratio)
        y, roi_h, bin_h, grid_y = _cut_axis(rois[k, 2], rois[k, 4], scale, aligned, ph, ratio)
        fixed_x = not aligned and (rois[k, 3] - rois[k, 1]) * scale < 1.0  # one cell, wherever the far edge is
        fixed_y = not aligned and (rois[k, 4] - rois[k, 2]) * scale < 1.0
        y_count = 0
        for p in range(ph):
            for q in range(pw):
                if q == 0 or offsets.size > 0:
                    start = y + p * bin_h + (gamma * offsets[k, 1, p, q] * roi_h if offsets.size > 0 else 0.0)
                    rates = _rates(towards, LOW_Y, p, ph, fixed_y)
                    y_count = _list_bin(start, bin_h, grid_y, height, mode, rates, scratch, y_cell, y_weight)
                start = x + q * bin_w + (gamma * offsets[k, 0, p, q] * roi_w if offsets.size > 0 else 0.0)
                rates = _rates(towards, LOW_X, q, pw, fixed_x)
                x_count = _list_bin(start, bin_w, grid_x, width, mode, rates, scratch, x_cell, x_weight)
                if count + y_count * x_count > cells.size:
                    return i
                factor = modulation[k, p, q] if modulation.size > 0 else 1.0
                for e in range(y_count):
                    for f in range(x_count):
                        cells[count] = y_cell[e] * level[4] + x_cell[f] * level[5]
                        weight[count] = factor * y_weight[e] * x_weight[f]
                        count += 1
                ptr[i * bins + p * pw + q + 1] = count
    return len(rows)


@jit
def pool_lists(out, channels, rows, lists, where, maps, bins, maximum, stream, types_of):
    """Pool the RoIs `rows` by the lists of their bins into out [K, channels, bins] (its address).

    lists: (ptr, offset, weight) of these RoIs as rotated_weights.py fills them; with `maximum` each four entries are one
    sample, and outside [rows * bins] says which bins have samples outside of the map, which are zeros. where: (maps [K], the
    first that a RoI reads on its level, levels [K], whether each bin reads the map after that of the bin before).
    """
    ptr, offset, weight64, outside = lists
    first_map, levels, one_each = where
    elements = ElementTypes(types_of[0], types_of[1], types_of[2])
    stored, written, unit = elements.stored, elements.written, elements.unit
    size, block = unit.itemsize, min(BLOCK, channels)
    weight = np.empty(ptr[len(rows) * bins], unit.dtype)
    for e in range(weight.size):
        weight[e] = weight64[e]
    tile_of = np.empty(bins * block, unit.dtype)
    value_of = np.empty(block, unit.dtype)
    narrow = np.empty(bins * block if written.itemsize != size else 0, written.dtype)
    staging = np.empty(LANES * bins if stream else 0, written.dtype)
    tile, value = address(tile_of), address(value_of)
    for i in range(len(rows)):
        k = rows[i]
        level = maps[levels[k]]
        source, bin_stride = level[0] + first_map[k] * level[3], level[3] if one_each else 0
        for c in range(0, channels, BLOCK):
            n = min(BLOCK, channels - c)
            for b in range(bins):
                target, first, stop = tile + b * n * size, ptr[i * bins + b], ptr[i * bins + b + 1]
                origin = source + b * bin_stride + c * stored.itemsize
                if not maximum:
                    _combine(target, origin, stored, offset, weight, first, stop, n)
                    continue
                o = pointer(target, unit)
                for d in range(n):
                    o[d] = 0.0 if outside[i * bins + b] or first == stop else -np.inf
                for e in range(first, stop, 4):
                    _combine(value, origin, stored, offset, weight, e, e + 4, n)
                    _max_into(target, value, unit, n)
            _store(out + (k * channels + c) * bins * written.itemsize, tile, bins, n, narrow, staging, written, unit)
    fence()
    return tile_of.size + value_of.size  # the last use, see `pool`


@jit
def pack(target, source, stride_c, stride_y, stride_x, top, bottom, left, width, n, stored):
    """Copy rows top..bottom of a map of any strides (bytes) to [rows, width, n] stored elements, channels last."""
    size = stored.itemsize
    for y in range(top, bottom):
        for c_start in range(0, n, LANES):
            c = min(c_start, max(n - LANES, 0))
            line = source + c * stride_c + y * stride_y + left * stride_x
            out = target + ((y - top) * width * n + c) * size
            if n >= LANES and width >= LANES and stride_x == size:
                for x_start in range(0, width, LANES):
                    x = min(x_start, width - LANES)
                    tile = pointer(line + x * size, stored)
                    transpose(tile, stride_c // size, pointer(out + x * n * size, stored), n)
            else:
                for x in range(width):
                    o = pointer(out + x * n * size, stored)
                    for d in range(min(LANES, n)):
                        o[d] = pointer(line + d * stride_c + x * stride_x, stored)[0]


def cache_folder() -> str:
    """Return the folder in which Numba keeps the machine code, or say that it keeps none."""
    return str(pool.stats.cache_path or "memory only, no cache folder is writable")
