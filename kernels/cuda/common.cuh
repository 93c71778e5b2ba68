// Types, rounding, loads and sums that the kernels share.
//
// NVRTC compiles this text for a GPU; in the tests a C++ compiler compiles it for the CPU. So it includes no header
// from outside, and uses only operations that IEEE 754 rounds in one way: no contraction of a multiply with an add
// (--fmad=false, -ffp-contract=off), no approximate function, fmaf by name.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The emulator defines this macro to check a wide access before the kernel makes it.
#ifndef FOVEA_ACCESS
#define FOVEA_ACCESS(address, bytes)
#endif

#define WARP 32
#define ALL_LANES 0xFFFFFFFFu

// A bfloat16, as its bits.
struct bf16 {
    u16 bits;
};

// Rounds to nearest even; a NaN stays a NaN. The twin's `round_bf16` gives the same bits.
__device__ __forceinline__ u32 round_bf16(float x) {
    u32 bits = __float_as_uint(x);
    u32 rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    u32 quiet = bits >> 16 | 0x40u;
    return x != x ? quiet & 0xFFFFu : rounded & 0xFFFFu;
}

__device__ __forceinline__ float widen_bf16(u32 bits) {
    return __uint_as_float(bits << 16);
}

__device__ __forceinline__ void put(float *at, float x) {
    *at = x;
}

__device__ __forceinline__ void put(bf16 *at, float x) {
    at->bits = (u16)round_bf16(x);
}

__device__ __forceinline__ float quiet_nan() {
    return __uint_as_float(0x7FC00000u);
}

__device__ __forceinline__ uint4 load16(const void *at) {
    FOVEA_ACCESS(at, 16);
    return *(const uint4 *)at;
}

__device__ __forceinline__ float4 load_float4(const float *at) {
    FOVEA_ACCESS(at, 16);
    return *(const float4 *)at;
}

__device__ __forceinline__ void store_float4(float *at, float4 value) {
    FOVEA_ACCESS(at, 16);
    *(float4 *)at = value;
}

__device__ __forceinline__ void store16(void *at, uint4 value) {
    FOVEA_ACCESS(at, 16);
    *(uint4 *)at = value;
}

// The sum over a warp, valid in lane 0. A fixed tree: the same bits in every run.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_down_sync(ALL_LANES, value, distance);
    }
    return value;
}

// The sum over a block, valid in thread 0; `scratch` holds one T per warp. Every thread calls it.
template <class T>
__device__ __forceinline__ T block_sum(T value, T *scratch) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    value = warp_sum(value);
    if (lane == 0) {
        scratch[warp] = value;
    }
    __syncthreads();
    if (warp == 0) {
        value = warp_sum(lane < blockDim.x / WARP ? scratch[lane] : T(0));
    }
    __syncthreads();  // the caller may use scratch again
    return value;
}
