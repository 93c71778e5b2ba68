// Cross-entropy over a softmax: the summed loss and dlogits in one pass. Twin: mod.rs.
//
// A row has few classes and an image or patch has one row, so a thread takes a whole row, and f64 costs nothing that
// shows: every term has the twin's bits.
#include "common.cuh"

#define MOST_CLASSES 63

// exp(x) for x <= 0; below -700 it is exp(-700). NaN stays NaN. Twin: sigmoid/math.rs.
__device__ __forceinline__ double exp_nonpositive(double x) {
    x = x < -700.0 ? -700.0 : x;
    double shifted = x * 1.4426950408889634 + 6755399441055744.0;
    double k = shifted - 6755399441055744.0;
    double r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10;
    double series = 1.0 / 6227020800.0;
    series = series * r + 1.0 / 479001600.0;
    series = series * r + 1.0 / 39916800.0;
    series = series * r + 1.0 / 3628800.0;
    series = series * r + 1.0 / 362880.0;
    series = series * r + 1.0 / 40320.0;
    series = series * r + 1.0 / 5040.0;
    series = series * r + 1.0 / 720.0;
    series = series * r + 1.0 / 120.0;
    series = series * r + 1.0 / 24.0;
    series = series * r + 1.0 / 6.0;
    series = series * r + 0.5;
    series = series * r + 1.0;
    series = series * r + 1.0;
    u64 power = ((u64)__double_as_longlong(shifted) + 1023ull) << 52;
    return series * __longlong_as_double((long long)power);
}

// ln(1 + e) for e in [0, 1]. NaN stays NaN.
__device__ __forceinline__ double log1p_unit(double e) {
    double f = e / (2.0 + e);
    double square = f * f;
    double series = 1.0 / 31.0;
    for (int odd = 29; odd > 0; odd -= 2) {
        series = series * square + 1.0 / (double)odd;
    }
    return 2.0 * f * series;
}

// ln(x) for a normal x of at least 1. NaN stays NaN.
__device__ __forceinline__ double log_from_one(double x) {
    if (x != x) {
        return x;
    }
    u64 bits = (u64)__double_as_longlong(x);
    double k = (double)(bits >> 52) - 1023.0;
    u64 mantissa = (bits & ((1ull << 52) - 1ull)) | (1023ull << 52);
    double m = __longlong_as_double((long long)mantissa);
    return k * 0.6931471805599453 + log1p_unit(m - 1.0);
}

// Returns the loss of a row, and writes its scaled gradient. `weights` [classes].
__device__ __forceinline__ double row_loss(const float *logits, u32 label, u32 classes,
                                           const float *weights, double smoothing, double scale,
                                           float *dlogits) {
    u32 first = 0;
    for (u32 c = 0; c < classes; ++c) {
        if (logits[c] > logits[first]) {
            first = c;
        }
    }
    double highest = (double)logits[first];
    double rest = 0.0, total = 0.0;
    for (u32 c = 0; c < classes; ++c) {
        if (c != first) {
            rest += exp_nonpositive((double)logits[c] - highest);
        }
        total += (double)weights[c];
    }
    double own = exp_nonpositive(highest - highest);  // 1, or NaN
    double sum = own + rest;
    double log_sum = rest <= 1.0 ? log1p_unit(rest) + (own - 1.0) : log_from_one(sum);
    double share = smoothing / (double)classes;
    double of_label = (double)weights[label];
    double sharp = (1.0 - smoothing) * of_label;
    double loss = sharp * (log_sum - ((double)logits[label] - highest));
    if (smoothing > 0.0) {
        for (u32 c = 0; c < classes; ++c) {
            loss += share * (double)weights[c] * (log_sum - ((double)logits[c] - highest));
        }
    }
    double all = sharp + share * total;
    for (u32 c = 0; c < classes; ++c) {
        double p = exp_nonpositive((double)logits[c] - highest) / sum;
        double slope;
        if (c == label) {
            double others = c == first ? rest / sum : 1.0 - p;
            slope = share * (total - of_label) - all * others;
        } else {
            slope = all * p - share * (double)weights[c];
        }
        dlogits[c] = (float)(slope * scale);
    }
    return loss;
}

// `logits`, `dlogits` [rows, classes]; `labels` [rows]; `class_weights` [classes]. A thread takes one row.
extern "C" __global__ void __launch_bounds__(256)
    fovea_cross_entropy_loss(const float *logits, const u64 *labels, u32 rows, u32 classes,
                             const float *class_weights, float smoothing, const float *scale,
                             float *dlogits, double *partials) {
    __shared__ float weights[MOST_CLASSES];
    __shared__ double scratch[WARP];
    if (threadIdx.x < classes) {
        weights[threadIdx.x] = class_weights[threadIdx.x];
    }
    __syncthreads();
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    double loss = 0.0;
    if (row < rows) {
        u64 label = labels[row];
        u64 at = (u64)row * classes;
        if (label < classes) {
            loss = row_loss(logits + at, (u32)label, classes, weights, (double)smoothing,
                            (double)*scale, dlogits + at);
        } else {
            // No label: loss 0, gradient 0.
            for (u32 c = 0; c < classes; ++c) {
                dlogits[at + c] = 0.0f;
            }
        }
    }
    loss = block_sum(loss, scratch);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = loss;
    }
}
