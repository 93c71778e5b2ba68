// 8-bit images to a normalised channels-last batch: crop, mirror, quarter turn, jitter, normalise.
// Twin: crop.rs, bit for bit.
//
// Block (sample, band): a block takes every gridDim.y-th tile of its sample. Where contrast needs the mean grey of the
// whole patch, each block of the sample sums it for itself. The sums are integers, so their order does not matter, and
// the second read hits the cache.
#include "affine.cuh"
#include "draw.cuh"
#include "shade.cuh"
#include "tile.cuh"

// An image in device memory: [height, width, 3] bytes.
struct Image {
    u64 data;
    u32 height, width;
};

struct Spec {
    u64 sample_id;
    u32 image, y, x, unused;
};

// 7 aligned chunks hold a row of 96 bytes at any alignment. A row takes 29 words: with an odd number, the words of a
// column lie in different banks.
#define CHUNKS 7
#define PITCH 29

// The window of one sample: rows `stride` bytes apart, and the image that may be read.
struct Window {
    u64 start, stride, image_begin, image_end;
};

// The 16 bytes at an aligned address. Bytes outside of the image are never read and come as 0.
__device__ __forceinline__ uint4 load_chunk(u64 at, const Window &w) {
    if (at >= w.image_begin && at + 16 <= w.image_end) {
        return load16((const void *)at);
    }
    u32 words[4] = {0, 0, 0, 0};
    for (u32 k = 0; k < 16; ++k) {
        if (at + k >= w.image_begin && at + k < w.image_end) {
            words[k / 4] |= (u32)(*(const u8 *)(at + k)) << 8 * (k % 4);
        }
    }
    return uint4{words[0], words[1], words[2], words[3]};
}

// The lower `n` bytes of a word, for any n.
__device__ __forceinline__ u32 bytes_below(int n) {
    return n <= 0 ? 0u : n >= 4 ? ~0u : (1u << 8 * n) - 1u;
}

// Per channel: the sum of the values up to a limit, and the number of values above it.
struct Sums {
    u32 below[3], above[3];
};

// Adds the bytes begin..end of the chunk at `at`; begin is the first byte of a row, hence red.
__device__ __forceinline__ void add_chunk(Sums &sums, uint4 chunk, u64 at, u64 begin, u64 end,
                                          u32 limits) {
    u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    int first = begin > at ? (int)(begin - at) : 0;
    int past = end < at + 16 ? (int)(end - at) : 16;
    u32 below[3] = {0, 0, 0}, above[3] = {0, 0, 0};
    for (int w = 0; w < 4; ++w) {
        u32 word = words[w] & bytes_below(past - 4 * w) & ~bytes_below(first - 4 * w);
        u32 over = __vcmpgtu4(word, limits);
        u32 kept = word & ~over;
        over &= 0x01010101u;
        // Of the four bytes of a word, the first and the last have the same channel.
        below[w % 3] = __dp4a(kept, 0x01000001u, below[w % 3]);
        below[(w + 1) % 3] = __dp4a(kept, 0x00000100u, below[(w + 1) % 3]);
        below[(w + 2) % 3] = __dp4a(kept, 0x00010000u, below[(w + 2) % 3]);
        above[w % 3] = __dp4a(over, 0x01000001u, above[w % 3]);
        above[(w + 1) % 3] = __dp4a(over, 0x00000100u, above[(w + 1) % 3]);
        above[(w + 2) % 3] = __dp4a(over, 0x00010000u, above[(w + 2) % 3]);
    }
    // Channel of the chunk's first byte; it may lie up to 15 bytes before the row.
    u32 phase = (u32)(at + 15 - begin) % 3;
    for (u32 c = 0; c < 3; ++c) {
        u32 k = (c + 3 - phase) % 3;
        sums.below[c] += k == 0 ? below[0] : k == 1 ? below[1] : below[2];
        sums.above[c] += k == 0 ? above[0] : k == 1 ? above[1] : above[2];
    }
}

// Mean grey of the window after brightness, 0..1; only thread 0 gets it.
__device__ __forceinline__ float mean_grey(const Window &w, u32 size, float brightness,
                                           u64 *scratch) {
    // Values above the limit saturate at 1.
    u32 limit = (u32)fminf(255.0f / brightness, 255.0f);
    u32 per_row = (3 * size + 30) / 16;
    Sums sums = {{0, 0, 0}, {0, 0, 0}};
    for (u32 k = threadIdx.x; k < size * per_row; k += blockDim.x) {
        u64 begin = w.start + k / per_row * w.stride, end = begin + 3 * size;
        u64 at = (begin & ~15ull) + 16 * (k % per_row);
        if (at < end) {
            add_chunk(sums, load_chunk(at, w), at, begin, end, limit * 0x01010101u);
        }
    }
    const float grey_of[3] = {GREY_R, GREY_G, GREY_B};
    double grey = 0.0;
    for (u32 c = 0; c < 3; ++c) {
        u64 below = block_sum<u64>(sums.below[c], scratch);
        u64 above = block_sum<u64>(sums.above[c], scratch);
        double linear = (double)below * (double)brightness / 255.0;
        grey += (double)grey_of[c] * (linear + (double)above);
    }
    return (float)(grey / (double)((u64)size * size));
}

// Start of an axis of the window after the shift, clamped into the image.
__device__ __forceinline__ u32 shifted(u32 start, int shift, u32 length, u32 size) {
    long long moved = max((long long)start + shift, 0ll);
    return (u32)min(moved, (long long)(length - size));
}

// Copies the source rectangle of a tile to shared memory, row r from word r * PITCH on, each from the
// aligned address at or before its first byte.
__device__ __forceinline__ void load_tile(const Window &w, const Tile &t, u32 *words) {
    for (u32 k = threadIdx.x; k < t.source_height * CHUNKS; k += blockDim.x) {
        u32 row = k / CHUNKS, chunk = k % CHUNKS;
        u64 begin = w.start + (t.top + row) * w.stride + 3 * t.left;
        u64 at = (begin & ~15ull) + 16 * chunk;
        if (at < begin + 3 * t.source_width) {
            uint4 bytes = load_chunk(at, w);
            u32 *to = words + row * PITCH + 4 * chunk;
            to[0] = bytes.x;
            to[1] = bytes.y;
            to[2] = bytes.z;
            to[3] = bytes.w;
        }
    }
}

template <class Out>
__device__ __forceinline__ void shade_tile(const Window &w, const Pose &pose, const Tile &t,
                                           const Jitter &jitter, const float *toned,
                                           const u32 *words, Out *finished) {
    const u8 *bytes = (const u8 *)words;
    for (u32 k = threadIdx.x; k < TILE * TILE; k += blockDim.x) {
        u32 i = k / TILE, j = k % TILE;
        if (i >= t.height || j >= t.width) {
            continue;
        }
        Place p = source_of(pose, t.i + i, t.j + j);
        u32 row = p.y - t.top;
        u32 skew = (u32)(w.start + p.y * w.stride + 3 * t.left) & 15u;
        const u8 *rgb = bytes + row * (4 * PITCH) + skew + 3 * (p.x - t.left);
        Pixel pixel = finish(Pixel{toned[rgb[0]], toned[rgb[1]], toned[rgb[2]]}, jitter);
        Out *to = finished + i * TILE_ELEMENTS + 3 * j;
        put(to, pixel.r);
        put(to + 1, pixel.g);
        put(to + 2, pixel.b);
    }
}

struct Shared {
    u64 sums[WARP];
    float toned[256];
    u32 words[TILE * PITCH];
    Jitter jitter;
};

template <class Out>
__device__ __forceinline__ void patch_crop(const Image *images, u32 image_count, const Spec *specs,
                                           const StepSeed *step, u32 size, const Augment &aug,
                                           u32 wide, Shared &shared, Out *finished, Out *out) {
    Spec spec = specs[blockIdx.x];
    u64 elements = 3ull * size * size;
    out += blockIdx.x * elements;
    Image image = {0, 0, 0};
    if (spec.image < image_count) {
        image = images[spec.image];
    }
    if (image.height < size || image.width < size || spec.y > image.height - size ||
        spec.x > image.width - size) {
        fill_with_nan(out, elements);
        return;  // the whole block returns: the condition depends on the sample alone
    }
    Draw d = draw(*step, spec.sample_id, aug);
    u32 top = shifted(spec.y, d.dy, image.height, size);
    u32 left = shifted(spec.x, d.dx, image.width, size);
    Window w;
    w.stride = 3ull * image.width;
    w.start = image.data + top * w.stride + 3ull * left;
    w.image_begin = image.data;
    w.image_end = image.data + image.height * w.stride;
    float mean = d.contrast != 1.0f ? mean_grey(w, size, d.brightness, shared.sums) : 0.0f;
    if (threadIdx.x == 0) {
        shared.jitter = make_jitter(d, mean);
    }
    __syncthreads();
    Jitter jitter = shared.jitter;
    for (u32 value = threadIdx.x; value < 256; value += blockDim.x) {
        shared.toned[value] = tone((float)value * UNIT, jitter);
    }
    Pose pose = {size, d.flip, d.turns};
    u32 tiles = tiles_across(size) * tiles_across(size);
    for (u32 index = blockIdx.y; index < tiles; index += gridDim.y) {
        Tile t = make_tile(pose, index);
        load_tile(w, t, shared.words);
        __syncthreads();
        shade_tile(w, pose, t, jitter, shared.toned, shared.words, finished);
        __syncthreads();
        // No barrier here: the next tile's load writes other memory than this store reads.
        store_tile(t, size, wide, finished, out);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    fovea_patch_crop_f32(const Image *images, u32 image_count, const Spec *specs,
                         const StepSeed *step, u32 size, u32 flip, u32 quarter_turns, u32 offset,
                         float brightness, float contrast, float saturation, u32 wide,
                         float *out) {
    __shared__ Shared shared;
    __shared__ __align__(16) float finished[TILE * TILE_ELEMENTS];
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    patch_crop(images, image_count, specs, step, size, aug, wide, shared, finished, out);
}

extern "C" __global__ void __launch_bounds__(256)
    fovea_patch_crop_bf16(const Image *images, u32 image_count, const Spec *specs,
                          const StepSeed *step, u32 size, u32 flip, u32 quarter_turns, u32 offset,
                          float brightness, float contrast, float saturation, u32 wide,
                          bf16 *out) {
    __shared__ Shared shared;
    __shared__ __align__(16) bf16 finished[TILE * TILE_ELEMENTS];
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    patch_crop(images, image_count, specs, step, size, aug, wide, shared, finished, out);
}

struct ShowShared {
    u64 sums[WARP];
    Jitter jitter;
    ShownSample drawn;
};

// As patch_crop for samples that are rotated, scaled or erased: every thread interpolates its own pixels.
template <class Out>
__device__ __forceinline__ void patch_show(const Image *images, u32 image_count, const Spec *specs,
                                           const StepSeed *step, u32 size, const Augment &aug,
                                           const Interpolation &strengths, ShowShared &shared,
                                           Out *out) {
    Spec spec = specs[blockIdx.x];
    u64 elements = 3ull * size * size;
    out += blockIdx.x * elements;
    Image image = {0, 0, 0};
    if (spec.image < image_count) {
        image = images[spec.image];
    }
    if (image.height < size || image.width < size || spec.y > image.height - size ||
        spec.x > image.width - size) {
        fill_with_nan(out, elements);
        return;  // the whole block returns: the condition depends on the sample alone
    }
    Draw d = draw(*step, spec.sample_id, aug);
    u32 top = shifted(spec.y, d.dy, image.height, size);
    u32 left = shifted(spec.x, d.dx, image.width, size);
    Window w;
    w.stride = 3ull * image.width;
    w.start = image.data + top * w.stride + 3ull * left;
    w.image_begin = image.data;
    w.image_end = image.data + image.height * w.stride;
    float mean = d.contrast != 1.0f ? mean_grey(w, size, d.brightness, shared.sums) : 0.0f;
    if (threadIdx.x == 0) {
        shared.jitter = make_jitter(d, mean);
        shared.drawn = draw_shown(*step, spec.sample_id, strengths, top, left, size);
    }
    __syncthreads();
    Jitter jitter = shared.jitter;
    ShownSample drawn = shared.drawn;
    Pose pose = {size, d.flip, d.turns};
    u32 pixels = size * size;
    for (u32 k = blockIdx.y * blockDim.x + threadIdx.x; k < pixels; k += gridDim.y * blockDim.x) {
        u32 i = k / size, j = k % size;
        Place p = source_of(pose, i, j);
        float rgb[3];
        show_point((const u8 *)image.data, image.height, image.width, drawn.map, p.y, p.x, rgb);
        Pixel pixel = finish(Pixel{tone(rgb[0] * UNIT, jitter), tone(rgb[1] * UNIT, jitter),
                                   tone(rgb[2] * UNIT, jitter)},
                             jitter);
        if (is_erased(drawn.erased, i, j)) {
            pixel = Pixel{0.0f, 0.0f, 0.0f};
        }
        put(out + 3ull * k, pixel.r);
        put(out + 3ull * k + 1, pixel.g);
        put(out + 3ull * k + 2, pixel.b);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    fovea_patch_show_f32(const Image *images, u32 image_count, const Spec *specs,
                         const StepSeed *step, u32 size, u32 flip, u32 quarter_turns, u32 offset,
                         float brightness, float contrast, float saturation, float rotation,
                         float scale, float erasing, float *out) {
    __shared__ ShowShared shared;
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    Interpolation strengths = {rotation, scale, erasing};
    patch_show(images, image_count, specs, step, size, aug, strengths, shared, out);
}

extern "C" __global__ void __launch_bounds__(256)
    fovea_patch_show_bf16(const Image *images, u32 image_count, const Spec *specs,
                          const StepSeed *step, u32 size, u32 flip, u32 quarter_turns, u32 offset,
                          float brightness, float contrast, float saturation, float rotation,
                          float scale, float erasing, bf16 *out) {
    __shared__ ShowShared shared;
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    Interpolation strengths = {rotation, scale, erasing};
    patch_show(images, image_count, specs, step, size, aug, strengths, shared, out);
}
