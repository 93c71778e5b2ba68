// The draws of augmentation: the twin's `philox4x32` and `draw`, bit for bit.
#pragma once
#include "common.cuh"

// The strengths, which the host knows when it launches; all 0 switch augmentation off.
struct Augment {
    u32 flip, quarter_turns, offset;
    float brightness, contrast, saturation;
};

// The seed and the epoch. Kernels read them from device memory, because a captured graph must see each step's own.
struct StepSeed {
    u64 seed;
    u32 epoch, unused;
};

struct Draw {
    u32 flip, turns;
    int dx, dy;
    float brightness, contrast, saturation;
};

struct Words {
    u32 x[4];
};

// Philox4x32-10 (Salmon et al., SC'11).
__device__ __forceinline__ Words philox4x32(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
    for (int round = 0; round < 10; ++round) {
        if (round > 0) {
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (u32)p0;
    }
    return Words{{c0, c1, c2, c3}};
}

// Uniform integer in -limit..=limit.
__device__ __forceinline__ int draw_shift(u32 word, u32 limit) {
    return (int)(u32)((u64)word * (2u * limit + 1u) >> 32) - (int)limit;
}

// Uniform factor in max(0, 1 - strength)..1 + strength.
__device__ __forceinline__ float draw_factor(u32 word, float strength) {
    float unit = (float)(word >> 8) * (1.0f / 16777216.0f);
    float low = fmaxf(1.0f - strength, 0.0f);
    return low + (1.0f + strength - low) * unit;
}

__device__ __forceinline__ Draw draw(StepSeed step, u64 sample_id, const Augment &aug) {
    u32 k0 = (u32)step.seed, k1 = (u32)(step.seed >> 32);
    u32 low = (u32)sample_id, high = (u32)(sample_id >> 32);
    Words first = philox4x32(low, high, step.epoch, 0, k0, k1);
    Words second = philox4x32(low, high, step.epoch, 1, k0, k1);
    Draw d;
    d.flip = aug.flip ? first.x[0] >> 31 : 0;
    d.turns = aug.quarter_turns ? first.x[0] >> 29 & 3u : 0;
    d.dx = draw_shift(first.x[1], aug.offset);
    d.dy = draw_shift(first.x[2], aug.offset);
    d.brightness = draw_factor(first.x[3], aug.brightness);
    d.contrast = draw_factor(second.x[0], aug.contrast);
    d.saturation = draw_factor(second.x[1], aug.saturation);
    return d;
}
