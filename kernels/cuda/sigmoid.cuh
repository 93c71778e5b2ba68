// Losses with one sigmoid per class: the summed loss and dlogits in one pass. Twin: kernels/src/loss/sigmoid.
//
// The twin computes each term in f64. A GPU has too few f64 units for that at memory speed, so here a term is f32
// (relative error below 1e-6), and the sum of the terms is f64, in a fixed tree.
#pragma once
#include "common.cuh"

#define MOST_CLASSES 63
#define UNKNOWN_LABEL 0xFFFFFFFFFFFFFFFFull  // no label: loss 0, gradient 0
#define LOGITS_PER_LOAD 4u

// Shared memory of a block.
struct SigmoidShared {
    double scratch[WARP];
    float negative[MOST_CLASSES], positive[MOST_CLASSES];  // weights for labels without and with the class
};

// exp(x) for x <= 0; below -87 it is exp(-87), about 1.6e-38. NaN stays NaN.
//
// x = k ln 2 + r with |r| <= ln(2) / 2, then the Taylor series of exp(r), whose first dropped term is
// below 2e-7 of the result, then 2^k in the exponent bits.
__device__ __forceinline__ float exp_nonpositive(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
    float shifted = fmaf(x, 1.44269504f, round);
    float k = shifted - round;
    float r = fmaf(k, -0.693145752f, x);  // ln 2 in two parts, the first with few bits
    r = fmaf(k, -1.42860677e-6f, r);
    float series = 1.0f / 720.0f;
    series = fmaf(series, r, 1.0f / 120.0f);
    series = fmaf(series, r, 1.0f / 24.0f);
    series = fmaf(series, r, 1.0f / 6.0f);
    series = fmaf(series, r, 0.5f);
    series = fmaf(series, r, 1.0f);
    series = fmaf(series, r, 1.0f);
    return series * __uint_as_float((__float_as_uint(shifted) + 127u) << 23);
}

struct Term {
    float loss, slope;
};

// Loss and dL/dx of one logit, unweighted: x = -z for a positive and z for a negative label,
// L = q^gamma softplus(x), dL/dx = q^gamma (q + gamma (1 - q) softplus(x)) with q = sigmoid(x).
__device__ __forceinline__ Term term(float x, float gamma) {
    float e = exp_nonpositive(-fabsf(x));
    // Two quotients from one division: large = 1 / (1 + e), f = e / (2 + e).
    float a = 1.0f + e, b = 2.0f + e;
    float inverse = 1.0f / (a * b);
    float large = inverse * b;
    float f = e * (inverse * a);
    // ln(1 + e) = 2 atanh(f), f <= 1/3; the first dropped term is below 2e-7 of the result.
    float square = f * f;
    float series = 1.0f / 11.0f;
    series = fmaf(series, square, 1.0f / 9.0f);
    series = fmaf(series, square, 1.0f / 7.0f);
    series = fmaf(series, square, 1.0f / 5.0f);
    series = fmaf(series, square, 1.0f / 3.0f);
    series = fmaf(series, square, 1.0f);
    float log = 2.0f * f * series;
    float small = e * large;
    // Comparisons keep NaN: e is NaN, and both arms compute with it.
    bool above = x > 0.0f;
    float q = above ? large : small, p = above ? small : large;
    float softplus = above ? x + log : log;
    float power;
    if (gamma == 0.0f) {
        return Term{softplus, q};
    } else if (gamma == 2.0f) {
        power = q * q;
    } else {
        // Finite, because a small gamma times the logarithm of 0 must not be NaN.
        float log_q = above ? -log : x - log;
        power = exp_nonpositive(gamma * (log_q < -1e30f ? -1e30f : log_q));
    }
    return Term{power * softplus, power * (q + gamma * p * softplus)};
}

// Adds one element's loss; returns its gradient.
__device__ __forceinline__ float element(float logit, u64 label, u32 c, const SigmoidShared &shared,
                                         float gamma, float scale, double &loss) {
    if (label == UNKNOWN_LABEL) {
        return 0.0f;
    }
    bool positive = label >> c & 1u;
    float sign = positive ? -1.0f : 1.0f;
    float weight = positive ? shared.positive[c] : shared.negative[c];
    Term t = term(sign * logit, gamma);
    loss += (double)(weight * t.loss);
    return sign * weight * t.slope * scale;
}

// `logits`, `dlogits` [rows, classes]; `labels` [rows]; `class_weights` [2, classes], for labels without and with the
// class. A block makes `loads` loads of 4 elements per thread.
__device__ __forceinline__ void sigmoid_loss(const float *logits, const u64 *labels, u32 elements,
                                             u32 classes, const float *class_weights, float gamma,
                                             const float *scale, u32 loads, u32 wide,
                                             float *dlogits, double *partials,
                                             SigmoidShared &shared) {
    if (threadIdx.x < classes) {
        shared.negative[threadIdx.x] = class_weights[threadIdx.x];
        shared.positive[threadIdx.x] = class_weights[classes + threadIdx.x];
    }
    __syncthreads();
    float factor = *scale;
    double loss = 0.0;
    for (u32 k = 0; k < loads; ++k) {
        u32 first = ((blockIdx.x * loads + k) * blockDim.x + threadIdx.x) * LOGITS_PER_LOAD;
        if (first >= elements) {
            break;
        }
        u32 there = min(LOGITS_PER_LOAD, elements - first);
        float in[LOGITS_PER_LOAD], gradient[LOGITS_PER_LOAD];
        bool whole = wide && there == LOGITS_PER_LOAD;
        if (whole) {
            float4 v = load_float4(logits + first);
            in[0] = v.x, in[1] = v.y, in[2] = v.z, in[3] = v.w;
        } else {
            for (u32 n = 0; n < there; ++n) {
                in[n] = logits[first + n];
            }
        }
        u32 row = first / classes, c = first % classes;
        u64 label = labels[row];
        for (u32 n = 0; n < there; ++n) {
            if (c == classes) {
                c = 0;
                label = labels[++row];
            }
            gradient[n] = element(in[n], label, c++, shared, gamma, factor, loss);
        }
        if (whole) {
            store_float4(dlogits + first,
                         float4{gradient[0], gradient[1], gradient[2], gradient[3]});
        } else {
            for (u32 n = 0; n < there; ++n) {
                dlogits[first + n] = gradient[n];
            }
        }
    }
    loss = block_sum(loss, shared.scratch);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = loss;
    }
}
