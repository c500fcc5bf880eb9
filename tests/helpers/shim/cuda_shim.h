// What roi_align.cu needs of CUDA, for a C++ compiler: included before it, in its place of NVRTC's built-in language.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#define __global__
#define __device__ static  // variants are linked together: functions of one name that differ must not be merged
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
    unsigned x, y, z;
};

// Every thread of a block is a real thread; blocks follow one another.
extern thread_local Index threadIdx;
extern Index blockIdx, blockDim;
extern double shared[];
void __syncthreads();

// Not inlined, so that a product and a sum are not contracted to one rounding.
[[gnu::noinline]] inline double __dmul_rn(double a, double b) { return a * b; }
[[gnu::noinline]] inline double __dadd_rn(double a, double b) { return a + b; }

using std::ceil, std::floor, std::fmax, std::fmin, std::max, std::min;

// g++ 12 knows _Float16 on x86 only with SSE2, which is always there; conversions round to nearest even, as cvt.rn does.
inline float half_to_float(unsigned short bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return half;
}

inline unsigned short float_to_half(float value) {
    const _Float16 half = (_Float16)value;
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}
