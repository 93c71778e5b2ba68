// Colour jitter and normalisation of one pixel: the formulas of the twin's shade.rs in its order.
#pragma once
#include "common.cuh"
#include "draw.cuh"

#define UNIT (1.0f / 255.0f)
#define GREY_R 0.2989f
#define GREY_G 0.587f
#define GREY_B 0.114f

// Colour jitter of one sample whose mean grey is known.
struct Jitter {
    u32 active;      // 0: the pixel is only normalised
    u32 saturating;  // 0: saturation is exactly 1
    float brightness, contrast, lift, saturation;
};

struct Pixel {
    float r, g, b;
};

// The caller passes 0 for `mean_grey` where contrast is exactly 1, because it did not compute the mean.
__device__ __forceinline__ Jitter make_jitter(const Draw &d, float mean_grey) {
    Jitter j;
    j.active = d.brightness != 1.0f || d.contrast != 1.0f || d.saturation != 1.0f;
    j.saturating = d.saturation != 1.0f;
    j.brightness = d.brightness;
    j.contrast = d.contrast;
    j.lift = (1.0f - d.contrast) * mean_grey;
    j.saturation = d.saturation;
    return j;
}

// Brightness, then contrast, of a value in 0..1.
__device__ __forceinline__ float tone(float unit, const Jitter &j) {
    if (!j.active) {
        return unit;
    }
    float bright = __saturatef(unit * j.brightness);
    return __saturatef(bright * j.contrast + j.lift);
}

__device__ __forceinline__ float saturate_channel(float value, float grey_part, const Jitter &j) {
    return __saturatef(value * j.saturation + grey_part);
}

// Saturation, then (x - mean) / std.
__device__ __forceinline__ Pixel finish(Pixel p, const Jitter &j) {
    if (j.saturating) {
        float grey = GREY_R * p.r + GREY_G * p.g + GREY_B * p.b;
        float grey_part = (1.0f - j.saturation) * grey;
        p.r = saturate_channel(p.r, grey_part, j);
        p.g = saturate_channel(p.g, grey_part, j);
        p.b = saturate_channel(p.b, grey_part, j);
    }
    return Pixel{p.r * (1.0f / 0.229f) + (-0.485f / 0.229f),
                 p.g * (1.0f / 0.224f) + (-0.456f / 0.224f),
                 p.b * (1.0f / 0.225f) + (-0.406f / 0.225f)};
}
