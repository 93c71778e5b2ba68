// Passes over flat buffers: casts, and sums in a fixed order. Twin: flat/mod.rs. Casts give its bits; sums add in
// another fixed order.
#include "common.cuh"

#define PER_THREAD 8u

extern "C" __global__ void __launch_bounds__(256)
    fovea_to_bf16(const float *from, bf16 *to, u64 n, u32 wide) {
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PER_THREAD;
    if (wide && first + PER_THREAD <= n) {
        float4 a = load_float4(from + first), b = load_float4(from + first + 4);
        store16(to + first, uint4{round_bf16(a.x) | round_bf16(a.y) << 16,
                                  round_bf16(a.z) | round_bf16(a.w) << 16,
                                  round_bf16(b.x) | round_bf16(b.y) << 16,
                                  round_bf16(b.z) | round_bf16(b.w) << 16});
        return;
    }
    for (u64 k = first; k < n && k < first + PER_THREAD; ++k) {
        put(to + k, from[k]);
    }
}

// Widens: to = from, or with `add` to += from.
extern "C" __global__ void __launch_bounds__(256)
    fovea_accumulate_bf16(const bf16 *from, float *to, u64 n, u32 add, u32 wide) {
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PER_THREAD;
    if (wide && first + PER_THREAD <= n) {
        uint4 in = load16(from + first);
        u32 words[4] = {in.x, in.y, in.z, in.w};
        for (u32 half = 0; half < 2; ++half) {
            u32 low = words[2 * half], high = words[2 * half + 1];
            float4 v = {widen_bf16(low & 0xFFFFu), widen_bf16(low >> 16),
                        widen_bf16(high & 0xFFFFu), widen_bf16(high >> 16)};
            float *at = to + first + 4 * half;
            if (add) {
                float4 sum = load_float4(at);
                v = float4{sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
            }
            store_float4(at, v);
        }
        return;
    }
    for (u64 k = first; k < n && k < first + PER_THREAD; ++k) {
        float v = widen_bf16(from[k].bits);
        to[k] = add ? to[k] + v : v;
    }
}

// partials[block] = the sum of squares of the block's `loads` loads of 4 elements per thread.
extern "C" __global__ void __launch_bounds__(256)
    fovea_sum_squares(const float *x, u64 n, u32 loads, u32 wide, double *partials) {
    __shared__ double scratch[WARP];
    double sum = 0.0;
    for (u32 k = 0; k < loads; ++k) {
        u64 first = (((u64)blockIdx.x * loads + k) * blockDim.x + threadIdx.x) * 4;
        if (wide && first + 4 <= n) {
            float4 v = load_float4(x + first);
            sum += (double)v.x * v.x;
            sum += (double)v.y * v.y;
            sum += (double)v.z * v.z;
            sum += (double)v.w * v.w;
        } else {
            for (u64 at = first; at < n && at < first + 4; ++at) {
                sum += (double)x[at] * x[at];
            }
        }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

// One block: *total = the sum of `count` partials. Every launch has the same number of threads, which fixes the order.
extern "C" __global__ void __launch_bounds__(256)
    fovea_sum(const double *partials, u32 count, double *total) {
    __shared__ double scratch[WARP];
    double sum = 0.0;
    for (u32 k = threadIdx.x; k < count; k += blockDim.x) {
        sum += partials[k];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        *total = sum;
    }
}
