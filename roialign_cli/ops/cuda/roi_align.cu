// RoI Align for CUDA: one launch pools any number of RoIs from all levels of a pyramid.
//
// It is compiled at run time for the device at hand, once per element type, mode and width of a load:
//
//     -DELEMENT=float|double|float16|bfloat16  -DWRITTEN=<the same choices, for the output>  -DMODE=AVG|MAX|EXACT  -DVECTOR=<channels per load, a power of two>
//     -DLONG_LISTS=0|1  whether lists of weights may exceed the shared memory reserved for them
//
// Maps may have any strides; the kernel is made for channels-last, which VECTOR > 1 requires. A block owns one RoI,
// `lanes * VECTOR` channels at a time and `rows` x `columns` of its bins. It first writes the weights of both axes to
// shared memory: the mean over samples and the integral are separable, so one short list of (cell, weight) per axis and
// bin describes them. Then each group of `lanes` threads processes strips of bins: a thread sums its own channels down
// each column of cells and keeps the last two columns in registers, since neighbouring bins share no others, so that it loads a
// cell once per row of bins. The results pass through a tile in shared memory, because [K, C, PH, PW] needs runs of bins where
// threads hold runs of channels. If its tile is too small for all of its channels, the block computes them in `chunks`.
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
    i64 lanes, rows, columns, strip, chunks;   // the shape of a block's work, chosen by the host
    // Shared memory for the lists of weights, in entries; a bin's list begins at the sum of what those before it can take
    i64 y_capacity, y_per_cell, y_per_bin, x_capacity, x_per_cell, x_per_bin;
};

// --- one axis of one RoI, in map cells ----------------------------------------------------------------------------------
//
// In double precision like the reference: in float the coordinates of a 300-cell map alone cost an error of 1e-5. A block
// computes only a few dozen of them.

struct Axis {
    double start, bin, grid, step;  // bins of length `bin` from `start`, `grid` samples in each, `step` apart
    i64 size, stride;         // cells of the map; vectors from one to the next
};

// The position of a list: `count` entries from `first`.
struct List {
    int first, count;
};

struct alignas(2 * sizeof(Sum)) Entry {
    int offset;  // of the cell, in vectors (the host checks that they fit)
    Sum weight;  // of the cell; in mode MAX the distance from this cell to the next, 0 to 1
};

__device__ inline Axis make_axis(double low, double high, double scale, i64 bins, i64 ratio, bool aligned) {
    Axis axis;
    // Rounded twice, as in the reference, here and below: a fused multiply-add would find a whole number of cells per bin to be
    // a little more, and the adaptive grid would have one sample more. Scales such as 1/14 are no powers of two.
    const double offset = aligned ? 0.5 : 0.0;
    axis.start = __dadd_rn(__dmul_rn(low, scale), -offset);
    double extent = __dadd_rn(__dadd_rn(__dmul_rn(high, scale), -offset), -axis.start);
    if (!aligned) extent = fmax(extent, 1.0);
    axis.bin = extent / bins;
    axis.grid = ratio > 0 ? (double)ratio : ceil(axis.bin);
    axis.step = axis.bin / axis.grid;
    return axis;
}

__device__ inline double clamp(double at, i64 size) { return fmin(fmax(at, 0.0), size - 1.0); }

// Where bin p begins.
__device__ inline double edge(const Axis &axis, int p) { return __dadd_rn(axis.start, __dmul_rn(p, axis.bin)); }

// The cell in which bin p begins, from -1 to the map's size.
__device__ inline i64 cell_of(const Axis &axis, int p) {
    return (i64)floor(fmin(fmax(edge(axis, p), -1.0), (double)axis.size));
}

// Calls take(coordinate) for each sample of bin p in [-1, size], clamped, in ascending order.
template <class Take>
__device__ inline void visit_samples(const Axis &axis, int p, Take take) {
    const double begin = edge(axis, p);
    double i = 0.0, stop = axis.grid;
    if (axis.step > 0.0 && (begin < -1.0 || begin + axis.bin > axis.size)) {
        // Skip samples outside of the map without visiting them: a huge box has too many.
        i = fmax(i, floor((-1.0 - begin) / axis.step) - 1.0);
        stop = fmin(stop, ceil((axis.size - begin) / axis.step) + 1.0);
    }
    for (i64 left = stop > i ? (i64)(stop - i) : 0; left > 0; --left, i += 1.0) {
        const double at = __dadd_rn(begin, __dmul_rn(i + 0.5, axis.step));
        if (at >= -1.0 && at <= axis.size) take(clamp(at, axis.size));
    }
}

// Calls take(middle, share) for each piece of bin p between neighbouring cells, where the interpolated surface is linear
// and its integral is length times middle value. An empty bin counts as one sample.
template <class Take>
__device__ inline void visit_pieces(const Axis &axis, int p, Take take) {
    const double begin = edge(axis, p), end = edge(axis, p + 1);
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

// The list of y of a row of bins: its first entries, which are most often all, are kept in registers.
constexpr int HELD = 4;
struct Rows {
    int count;
    const Entry *entries;
    Entry held[HELD];
};

// The weighted sum down one column of cells, which is kept for the next bin; `offset` says which column it is.
struct Column {
    int offset;
    Sum sum[VECTOR];
};

// Sums up a column of one or more cells, with four loads in flight.
__device__ inline void sum_column(const Vector *origin, int x, const Rows &rows, Sum (&sum)[VECTOR]) {
    Vector cell[HELD];
#pragma unroll
    for (int i = 0; i < HELD; ++i)
        if (i == 0 || i < rows.count) cell[i] = origin[x + rows.held[i].offset];
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) sum[c] = rows.held[0].weight * channel_of(cell[0], c);
#pragma unroll
    for (int i = 1; i < HELD; ++i)
        if (i < rows.count) add_weighted(sum, rows.held[i].weight, cell[i]);
#pragma unroll 1
    for (int first = HELD; first < rows.count; first += HELD) {
#pragma unroll
        for (int i = 0; i < HELD; ++i)
            if (first + i < rows.count) cell[i] = origin[x + rows.entries[first + i].offset];
#pragma unroll
        for (int i = 0; i < HELD; ++i)
            if (first + i < rows.count) add_weighted(sum, rows.entries[first + i].weight, cell[i]);
    }
}

__device__ inline void add_column(Entry x, const Column &column, Sum (&result)[VECTOR]) {
#pragma unroll
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

// Blocks per multiprocessor that the registers must suffice for. With more, values would spill in the loops over cells; with
// fewer, too few threads wait for memory at a time.
#ifndef BLOCKS
#define BLOCKS (LONG_LISTS ? 1 : 4)
#endif

// The bins of a block, and what its threads share.
struct Block {
    int first_row, first_column, rows, columns;
    Axis (&axis)[2];  // y, x
    Entry *y_entries, *x_entries;
    List *y_lists, *x_lists;
    Written *tile;
};

// Writes the list of one bin of an axis.
__device__ inline void write_list(const Call &call, const Level &level, const double (&roi)[5], const Block &block, int bin,
                                  bool is_x) {
    const int first = is_x ? block.first_column : block.first_row;
    const int capacity = is_x ? call.x_capacity : call.y_capacity;
    Axis axis = make_axis(is_x ? roi[1] : roi[2], is_x ? roi[3] : roi[4], level.scale, is_x ? call.pw : call.ph, call.ratio,
                          call.aligned);
    axis.size = is_x ? level.width : level.height;
    axis.stride = (is_x ? level.stride_x : level.stride_y) / (i64)sizeof(Vector);
    if (bin == 0) block.axis[is_x] = axis;
    Entry *const entries = is_x ? block.x_entries : block.y_entries;
    List list;
    list.first = (int)(cell_of(axis, first + bin) - cell_of(axis, first)) * (int)(is_x ? call.x_per_cell : call.y_per_cell) +
                 bin * (int)(is_x ? call.x_per_bin : call.y_per_bin);
    list.count = 0;
    visit(axis, first + bin, [&](i64 cell, Sum weight) {
        const int place = list.first + list.count++, offset = cell * axis.stride;
        if (place < capacity) entries[place] = {offset, weight};
    });
    if (!LONG_LISTS) list.count = max(min(list.count, capacity - list.first), 0);  // holds by construction
    (is_x ? block.x_lists : block.y_lists)[bin] = list;
}

// Pools the bins [begin, end) of row p, for the channels at `origin`, into the tile; `channel` is the first of these channels.
__device__ inline void pool_strip(const Call &call, const Block &block, const Vector *origin, int channel, int p, int begin,
                                  int end) {
    const List y = block.y_lists[p];
    const bool y_fits = y.first + y.count <= call.y_capacity;
    Rows rows = {y.count, block.y_entries + y.first};
#pragma unroll
    for (int i = 0; i < HELD; ++i)
        if (i < y.count && (!LONG_LISTS || y_fits)) rows.held[i] = rows.entries[i];
    Column last, previous;
    last.offset = previous.offset = -1;
    for (int q = begin; q < end; ++q) {
        const List x = block.x_lists[q];
        Sum result[VECTOR] = {};
        if constexpr (MODE == MAX) {  // samples outside of the map count as zeros, and so does a bin without samples
            if (y.count > 0 && x.count > 0 && y.count == block.axis[0].grid && x.count == block.axis[1].grid)
                for (int c = 0; c < VECTOR; ++c) result[c] = from_bits(0xff800000);
        }
        if (LONG_LISTS && !(y_fits && x.first + x.count <= call.x_capacity)) {
            pool_without_lists(origin, block.axis, block.first_row + p, block.first_column + q, result);
        } else if constexpr (MODE == MAX) {
            for (int i = 0; i < y.count; ++i)
                for (int j = 0; j < x.count; ++j) {
                    const Entry row = block.y_entries[y.first + i], column = block.x_entries[x.first + j];
                    raise_to_sample(origin + (row.offset + column.offset), row.weight, column.weight, block.axis, result);
                }
        } else {
            // Neighbouring bins share at most two columns, which are the last ones so far.
            const Entry *entry = block.x_entries + x.first;
            int left = y.count > 0 ? x.count : 0;
            if (left > 0 && entry->offset == previous.offset) add_column(*entry++, previous, result), --left;
            if (left > 0 && entry->offset == last.offset) add_column(*entry++, last, result), --left;
#pragma unroll 1
            for (; left > 0; --left) {
                previous = last;
                const Entry column = *entry++;
                last.offset = column.offset;
                sum_column(origin, column.offset, rows, last.sum);
                add_column(column, last, result);
            }
        }
#pragma unroll
        for (int c = 0; c < VECTOR; ++c)
            narrow(result[c], block.tile[tile_index((channel + c) * block.rows * block.columns + p * block.columns + q)]);
    }
}

// Writes the mean or the maximum over the bins of each channel.
__device__ inline void store_reduced(const Call &call, const Block &block, Written *out, int channels) {
    const int bins = block.rows * block.columns;
    for (int channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        Sum total = widen(block.tile[tile_index(channel * bins)]);
        for (int bin = 1; bin < bins; ++bin) {
            const Sum value = widen(block.tile[tile_index(channel * bins + bin)]);
            if (call.reduce == MEAN) total += value;
            else if (value > total || value != value) total = value;
        }
        narrow(call.reduce == MEAN ? total / bins : total, out[channel]);
    }
}

// Writes bins to the output [channels, PH, PW], of which `out` is the first.
__device__ inline void store_bins(const Call &call, const Block &block, Written *out, int channels) {
    const int bins = block.rows * block.columns, run = channels * block.columns;
    if (block.columns == call.pw) {
        store_tile(block.tile, out, channels, bins, call.ph * call.pw);
        return;
    }
    for (int row = 0; row < block.rows; ++row)  // a block with a part of each row has few bins
        for (int i = threadIdx.x; i < run; i += blockDim.x)
            out[i / block.columns * call.ph * call.pw + row * call.pw + i % block.columns] =
                block.tile[tile_index(i / block.columns * bins + row * block.columns + i % block.columns)];
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, BLOCKS) ENTRY(const __grid_constant__ Call call) {
    extern __shared__ double shared[];
    const int lanes = call.lanes, threads = blockDim.x, thread = threadIdx.x;

    // The RoI, and its bins and channels: RoIs vary fastest, so that the same channels stay in the cache.
    const i64 k = blockIdx.x;
    const int column_blocks = ((int)call.pw + (int)call.columns - 1) / (int)call.columns;
    const int first_row = (int)blockIdx.z / column_blocks * (int)call.rows;
    const int first_column = (int)blockIdx.z % column_blocks * (int)call.columns;
    Axis(&axis)[2] = *reinterpret_cast<Axis(*)[2]>(shared);
    Entry *const y_entries = reinterpret_cast<Entry *>(&axis + 1), *const x_entries = y_entries + call.y_capacity;
    List *const y_lists = reinterpret_cast<List *>(x_entries + call.x_capacity), *const x_lists = y_lists + call.rows;
    const Block block = {
        first_row, first_column, (int)min(call.ph - first_row, call.rows), (int)min(call.pw - first_column, call.columns), axis,
        y_entries, x_entries, y_lists, x_lists, reinterpret_cast<Written *>(x_lists + call.columns),
    };

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
    const char *const image = level.address + (valid ? (i64)roi[0] : 0) * level.stride_n;

    if (valid)
        for (int i = thread; i < block.rows + block.columns; i += threads)
            write_list(call, level, roi, block, i < block.rows ? i : i - block.rows, i >= block.rows);
    __syncthreads();

    const int chunk = lanes * VECTOR, strips = (block.columns + (int)call.strip - 1) / (int)call.strip;
    const int begin = blockIdx.y * (int)call.chunks * chunk, end = min(begin + (int)call.chunks * chunk, (int)call.channels);
    for (int first_channel = begin; first_channel < end; first_channel += chunk) {
        const int channels = min((int)call.channels - first_channel, chunk), channel = thread % lanes * VECTOR;
        if (!valid) {
            for (int i = thread; i < channels * block.rows * block.columns; i += threads)
                narrow((Sum)from_bits(0x7fc00000), block.tile[tile_index(i)]);
        } else if (channel < channels) {
            const Vector *const origin =
                reinterpret_cast<const Vector *>(image + (first_channel + channel) * level.stride_c);
            for (int job = thread / lanes; job < block.rows * strips; job += threads / lanes) {
                const int q = job / block.rows * (int)call.strip;
                pool_strip(call, block, origin, channel, job % block.rows, q, min(q + (int)call.strip, block.columns));
            }
        }
        __syncthreads();
        Written *const out = static_cast<Written *>(call.out);
        const i64 row = k * call.channels + first_channel;
        if (call.reduce != NONE) {
            store_reduced(call, block, out + row, channels);
        } else {
            store_bins(call, block, out + row * call.ph * call.pw + first_row * call.pw + first_column, channels);
        }
        __syncthreads();  // before the tile is written again
    }
}
