// Adam and AdamW in one pass over the flat buffers: unscale, weight decay, both moments, update, bf16
// working copy. Twin: flat/adam.rs, bit for bit.
#include "common.cuh"

#define PER_THREAD 8u

// `AdamScalars` on the host. The kernel reads them from device memory, because a captured graph must see each step's
// own.
struct Scalars {
    float grad_scale, l2, keep, one_minus_beta1, beta1, beta2, one_minus_beta2, sqrt_correction2,
        eps, minus_step_size;
};

__device__ __forceinline__ void update(float &param, float grad, float &m, float &v,
                                       const Scalars &s) {
    grad = grad * s.grad_scale + s.l2 * param;
    param = param * s.keep;
    float difference = grad - m;
    // torch.lerp switches its formula at weight 1/2 to be exact at both ends.
    m = s.one_minus_beta1 < 0.5f ? m + s.one_minus_beta1 * difference
                                 : grad - difference * s.beta1;
    v = v * s.beta2 + s.one_minus_beta2 * grad * grad;
    float denominator = sqrtf(v) / s.sqrt_correction2 + s.eps;
    param = param + s.minus_step_size * m / denominator;
}

__device__ __forceinline__ void load8(const float *from, float (&to)[PER_THREAD]) {
    float4 a = load_float4(from), b = load_float4(from + 4);
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

__device__ __forceinline__ void store8(float *to, const float (&from)[PER_THREAD]) {
    store_float4(to, float4{from[0], from[1], from[2], from[3]});
    store_float4(to + 4, float4{from[4], from[5], from[6], from[7]});
}

__device__ __forceinline__ u32 pair(float low, float high) {
    return round_bf16(low) | round_bf16(high) << 16;
}

// `working` may be null.
extern "C" __global__ void __launch_bounds__(256)
    fovea_fused_adam(float *params, const float *grads, float *m, float *v, bf16 *working, u64 n,
                     const Scalars *scalars, u32 wide) {
    Scalars s = *scalars;
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PER_THREAD;
    if (wide && first + PER_THREAD <= n) {
        float p[PER_THREAD], g[PER_THREAD], m8[PER_THREAD], v8[PER_THREAD];
        load8(params + first, p);
        load8(grads + first, g);
        load8(m + first, m8);
        load8(v + first, v8);
        for (u32 k = 0; k < PER_THREAD; ++k) {
            update(p[k], g[k], m8[k], v8[k], s);
        }
        store8(params + first, p);
        store8(m + first, m8);
        store8(v + first, v8);
        if (working) {
            store16(working + first, uint4{pair(p[0], p[1]), pair(p[2], p[3]), pair(p[4], p[5]),
                                           pair(p[6], p[7])});
        }
        return;
    }
    for (u64 k = first; k < n && k < first + PER_THREAD; ++k) {
        float p = params[k], m1 = m[k], v1 = v[k];
        update(p, grads[k], m1, v1, s);
        params[k] = p;
        m[k] = m1;
        v[k] = v1;
        if (working) {
            put(working + k, p);
        }
    }
}
