// The part of CUDA C++ that the kernels use, as plain C++: a thread is a fiber, a barrier and a
// shuffle switch to the next one. See scheduler.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One section for all, because the scheduler poisons all shared memory before a block.
#define __shared__ static __attribute__((section("fovea_shared"), used))

struct uint4 {
    unsigned x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};
struct Index {
    unsigned x, y, z;
};

// The indices of the thread that runs at the moment.
extern Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
void barrier(const char *file, int line);
// Returns the bits that lane `source` passed.
uint64_t shuffle(uint64_t bits, unsigned mask, unsigned source, const char *file, int line);
unsigned lane();
// Ends the launch with an error. Does not return.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Checks a wide access: it must be aligned, and lie within one buffer or in shared memory.
void check_access(const void *address, unsigned bytes, const char *file, int line);

template <class T>
T shuffled(T value, unsigned mask, unsigned source, const char *file, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = shuffle(bits, mask, source, file, line);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
}  // namespace emulator

#define FOVEA_ACCESS(address, bytes) emulator::check_access(address, bytes, __FILE__, __LINE__)
#define __syncthreads() emulator::barrier(__FILE__, __LINE__)
#define __shfl_sync(mask, value, source) \
    emulator::shuffled(value, mask, (source) % 32u, __FILE__, __LINE__)
// Beyond the last lane, a thread gets its own value back.
#define __shfl_down_sync(mask, value, distance)                                               \
    emulator::shuffled(value, mask,                                                           \
                       emulator::lane() + (distance) < 32u ? emulator::lane() + (distance)    \
                                                           : emulator::lane(),                \
                       __FILE__, __LINE__)

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline long long __double_as_longlong(double x) {
    long long bits;
    std::memcpy(&bits, &x, 8);
    return bits;
}

inline double __longlong_as_double(long long bits) {
    double x;
    std::memcpy(&x, &bits, 8);
    return x;
}

// 0..1; NaN gives 0.
inline float __saturatef(float x) {
    return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}

inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int byte = 0; byte < 4; ++byte) {
        c += (a >> 8 * byte & 255u) * (b >> 8 * byte & 255u);
    }
    return c;
}

// 255 in every byte where a > b.
inline unsigned __vcmpgtu4(unsigned a, unsigned b) {
    unsigned result = 0;
    for (int byte = 0; byte < 4; ++byte) {
        if ((a >> 8 * byte & 255u) > (b >> 8 * byte & 255u)) {
            result |= 255u << 8 * byte;
        }
    }
    return result;
}

// One thread runs at a time, so nothing comes between.
inline float atomicAdd(float *at, float value) {
    float before = *at;
    *at = before + value;
    return before;
}

template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}

template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
