// What the kernels share: element types and vectors of channels, and the tile in shared memory. It is compiled in front of each:
//
//     -DELEMENT=float|double|float16|bfloat16  -DWRITTEN=<the same choices, for the output>  -DMODE=AVG|MAX|EXACT  -DVECTOR=<channels per load, a power of two>
//
// The tests also compile the kernels with a C++ compiler; everything that only a device understands is in the first section.

typedef long long i64;

constexpr int MAX_LEVELS = 16;
constexpr int MAX_THREADS = 224;  // of a block: seven rows of bins, and registers for four blocks without spilling

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

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define ROUNDS_TO_BFLOAT16
__device__ inline unsigned short float_to_bfloat16(float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
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
#ifdef ROUNDS_TO_BFLOAT16
    stored.bits = float_to_bfloat16(value);
#else
    Word word;
    word.value = value;
    unsigned rounded = word.bits + 0x7fff + (word.bits >> 16 & 1);  // to nearest, ties to even
    stored.bits = (unsigned short)((value == value ? rounded : word.bits | 0x400000) >> 16);
#endif
}

enum Mode { AVG, MAX, EXACT };
enum Reduce { NONE, MEAN, LARGEST };

typedef ELEMENT Element;
typedef WRITTEN Written;
typedef decltype(widen(Element())) Sum;

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

struct alignas(sizeof(Element) * VECTOR) Vector {
    Element of[VECTOR];
};

// Returns channel c of a vector. Two bfloat16 are widened from their common word with one instruction each, alone with two.
__device__ inline Sum channel_of(const Vector &vector, int c) {
    if constexpr (same<Element, bfloat16> && VECTOR % 2 == 0) {
        unsigned pair;
        memcpy(&pair, &vector.of[c & ~1], sizeof(pair));
        return from_bits(c & 1 ? pair & 0xffff0000 : pair << 16);
    } else {
        return widen(vector.of[c]);
    }
}

__device__ inline void add_weighted(Sum (&sum)[VECTOR], Sum weight, const Vector &cell) {
    for (int c = 0; c < VECTOR; ++c) sum[c] += weight * channel_of(cell, c);
}

// --- the tile of results in shared memory -----------------------------------------------------------------------------

// The index in a tile of an element, in the order of the output. One word of padding per 128 bytes, and another per 1024, keep
// threads that hold neighbouring channels, and so write runs of bins apart, from conflicts in a bank.
__device__ inline int tile_index(int element) {
    constexpr int GROUP = 128 / sizeof(Written), PADDING = sizeof(Written) < 4 ? 4 / sizeof(Written) : 1;
    return element + (element / GROUP + element / (8 * GROUP)) * PADDING;
}

// Writes `channels` runs of `bins` elements, `stride` apart, PIECE elements at a time; pieces lie in one run.
template <int PIECE>
__device__ inline void store_pieces(const Written *tile, Written *out, int channels, int bins, i64 stride) {
    struct alignas(PIECE * sizeof(Written)) Piece {
        Written of[PIECE];
    };
    const int step = blockDim.x * PIECE, step_runs = step / bins, step_bins = step % bins;
    int element = threadIdx.x * PIECE, run = element / bins, bin = element % bins;
    for (; element < channels * bins; element += step) {
        Piece piece;
        const Written *from = tile + tile_index(element);
#pragma unroll
        for (int i = 0; i < PIECE; ++i) piece.of[i] = from[i];
        *reinterpret_cast<Piece *>(out + run * stride + bin) = piece;
        run += step_runs, bin += step_bins;
        if (bin >= bins) ++run, bin -= bins;
    }
}

// Writes a tile to `channels` runs of `bins` elements, `stride` apart, in the widest pieces that fit.
__device__ inline void store_tile(const Written *tile, Written *out, int channels, int bins, i64 stride) {
    constexpr int WIDE = 16 / sizeof(Written), HALF = 8 / sizeof(Written);
    if (stride == bins) bins *= channels, channels = 1;
    const i64 places = reinterpret_cast<i64>(out) / (i64)sizeof(Written) | bins | (channels > 1 ? stride : 0);
    if (places % WIDE == 0) store_pieces<WIDE>(tile, out, channels, bins, stride);
    else if (places % HALF == 0) store_pieces<HALF>(tile, out, channels, bins, stride);
    else store_pieces<1>(tile, out, channels, bins, stride);
}
