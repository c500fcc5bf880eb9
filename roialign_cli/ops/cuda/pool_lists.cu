// Pooling of regions whose bins are lists of weighted map cells: rotated boxes, masks, moved bins. The host writes the lists.
//
// It is compiled like roi_align.cu, behind elements.cuh; MODE is AVG, or MAX where each four entries are one sample. Maps are
// channels-last. A block owns one RoI, a chunk of `lanes * VECTOR` channels and `bins_per_block` of its bins. Each group of
// `lanes` threads sums up bin after bin; the results pass through a tile in shared memory, because [K, C, bins] needs runs of
// bins where threads hold runs of channels. Every sum has one order, so the same call gives the same bits.

// All fields are eight bytes wide; lists.py defines the same record. Strides and offsets are in bytes.
struct Call {
    const char *address[MAX_LEVELS];
    i64 stride_n[MAX_LEVELS];
    const i64 *rows, *images, *levels;  // [R] of each block: the row of the output, the first map that it reads on its level, the level
    const i64 *ptr;                     // [R * bins + 1] where the entries of each bin begin
    const i64 *offset;                  // [entries]
    const Sum *weight;                  // [entries]
    const unsigned char *outside;       // [R * bins] whether samples lie outside of the map, which are zeros
    void *out;                          // [K, channels, bins]
    i64 channels, bins, one_each;       // one_each: whether each bin reads the map after that of the bin before
    i64 lanes, bins_per_block;          // the shape of a block's work, chosen by the host
};

#ifndef ENTRY
#define ENTRY pool_lists
#endif

// Returns the sum of the entries first..stop of a list, with four loads in flight.
__device__ inline void sum_entries(const Call &call, const char *origin, i64 first, i64 stop, Sum (&sum)[VECTOR]) {
    constexpr int DEPTH = 4;
    for (; first < stop; first += DEPTH) {
        Sum weight[DEPTH];
        Vector cell[DEPTH];
#pragma unroll
        for (int i = 0; i < DEPTH; ++i)
            if (first + i < stop) {
                weight[i] = call.weight[first + i];
                cell[i] = *reinterpret_cast<const Vector *>(origin + call.offset[first + i]);
            }
#pragma unroll
        for (int i = 0; i < DEPTH; ++i)
            if (first + i < stop) add_weighted(sum, weight[i], cell[i]);
    }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2) ENTRY(const __grid_constant__ Call call) {
    extern __shared__ double shared[];
    Written *const tile = reinterpret_cast<Written *>(shared);
    const int threads = blockDim.x, thread = threadIdx.x, lanes = call.lanes;
    const i64 row = blockIdx.x, k = call.rows[row], level = call.levels[row];
    const int first_channel = blockIdx.y * lanes * VECTOR, first_bin = (int)blockIdx.z * (int)call.bins_per_block;
    const int my_channels = min((int)call.channels - first_channel, lanes * VECTOR);
    const int my_bins = min((int)call.bins - first_bin, (int)call.bins_per_block);

    const int channel = thread % lanes * VECTOR;
    if (channel < my_channels) {
        const char *const origin = call.address[level] + call.images[row] * call.stride_n[level] +
                                   (i64)(first_channel + channel) * (i64)sizeof(Element);
        for (int b = thread / lanes; b < my_bins; b += threads / lanes) {
            const i64 bin = row * call.bins + first_bin + b, first = call.ptr[bin], stop = call.ptr[bin + 1];
            const char *const map = origin + (call.one_each ? (first_bin + b) * call.stride_n[level] : 0);
            Sum result[VECTOR] = {};
            if constexpr (MODE == MAX) {
                if (first < stop && !call.outside[bin])
                    for (int c = 0; c < VECTOR; ++c) result[c] = from_bits(0xff800000);
                for (i64 sample = first; sample < stop; sample += 4) {
                    Sum value[VECTOR] = {};
                    sum_entries(call, map, sample, sample + 4, value);
                    for (int c = 0; c < VECTOR; ++c)
                        if (value[c] > result[c] || value[c] != value[c]) result[c] = value[c];  // NaN wins
                }
            } else {
                sum_entries(call, map, first, stop, result);
            }
            for (int c = 0; c < VECTOR; ++c) narrow(result[c], tile[tile_index((channel + c) * my_bins + b)]);
        }
    }
    __syncthreads();

    Written *const out = static_cast<Written *>(call.out) + (k * call.channels + first_channel) * call.bins + first_bin;
    store_tile(tile, out, my_channels, my_bins, call.bins);
}
