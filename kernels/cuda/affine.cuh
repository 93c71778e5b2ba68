// Turning by any angle, scaling and erasing. Twin: affine.rs, bit for bit; the polynomials and their order are part of the
// definition.
#pragma once
#include "common.cuh"
#include "draw.cuh"

// Strengths that only the interpolating kernels read.
struct Interpolation {
    float rotation, scale, erasing;
};

// A rectangle of a sample; without height there is none.
struct Rectangle {
    u32 top, left, height, width;
};

// The map from pixels of the upright window to points of the image: cosine and sine over the scale, the middle of the
// window, and where that is in the image.
struct PointMap {
    float along, across, middle, y, x;
};

struct ShownSample {
    PointMap map;
    Rectangle erased;
};

// A word as a number in 0..1.
__device__ __forceinline__ double unit_of(u32 word) {
    return (double)(word >> 8) * (1.0 / 16777216.0);
}

__device__ __forceinline__ double exp_around_0(double x) {
    double sum = 1.0;
    for (u32 k = 20; k >= 1; --k) {
        sum = 1.0 + x / (double)k * sum;
    }
    return sum;
}

// The rectangle that is erased of a square of `size` pixels.
__device__ __forceinline__ Rectangle draw_erased(StepSeed step, u64 sample_id, float probability,
                                                 u32 size) {
    u32 k0 = (u32)step.seed, k1 = (u32)(step.seed >> 32);
    u32 low = (u32)sample_id, high = (u32)(sample_id >> 32);
    Rectangle none = {0, 0, 0, 0};
    if (unit_of(philox4x32(low, high, step.epoch, 2, k0, k1).x[0]) >= (double)probability) {
        return none;
    }
    double area = (double)size * (double)size;
    for (u32 attempt = 0; attempt < 10; ++attempt) {
        Words words = philox4x32(low, high, step.epoch, 3 + attempt, k0, k1);
        double share = 0.02 + (0.33 - 0.02) * unit_of(words.x[0]);
        const double log_low = -1.203972804325936, log_high = 1.1939224684724346;
        double aspect = exp_around_0(log_low + (log_high - log_low) * unit_of(words.x[1]));
        u32 height = (u32)(sqrt(area * share * aspect) + 0.5);
        u32 width = (u32)(sqrt(area * share / aspect) + 0.5);
        if (height >= size || width >= size) {
            continue;
        }
        return Rectangle{(u32)((u64)words.x[2] * (size - height + 1) >> 32),
                         (u32)((u64)words.x[3] * (size - width + 1) >> 32), height, width};
    }
    return none;
}

__device__ __forceinline__ bool is_erased(const Rectangle &r, u32 i, u32 j) {
    return i >= r.top && i - r.top < r.height && j >= r.left && j - r.left < r.width;
}

// What is drawn for a sample whose window of `size` pixels lies at `top`, `left` of its image.
__device__ __forceinline__ ShownSample draw_shown(StepSeed step, u64 sample_id,
                                                  const Interpolation &strengths, u32 top, u32 left,
                                                  u32 size) {
    u32 k0 = (u32)step.seed, k1 = (u32)(step.seed >> 32);
    Words words = philox4x32((u32)sample_id, (u32)(sample_id >> 32), step.epoch, 1, k0, k1);
    float unit = (float)(words.x[2] >> 8) * (1.0f / 16777216.0f);
    float degrees = (unit * 2.0f - 1.0f) * strengths.rotation;
    double scale = (double)draw_factor(words.x[3], strengths.scale);
    double half = (double)degrees * (3.14159265358979323846 / 360.0);
    double square = half * half, sine = 1.0, cosine = 1.0;
    for (u32 k = 9; k >= 1; --k) {
        sine = 1.0 - square / (double)(2 * k * (2 * k + 1)) * sine;
        cosine = 1.0 - square / (double)((2 * k - 1) * 2 * k) * cosine;
    }
    sine *= half;
    ShownSample drawn;
    float middle = (float)(size - 1) * 0.5f;
    drawn.map.along = (float)((cosine * cosine - sine * sine) / scale);
    drawn.map.across = (float)(2.0 * sine * cosine / scale);
    drawn.map.middle = middle;
    drawn.map.y = (float)top + middle;
    drawn.map.x = (float)left + middle;
    drawn.erased = draw_erased(step, sample_id, strengths.erasing, size);
    return drawn;
}

// The largest whole number up to `value`, which is far inside the range of int.
__device__ __forceinline__ int whole_below(float value) {
    int whole = (int)value;
    return (float)whole > value ? whole - 1 : whole;
}

// Pixel `channel` at row y and column x; black outside of the image.
template <class T>
__device__ __forceinline__ float pixel_at(const T *image, u32 height, u32 width, int y, int x,
                                          u32 channel) {
    if (y < 0 || x < 0 || (u32)y >= height || (u32)x >= width) {
        return 0.0f;
    }
    return (float)image[((u64)y * width + x) * 3 + channel];
}

// Values 0..255 of the point that pixel (y, x) of the upright window shows, between the four pixels around it.
template <class T>
__device__ __forceinline__ void show_point(const T *image, u32 height, u32 width, const PointMap &map,
                                           u32 y, u32 x, float *rgb) {
    float dy = (float)y - map.middle, dx = (float)x - map.middle;
    float at_y = map.y + (map.across * dx + map.along * dy);
    float at_x = map.x + (map.along * dx - map.across * dy);
    int row = whole_below(at_y), column = whole_below(at_x);
    float down = at_y - (float)row, right = at_x - (float)column;
    float up = 1.0f - down, left = 1.0f - right;
    for (u32 c = 0; c < 3; ++c) {
        float upper = left * pixel_at(image, height, width, row, column, c) +
                      right * pixel_at(image, height, width, row, column + 1, c);
        float lower = left * pixel_at(image, height, width, row + 1, column, c) +
                      right * pixel_at(image, height, width, row + 1, column + 1, c);
        rgb[c] = up * upper + down * lower;
    }
}
