// RoI Align for CUDA: one launch pools any number of RoIs from all levels of a pyramid.
//
// It is compiled at run time for the device at hand, once per element type, mode and width of a load:
//
//     -DELEMENT=float|double|float16|bfloat16  -DWRITTEN=<the same choices, for the output>  -DMODE=AVG|MAX|EXACT  -DVECTOR=<channels per load, a power of two>
//     -DLONG_LISTS=0|1  whether lists of weights may exceed the shared memory reserved for them
//
// Maps may have any strides; the kernel is made for channels-last, which VECTOR > 1 requires. A block owns one RoI, a
// chunk of `lanes * VECTOR` channels and `rows` x `columns` of its bins. It first writes the weights of both axes to
// shared memory: the mean over samples and the integral are separable, so one short list of (cell, weight) per axis and
// bin describes them. Then each group of `lanes` threads processes strips of bins: a thread sums its own channels down
// each column of cells and keeps the last even and the last odd column in registers (neighbouring bins share at most two,
// of neighbouring cells), so that it loads a cell once per row of bins. The results pass through a tile in shared memory,
// because [K, C, PH, PW] needs runs of bins where threads hold runs of channels.
//
// There are no atomics, and every sum has one order, so the same call gives the same bits. The tests also compile this
// file with a C++ compiler; everything that only a device understands is in one section below.

// All fields are eight bytes wide; launch.py defines the same two records. Strides are in bytes.
struct Level {
    const char *address;
    i64 height, width, stride_n, stride_c, stride_y, stride_x;
    double scale;
};

struct Call {
    Level level[MAX_LEVELS];
    const void *rois;       // [K, 5] float or double: image, x1, y1, x2, y2
    const i64 *levels;      // [K], or null if all are on level 0
    void *out;              // [K, C, PH, PW]
    i64 rois_are_double, level_count, images, channels, ph, pw, ratio, aligned;
    i64 reduce;                                // a Reduce; if not NONE, a block holds all bins and out is [K, C]
    i64 lanes, rows, columns, strip;           // the shape of a block's work, chosen by the host
    // Shared memory for the lists of weights, in entries; a bin's list begins at the sum of what those before it can take
    i64 y_capacity, y_per_cell, y_per_bin, x_capacity, x_per_cell, x_per_bin;
};

// --- one axis of one RoI, in map cells ----------------------------------------------------------------------------------
//
// In double precision like the reference: in float the coordinates of a 300-cell map alone cost an error of 1e-5. A block
// computes only a few dozen of them.

struct Axis {
    double start, bin, grid;  // bins of length `bin` from `start`, `grid` samples in each
    i64 size, stride;         // cells of the map; vectors from one to the next
};

// The position of a list: `count` entries from `first`.
struct List {
    int first, count;
};

struct alignas(2 * sizeof(Sum)) Entry {
    int offset;  // of the cell, in vectors (the host checks that they fit); along x, twice that plus the cell's parity
    Sum weight;  // of the cell; in mode MAX the distance from this cell to the next, 0 to 1
};

__device__ inline Axis make_axis(double low, double high, double scale, i64 bins, i64 ratio, bool aligned) {
    Axis axis;
    // Rounded twice, as in the reference: a fused multiply-add would find a whole number of cells per bin to be a little
    // more, and the adaptive grid would have one sample more. Scales such as 1/14 are no powers of two.
    const double offset = aligned ? 0.5 : 0.0;
    axis.start = __dadd_rn(__dmul_rn(low, scale), -offset);
    double extent = __dadd_rn(__dadd_rn(__dmul_rn(high, scale), -offset), -axis.start);
    if (!aligned) extent = fmax(extent, 1.0);
    axis.bin = extent / bins;
    axis.grid = ratio > 0 ? (double)ratio : ceil(axis.bin);
    return axis;
}

__device__ inline double clamp(double at, i64 size) { return fmin(fmax(at, 0.0), size - 1.0); }

// The cell in which bin p begins, from -1 to the map's size.
__device__ inline i64 cell_of(const Axis &axis, int p) {
    return (i64)floor(fmin(fmax(axis.start + p * axis.bin, -1.0), (double)axis.size));
}

// Calls take(coordinate) for each sample of bin p in [-1, size], clamped, in ascending order.
template <class Take>
__device__ inline void visit_samples(const Axis &axis, int p, Take take) {
    const double begin = axis.start + p * axis.bin;
    const double step = axis.grid > 0.0 ? axis.bin / axis.grid : 0.0;
    double i = 0.0, stop = axis.grid;
    if (step > 0.0) {  // skip samples outside of the map without visiting them: a huge box has too many
        i = fmax(i, floor((-1.0 - begin) / step) - 1.0);
        stop = fmin(stop, ceil((axis.size - begin) / step) + 1.0);
    }
    for (i64 left = stop > i ? (i64)(stop - i) : 0; left > 0; --left, i += 1.0) {
        const double at = begin + (i + 0.5) * axis.bin / axis.grid;
        if (at >= -1.0 && at <= axis.size) take(clamp(at, axis.size));
    }
}

// Calls take(middle, share) for each piece of bin p between neighbouring cells, where the interpolated surface is linear
// and its integral is length times middle value. An empty bin counts as one sample.
template <class Take>
__device__ inline void visit_pieces(const Axis &axis, int p, Take take) {
    const double begin = axis.start + p * axis.bin, end = axis.start + (p + 1) * axis.bin;
    const double low = fmax(begin, -1.0), high = fmin(end, (double)axis.size);
    if (end <= begin) {
        if (begin >= -1.0 && begin <= axis.size) take(clamp(begin, axis.size), 1.0);
    } else if (low < high) {
        for (double cell = floor(low); cell < high; cell += 1.0) {
            const double a = fmax(low, cell), b = fmin(high, cell + 1.0);
            take(clamp(0.5 * (a + b), axis.size), (b - a) / (end - begin));
        }
    }
}

// Calls take(cell, weight) for each cell that bin p reads, in ascending order; samples and pieces that share a cell are merged.
template <class Take>
__device__ inline void visit_weights(const Axis &axis, int p, Take take) {
    i64 cell = -2;
    double here = 0.0, next = 0.0;  // incomplete weights of `cell` and of the next cell
    auto add = [&](double at, double share) {
        const i64 floor_at = (i64)at;
        if (floor_at != cell) {
            if (here != 0.0) take(cell, (Sum)here);
            if (floor_at != cell + 1 && next != 0.0) take(cell + 1, (Sum)next);
            here = floor_at == cell + 1 ? next : 0.0;
            next = 0.0;
            cell = floor_at;
        }
        here += share * (1.0 - (at - floor_at));
        next += share * (at - floor_at);
    };
    if constexpr (MODE == EXACT) {
        visit_pieces(axis, p, add);
    } else {
        const double share = 1.0 / axis.grid;
        visit_samples(axis, p, [&](double at) { add(at, share); });
    }
    if (here != 0.0) take(cell, (Sum)here);
    if (next != 0.0) take(cell + 1, (Sum)next);
}

// Calls take(cell, weight) as the mode requires: merged weights, or in mode MAX each sample's cell and distance to the next.
template <class Take>
__device__ inline void visit(const Axis &axis, int p, Take take) {
    if constexpr (MODE == MAX) {
        visit_samples(axis, p, [&](double at) { take((i64)at, (Sum)(at - (i64)at)); });
    } else {
        visit_weights(axis, p, take);
    }
}

// --- the loops over cells -----------------------------------------------------------------------------------------------

// The weighted sum down one column of cells, which is kept for the next bin; `offset` says which column it is.
struct Column {
    int offset;
    Sum sum[VECTOR];
};

// Adds a column to a bin; sums down its cells, with four loads in flight, unless `column` is this one already.
__device__ inline void add_column(const Vector *origin, const Entry *y, int count, Entry x, Column &column,
                                  Sum (&result)[VECTOR]) {
    constexpr int DEPTH = 4;
    if (column.offset != x.offset) {
        column.offset = x.offset;
        for (int c = 0; c < VECTOR; ++c) column.sum[c] = 0;
        for (int first = 0; first < count; first += DEPTH) {
            Entry entry[DEPTH];
            Vector cell[DEPTH];
#pragma unroll
            for (int i = 0; i < DEPTH; ++i)
                if (first + i < count) {
                    entry[i] = y[first + i];
                    cell[i] = origin[(x.offset >> 1) + entry[i].offset];
                }
#pragma unroll
            for (int i = 0; i < DEPTH; ++i)
                if (first + i < count) add_weighted(column.sum, entry[i].weight, cell[i]);
        }
    }
    for (int c = 0; c < VECTOR; ++c) result[c] += x.weight * column.sum[c];
}

// Raises a bin to the sample between a cell and the next ones down and right, if it is larger.
__device__ inline void raise_to_sample(const Vector *cell, Sum down, Sum right, const Axis (&axis)[2],
                                       Sum (&result)[VECTOR]) {
    const i64 below = down > 0 ? axis[0].stride : 0, beside = right > 0 ? axis[1].stride : 0;  // the last cell has no next one
    const Vector corner[4] = {cell[0], cell[beside], cell[below], cell[below + beside]};
    const Sum weight[4] = {(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right};
    Sum sample[VECTOR] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) add_weighted(sample, weight[i], corner[i]);
    for (int c = 0; c < VECTOR; ++c)
        if (sample[c] > result[c] || sample[c] != sample[c]) result[c] = sample[c];  // NaN wins
}

// A bin whose lists exceed shared memory: its cells are found again one by one. Rare and slow.
__device__ inline void pool_without_lists(const Vector *origin, const Axis (&axis)[2], int p, int q,
                                          Sum (&result)[VECTOR]) {
    visit(axis[0], p, [&](i64 row, Sum y) {
        visit(axis[1], q, [&](i64 column, Sum x) {
            const Vector *const cell = origin + row * axis[0].stride + column * axis[1].stride;
            if constexpr (MODE == MAX) {
                raise_to_sample(cell, y, x, axis, result);
            } else {
                add_weighted(result, y * x, *cell);
            }
        });
    });
}

// --- one block ----------------------------------------------------------------------------------------------------------

#ifndef ENTRY
#define ENTRY roi_align
#endif

// Blocks per multiprocessor that the registers must suffice for: with more, some variants would spill.
#ifndef BLOCKS
#define BLOCKS (LONG_LISTS ? 1 : 2)
#endif

extern "C" __global__ void __launch_bounds__(256, BLOCKS) ENTRY(const __grid_constant__ Call call) {
    extern __shared__ double shared[];
    const int lanes = call.lanes, rows = call.rows, columns = call.columns;
    const int threads = blockDim.x, thread = threadIdx.x;

    // The RoI, its bins and channels of this block: RoIs vary fastest, so that one chunk of channels stays in the cache.
    const int column_blocks = ((int)call.pw + columns - 1) / columns;
    const int first_row = (int)blockIdx.z / column_blocks * rows, first_column = (int)blockIdx.z % column_blocks * columns;
    const int first_channel = blockIdx.y * lanes * VECTOR;
    const i64 k = blockIdx.x;
    const int my_rows = min((int)call.ph - first_row, rows), my_columns = min((int)call.pw - first_column, columns);
    const int my_channels = min((int)call.channels - first_channel, lanes * VECTOR);
    const int pitch = rows * columns | 1;

    Axis(&axis)[2] = *reinterpret_cast<Axis(*)[2]>(shared);  // y, x
    Entry *const y_entries = reinterpret_cast<Entry *>(&axis + 1), *const x_entries = y_entries + call.y_capacity;
    List *const y_lists = reinterpret_cast<List *>(x_entries + call.x_capacity), *const x_lists = y_lists + rows;
    Written *const tile = reinterpret_cast<Written *>(x_lists + columns);

    // An invalid row gives NaN, and nothing is read at an address that depends on it.
    double roi[5];
#pragma unroll
    for (int i = 0; i < 5; ++i)
        roi[i] = call.rois_are_double ? static_cast<const double *>(call.rois)[5 * k + i]
                                      : static_cast<const float *>(call.rois)[5 * k + i];
    const i64 level_index = call.levels ? call.levels[k] : 0;
    bool valid = level_index >= 0 && level_index < call.level_count && roi[0] >= 0 && roi[0] < call.images &&
                 roi[0] == floor(roi[0]) && roi[3] >= roi[1] && roi[4] >= roi[2];
#pragma unroll
    for (int i = 1; i < 5; ++i) valid = valid && roi[i] - roi[i] == 0;  // neither NaN nor infinite
    const Level &level = call.level[valid ? level_index : 0];

    if (valid) {
        if (thread == 0) {
            axis[0] = make_axis(roi[2], roi[4], level.scale, call.ph, call.ratio, call.aligned);
            axis[0].size = level.height, axis[0].stride = level.stride_y / (i64)sizeof(Vector);
            axis[1] = make_axis(roi[1], roi[3], level.scale, call.pw, call.ratio, call.aligned);
            axis[1].size = level.width, axis[1].stride = level.stride_x / (i64)sizeof(Vector);
        }
        __syncthreads();
        for (int i = thread; i < my_rows + my_columns; i += threads) {
            const bool is_x = i >= my_rows;
            const int local = is_x ? i - my_rows : i, first = is_x ? first_column : first_row;
            Entry *const entries = is_x ? x_entries : y_entries;
            const int capacity = is_x ? call.x_capacity : call.y_capacity;
            List list;
            list.first = (int)(cell_of(axis[is_x], first + local) - cell_of(axis[is_x], first)) *
                             (int)(is_x ? call.x_per_cell : call.y_per_cell) +
                         local * (int)(is_x ? call.x_per_bin : call.y_per_bin);
            list.count = 0;
            visit(axis[is_x], first + local, [&](i64 cell, Sum weight) {
                const int place = list.first + list.count++, offset = cell * axis[is_x].stride;
                if (place < capacity) entries[place] = {is_x ? 2 * offset + (int)(cell & 1) : offset, weight};
            });
            if (!LONG_LISTS) list.count = max(min(list.count, capacity - list.first), 0);  // holds by construction
            (is_x ? x_lists : y_lists)[local] = list;
        }
        __syncthreads();

        const int lane = thread % lanes, channel = lane * VECTOR;
        const int strip = call.strip, strips = (my_columns + strip - 1) / strip;
        const Vector *const origin = reinterpret_cast<const Vector *>(
            level.address + (i64)roi[0] * level.stride_n + (first_channel + channel) * level.stride_c);
        if (channel < my_channels) {
            for (int job = thread / lanes; job < my_rows * strips; job += threads / lanes) {
                const int p = job / strips, begin = job % strips * strip, end = min(begin + strip, my_columns);
                const List y = y_lists[p];
                const bool y_fits = y.first + y.count <= call.y_capacity;
                Column even, odd;
                even.offset = odd.offset = -1;
                for (int q = begin; q < end; ++q) {
                    const List x = x_lists[q];
                    Sum result[VECTOR] = {};
                    if constexpr (MODE == MAX) {  // samples outside of the map count as zeros, and so does a bin without samples
                        if (y.count > 0 && x.count > 0 && y.count == axis[0].grid && x.count == axis[1].grid)
                            for (int c = 0; c < VECTOR; ++c) result[c] = from_bits(0xff800000);
                    }
                    if (LONG_LISTS && !(y_fits && x.first + x.count <= call.x_capacity)) {
                        pool_without_lists(origin, axis, first_row + p, first_column + q, result);
                    } else if constexpr (MODE == MAX) {
                        for (int i = 0; i < y.count; ++i)
                            for (int j = 0; j < x.count; ++j) {
                                const Entry row = y_entries[y.first + i], column = x_entries[x.first + j];
                                raise_to_sample(origin + (row.offset + (column.offset >> 1)), row.weight, column.weight, axis,
                                                result);
                            }
                    } else {
                        // Neighbouring bins share at most two columns, of neighbouring cells: one even, one odd.
                        for (int i = 0; i < x.count; ++i) {
                            const Entry entry = x_entries[x.first + i];
                            if (entry.offset & 1)
                                add_column(origin, y_entries + y.first, y.count, entry, odd, result);
                            else
                                add_column(origin, y_entries + y.first, y.count, entry, even, result);
                        }
                    }
                    int place = tile_index(channel, p * my_columns + q, pitch);
                    for (int c = 0; c < VECTOR; ++c, place += pitch) narrow(result[c], tile[place]);
                }
            }
        }
    } else {
        const int last = tile_index(my_channels - 1, my_rows * my_columns - 1, pitch);
        for (int i = thread; i <= last; i += threads) narrow((Sum)from_bits(0x7fc00000), tile[i]);
    }
    __syncthreads();

    const int bins = my_rows * my_columns;
    if (call.reduce != NONE) {
        Written *const out = static_cast<Written *>(call.out) + k * call.channels + first_channel;
        for (int channel = thread; channel < my_channels; channel += threads) {
            Sum total = widen(tile[tile_index(channel, 0, pitch)]);
            for (int bin = 1; bin < bins; ++bin) {
                const Sum value = widen(tile[tile_index(channel, bin, pitch)]);
                if (call.reduce == MEAN) total += value;
                else if (value > total || value != value) total = value;
            }
            narrow(call.reduce == MEAN ? total / bins : total, out[channel]);
        }
        return;
    }

    // The tile, channel by channel: neighbouring threads write neighbouring bins, and each thread keeps its bin, so that only
    // the channel changes from one element to the next. As many channels are written at a time as the threads suffice for.
    Written *const out = static_cast<Written *>(call.out) + (k * call.channels + first_channel) * call.ph * call.pw +
                         first_row * call.pw + first_column;
    const int group = min(bins, threads), groups = threads / group, first = thread / group;
    const i64 step = groups * call.ph * call.pw;
    for (int bin = thread % group; bin < bins && first < groups; bin += group) {
        const int skipped = bin / my_columns * ((int)call.pw - my_columns);
        Written *to = out + first * call.ph * call.pw + bin + skipped;
#pragma unroll 4
        for (int channel = first; channel < my_channels; channel += groups, to += step)
            *to = tile[tile_index(channel, bin, pitch)];
    }
}
