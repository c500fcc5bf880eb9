// Runs launches of CUDA kernels, compiled for the CPU, from a file, and writes what each has put out.
//
// A launch in the file: name of the kernel, then numbers, then its record and the arrays whose addresses it holds, each with
// the place of the address in the record; the last one is written to. Each array gets an allocation of its own and of its exact
// size, so that a sanitizer sees any step beside it. An empty array has the address null.

#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cuda_shim.h"
#include KERNELS  // lists the kernels that are linked: KERNEL(name) each

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

typedef long long i64;

// The record of a kernel, whatever its fields are.
template <size_t SIZE>
struct alignas(8) Record {
    char bytes[SIZE];
};

#define KERNEL(name, size) extern "C" void name(const Record<size> call);
KERNEL_LIST
#undef KERNEL

typedef std::function<void(const char *)> Kernel;

thread_local Index threadIdx;
Index blockIdx, blockDim;
constexpr size_t SHARED_BYTES = 48 << 10;
alignas(16) double shared[SHARED_BYTES / sizeof(double)];

static std::optional<std::barrier<>> block_barrier;

void __syncthreads() { block_barrier->arrive_and_wait(); }

static std::FILE *input;

static void read(void *target, size_t size) {
    if (size && std::fread(target, 1, size, input) != size) std::abort();
}

static i64 number() {
    i64 value;
    read(&value, sizeof value);
    return value;
}

static std::vector<char> bytes(size_t size) {
    std::vector<char> array(size);
    array.shrink_to_fit();
    read(array.data(), size);
    return array;
}

static void launch(const Kernel &kernel, const char *call, Index grid, unsigned threads, size_t shared_bytes) {
#if defined(__SANITIZE_ADDRESS__)
    const char *end = reinterpret_cast<char *>(shared) + (shared_bytes + 7) / 8 * 8;
    ASAN_UNPOISON_MEMORY_REGION(shared, SHARED_BYTES);
    ASAN_POISON_MEMORY_REGION(end, reinterpret_cast<char *>(shared) + SHARED_BYTES - end);
#endif
    if (shared_bytes > SHARED_BYTES) std::abort();
    std::memset(shared, 0xff, (shared_bytes + 7) / 8 * 8);
    blockDim = {threads, 1, 1};
    blockIdx = {0, 0, 0};
    block_barrier.emplace(threads);
    // The last thread to finish a block moves on to the next.
    std::barrier next_block(threads, [grid]() noexcept {
        if (++blockIdx.x < grid.x) return;
        blockIdx.x = 0;
        if (++blockIdx.y < grid.y) return;
        blockIdx.y = 0;
        ++blockIdx.z;
    });
    std::vector<std::thread> workers;
    for (unsigned i = 0; i < threads; ++i)
        workers.emplace_back([&, i] {
            threadIdx = {i, 0, 0};
            const i64 blocks = (i64)grid.x * grid.y * grid.z;
            for (i64 block = 0; block < blocks; ++block) {
                kernel(call);
                next_block.arrive_and_wait();
            }
        });
    for (auto &worker : workers) worker.join();
}

int main(int, char **arguments) {
    const std::map<std::string, Kernel> kernels = {
#define KERNEL(name, size) {#name, [](const char *call) { name(*reinterpret_cast<const Record<size> *>(call)); }},
        KERNEL_LIST
#undef KERNEL
    };
    input = std::fopen(arguments[1], "rb");
    std::FILE *output = std::fopen(arguments[2], "wb");
    if (!input || !output) return 2;
    for (i64 cases = number(); cases > 0; --cases) {
        const auto name = bytes(number());
        const auto kernel = kernels.find(std::string(name.begin(), name.end()));
        if (kernel == kernels.end()) return 3;
        const Index grid = {(unsigned)number(), (unsigned)number(), (unsigned)number()};
        const unsigned threads = number();
        const size_t shared_bytes = number();
        std::vector<i64> record((number() + 7) / 8);
        char *const call = reinterpret_cast<char *>(record.data());
        read(call, 8 * record.size());
        std::vector<std::vector<char>> arrays;  // their elements stay where they are when the outer vector grows
        for (i64 left = number(); left > 0; --left) {
            const i64 place = number();
            arrays.push_back(bytes(number()));
            const char *const address = arrays.back().empty() ? nullptr : arrays.back().data();
            std::memcpy(call + place, &address, sizeof address);
        }
        const i64 place = number();
        std::vector<char> out(number(), (char)0xab);
        const char *const address = out.data();
        std::memcpy(call + place, &address, sizeof address);
        launch(kernel->second, call, grid, threads, shared_bytes);
        std::fwrite(out.data(), 1, out.size(), output);
    }
    std::fclose(output);
}
