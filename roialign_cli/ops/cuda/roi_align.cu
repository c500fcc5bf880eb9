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
// each column of cells and keeps the last two columns in registers (neighbouring bins share at most two), so that it
// loads a cell once per row of bins. The results pass through a tile in shared memory, because [K, C, PH, PW] needs runs
// of bins where threads hold runs of channels.
//
// There are no atomics, and every sum has one order, so the same call gives the same bits. The tests also compile this
// file with a C++ compiler; everything that only a device understands is in one section below.

typedef long long i64;

constexpr int MAX_LEVELS = 16;

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

// --- what only a device understands -----------------------------------------------------------------------------------

#ifdef __CUDACC__
__device__ inline float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

// --- element types: stored, and in the type of the sums ---------------------------------------------------------------

struct float16 {
    unsigned short bits;
};

struct bfloat16 {
    unsigned short bits;
};

union Word {
    float value;
    unsigned bits;
};

__device__ inline float from_bits(unsigned bits) {
    Word word;
    word.bits = bits;
    return word.value;
}

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float16 value) { return half_to_float(value.bits); }
__device__ inline float widen(bfloat16 value) { return from_bits((unsigned)value.bits << 16); }

__device__ inline void narrow(float value, float &stored) { stored = value; }
__device__ inline void narrow(double value, double &stored) { stored = value; }
__device__ inline void narrow(float value, float16 &stored) { stored.bits = float_to_half(value); }
__device__ inline void narrow(float value, bfloat16 &stored) {
    Word word;
    word.value = value;
    unsigned rounded = word.bits + 0x7fff + (word.bits >> 16 & 1);  // to nearest, ties to even
    stored.bits = (unsigned short)((value == value ? rounded : word.bits | 0x400000) >> 16);
}

enum Mode { AVG, MAX, EXACT };
enum Reduce { NONE, MEAN, LARGEST };

typedef ELEMENT Element;
typedef WRITTEN Written;
typedef decltype(widen(Element())) Sum;

struct alignas(sizeof(Element) * VECTOR) Vector {
    Element of[VECTOR];
};

// --- one axis of one RoI, in map cells ----------------------------------------------------------------------------------
//
// In double precision like the reference: in float the coordinates of a 300-cell map alone cost an error of 1e-5. A block
// computes only a few dozen of them.

struct Axis {
    double start, bin, grid;  // bins of length `bin` from `start`, `grid` samples in each
    i64 size, stride;         // cells of the map; bytes from one to the next
};

// The position of a list: `count` entries from `first`.
struct List {
    i64 first, count;
};

struct Entry {
    i64 offset;  // of the cell, in bytes
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

// Calls take(entry) for each cell that bin p reads, in ascending order; samples and pieces that share a cell are merged.
template <class Take>
__device__ inline void visit_weights(const Axis &axis, int p, Take take) {
    i64 cell = -2;
    double here = 0.0, next = 0.0;  // incomplete weights of `cell` and of the next cell
    auto add = [&](double at, double share) {
        const i64 floor_at = (i64)at;
        if (floor_at != cell) {
            if (here != 0.0) take(Entry{cell * axis.stride, (Sum)here});
            if (floor_at != cell + 1 && next != 0.0) take(Entry{(cell + 1) * axis.stride, (Sum)next});
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
    if (here != 0.0) take(Entry{cell * axis.stride, (Sum)here});
    if (next != 0.0) take(Entry{(cell + 1) * axis.stride, (Sum)next});
}

// Calls take(entry) as the mode requires: merged weights, or in mode MAX each sample's cell and distance to the next.
template <class Take>
__device__ inline void visit(const Axis &axis, int p, Take take) {
    if constexpr (MODE == MAX) {
        visit_samples(axis, p, [&](double at) { take(Entry{(i64)at * axis.stride, (Sum)(at - (i64)at)}); });
    } else {
        visit_weights(axis, p, take);
    }
}

// --- the loops over cells -----------------------------------------------------------------------------------------------

__device__ inline Vector load(const char *address) { return *reinterpret_cast<const Vector *>(address); }

__device__ inline void add_weighted(Sum (&sum)[VECTOR], Sum weight, const Vector &cell) {
    for (int c = 0; c < VECTOR; ++c) sum[c] += weight * widen(cell.of[c]);
}

// The weighted sum down one column of cells, with four loads in flight.
__device__ inline void sum_column(const char *column, const Entry *y, int count, Sum (&sum)[VECTOR]) {
    constexpr int DEPTH = 4;
    for (int c = 0; c < VECTOR; ++c) sum[c] = 0;
    for (int first = 0; first < count; first += DEPTH) {
        Vector cell[DEPTH];
#pragma unroll
        for (int i = 0; i < DEPTH; ++i)
            if (first + i < count) cell[i] = load(column + y[first + i].offset);
#pragma unroll
        for (int i = 0; i < DEPTH; ++i)
            if (first + i < count) add_weighted(sum, y[first + i].weight, cell[i]);
    }
}

// The sums of the last two columns, by their offset.
struct Columns {
    i64 offset[2];
    Sum sum[2][VECTOR];
};

__device__ inline void average_bin(const char *origin, const Entry *y, int y_count, const Entry *x, int x_count,
                                   Columns &seen, Sum (&result)[VECTOR]) {
    for (int e = 0; e < x_count; ++e) {
        const i64 offset = x[e].offset;
        const Sum weight = x[e].weight;
        if (offset == seen.offset[0]) {  // bins ascend, so the older column is found first, if at all
            for (int c = 0; c < VECTOR; ++c) result[c] += weight * seen.sum[0][c];
            continue;
        }
        if (offset != seen.offset[1]) {
            seen.offset[0] = seen.offset[1];
            for (int c = 0; c < VECTOR; ++c) seen.sum[0][c] = seen.sum[1][c];
            seen.offset[1] = offset;
            sum_column(origin + offset, y, y_count, seen.sum[1]);
        }
        for (int c = 0; c < VECTOR; ++c) result[c] += weight * seen.sum[1][c];
    }
}

__device__ inline void raise_to_sample(const char *origin, Entry y, Entry x, i64 stride_y, i64 stride_x,
                                       Sum (&result)[VECTOR]) {
    const char *cell = origin + y.offset + x.offset;
    const i64 down = y.weight > 0 ? stride_y : 0, right = x.weight > 0 ? stride_x : 0;  // the last cell has no next one
    const Vector corner[4] = {load(cell), load(cell + right), load(cell + down), load(cell + down + right)};
    const Sum weight[4] = {(1 - y.weight) * (1 - x.weight), (1 - y.weight) * x.weight, y.weight * (1 - x.weight),
                           y.weight * x.weight};
    Sum sample[VECTOR] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) add_weighted(sample, weight[i], corner[i]);
    for (int c = 0; c < VECTOR; ++c)
        if (sample[c] > result[c] || sample[c] != sample[c]) result[c] = sample[c];  // NaN wins
}

// A bin whose lists exceed shared memory: its cells are found again one by one. Rare and slow.
__device__ inline void pool_without_lists(const char *origin, const Axis (&axis)[2], int p, int q,
                                          Sum (&result)[VECTOR]) {
    visit(axis[0], p, [&](Entry y) {
        visit(axis[1], q, [&](Entry x) {
            if constexpr (MODE == MAX) {
                raise_to_sample(origin, y, x, axis[0].stride, axis[1].stride, result);
            } else {
                add_weighted(result, y.weight * x.weight, load(origin + y.offset + x.offset));
            }
        });
    });
}

// --- one block ----------------------------------------------------------------------------------------------------------

// The index in a tile of bin `bin` of channel `channel`: an odd pitch and one word of padding per channels of eight
// threads, so that neither writes (runs of channels) nor reads (runs of bins) conflict in a bank.
__device__ inline int tile_index(int channel, int bin, int pitch) {
    constexpr int PADDING = sizeof(Written) < 4 ? 4 / sizeof(Written) : 1;
    return channel * pitch + channel / (8 * VECTOR) * PADDING + bin;
}

#ifndef ENTRY
#define ENTRY roi_align
#endif

extern "C" __global__ void __launch_bounds__(256, 2) ENTRY(const __grid_constant__ Call call) {
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
            axis[0].size = level.height, axis[0].stride = level.stride_y;
            axis[1] = make_axis(roi[1], roi[3], level.scale, call.pw, call.ratio, call.aligned);
            axis[1].size = level.width, axis[1].stride = level.stride_x;
        }
        __syncthreads();
        for (int i = thread; i < my_rows + my_columns; i += threads) {
            const bool is_x = i >= my_rows;
            const int local = is_x ? i - my_rows : i, first = is_x ? first_column : first_row;
            Entry *const entries = is_x ? x_entries : y_entries;
            const i64 capacity = is_x ? call.x_capacity : call.y_capacity;
            List list;
            list.first = (cell_of(axis[is_x], first + local) - cell_of(axis[is_x], first)) *
                             (is_x ? call.x_per_cell : call.y_per_cell) +
                         local * (is_x ? call.x_per_bin : call.y_per_bin);
            list.count = 0;
            visit(axis[is_x], first + local, [&](Entry entry) {
                const i64 place = list.first + list.count++;
                if (place < capacity) entries[place] = entry;
            });
            if (!LONG_LISTS) list.count = max(min(list.count, capacity - list.first), (i64)0);  // holds by construction
            (is_x ? x_lists : y_lists)[local] = list;
        }
        __syncthreads();

        const int lane = thread % lanes, channel = lane * VECTOR;
        const int strip = call.strip, strips = (my_columns + strip - 1) / strip;
        const char *const origin =
            level.address + (i64)roi[0] * level.stride_n + (first_channel + channel) * level.stride_c;
        if (channel < my_channels) {
            for (int job = thread / lanes; job < my_rows * strips; job += threads / lanes) {
                const int p = job / strips, begin = job % strips * strip, end = min(begin + strip, my_columns);
                const List y = y_lists[p];
                const bool y_fits = y.first + y.count <= call.y_capacity;
                Columns seen;
                seen.offset[0] = seen.offset[1] = -1;
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
                            for (int j = 0; j < x.count; ++j)
                                raise_to_sample(origin, y_entries[y.first + i], x_entries[x.first + j], axis[0].stride,
                                                axis[1].stride, result);
                    } else {
                        average_bin(origin, y_entries + y.first, y.count, x_entries + x.first, x.count, seen, result);
                    }
                    int place = tile_index(channel, p * my_columns + q, pitch);
                    for (int c = 0; c < VECTOR; ++c, place += pitch) narrow(result[c], tile[place]);
                }
            }
        }
        __syncthreads();
    }

    const int bins = my_rows * my_columns;
    Written nan;
    narrow((Sum)from_bits(0x7fc00000), nan);
    if (call.reduce != NONE) {
        Written *const out = static_cast<Written *>(call.out) + k * call.channels + first_channel;
        for (int channel = thread; channel < my_channels; channel += threads) {
            if (!valid) {
                out[channel] = nan;
                continue;
            }
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

    // The tile, channel by channel: neighbouring threads write neighbouring bins.
    Written *const out = static_cast<Written *>(call.out) + (k * call.channels + first_channel) * call.ph * call.pw +
                         first_row * call.pw + first_column;
    const int channel_step = threads / bins, bin_step = threads % bins;
    int channel = thread / bins, bin = thread % bins;
    while (channel < my_channels) {
        const i64 skipped = my_columns == call.pw ? 0 : bin / my_columns * (call.pw - my_columns);
        out[channel * call.ph * call.pw + bin + skipped] = valid ? tile[tile_index(channel, bin, pitch)] : nan;
        channel += channel_step;
        bin += bin_step;
        if (bin >= bins) {
            bin -= bins;
            ++channel;
        }
    }
}
