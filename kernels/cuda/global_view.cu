// The whole-image branch's input from resized images: mirror, quarter turn, jitter, normalise. Twin: global.rs, bit for
// bit.
//
// With contrast there are three launches: the grey of every row, their mean, the view. Without it, only the last.
#include "affine.cuh"
#include "draw.cuh"
#include "shade.cuh"
#include "tile.cuh"

// Lanes of a row's grey sum. Their number is part of the definition: it fixes the order of the additions.
#define LANES 24u
#define PITCH 97u

struct Sources {
    const float *resized;  // [count, size, size, 3], 0..255
    u32 count;
    const u32 *selection;  // [k]: index of each into resized
};

__device__ __forceinline__ const float *source(const Sources &s, u32 size, u32 slot) {
    u32 index = s.selection[slot];
    return index < s.count ? s.resized + (u64)index * size * size * 3 : 0;
}

// One warp per row.
extern "C" __global__ void __launch_bounds__(256)
    fovea_view_rows(const float *resized, u32 count, const u32 *selection, const u64 *sample_ids,
                    const StepSeed *step, u32 size, u32 flip, u32 quarter_turns, u32 offset,
                    float brightness, float contrast, float saturation, double *rows) {
    u32 slot = blockIdx.y, lane = threadIdx.x % WARP;
    u32 y = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    Sources sources = {resized, count, selection};
    const float *image = source(sources, size, slot);
    if (y >= size || image == 0) {
        return;  // the whole warp returns, and only shuffles follow
    }
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    float factor = draw(*step, sample_ids[slot], aug).brightness;
    const float *row = image + (u64)y * size * 3;
    double mine = 0.0;
    if (lane < LANES) {
        for (u32 k = lane; k < 3 * size; k += LANES) {
            mine += (double)__saturatef(row[k] * UNIT * factor);
        }
    }
    const float grey_of[3] = {GREY_R, GREY_G, GREY_B};
    double sum = 0.0;
    for (u32 k = 0; k < LANES; ++k) {
        sum += (double)grey_of[k % 3] * __shfl_sync(ALL_LANES, mine, k);
    }
    if (lane == 0) {
        rows[(u64)slot * size + y] = sum;
    }
}

// One block per image: rows are added in order, by one thread.
extern "C" __global__ void __launch_bounds__(256)
    fovea_view_mean(const double *rows, u32 size, float *means) {
    __shared__ double some[256];
    double sum = 0.0;
    for (u32 from = 0; from < size; from += blockDim.x) {
        u32 y = from + threadIdx.x;
        some[threadIdx.x] = y < size ? rows[(u64)blockIdx.x * size + y] : 0.0;
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 there = min(blockDim.x, size - from);
            for (u32 k = 0; k < there; ++k) {
                sum += some[k];
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        means[blockIdx.x] = (float)(sum / (double)((u64)size * size));
    }
}

// Copies the source rectangle of a tile, row r to pixels[r * PITCH].
__device__ __forceinline__ void load_tile(const float *image, u32 size, u32 wide, const Tile &t,
                                          float *pixels) {
    u32 elements = 3 * t.source_width;
    const float *corner = image + ((u64)t.top * size + t.left) * 3;
    if (wide) {
        const u32 loads = TILE_ELEMENTS / 4;
        for (u32 k = threadIdx.x; k < t.source_height * loads; k += blockDim.x) {
            u32 row = k / loads, column = k % loads * 4;
            if (column < elements) {
                float4 v = load_float4(corner + (u64)row * size * 3 + column);
                float *to = pixels + row * PITCH + column;
                to[0] = v.x;
                to[1] = v.y;
                to[2] = v.z;
                to[3] = v.w;
            }
        }
        return;
    }
    for (u32 k = threadIdx.x; k < t.source_height * TILE_ELEMENTS; k += blockDim.x) {
        u32 row = k / TILE_ELEMENTS, column = k % TILE_ELEMENTS;
        if (column < elements) {
            pixels[row * PITCH + column] = corner[(u64)row * size * 3 + column];
        }
    }
}

// Block (image, band) takes every gridDim.y-th tile of its image.
template <class Out>
__device__ __forceinline__ void view(const Sources &sources, const u64 *sample_ids,
                                     const StepSeed *step, u32 size, const Augment &aug,
                                     const float *means, u32 wide_in, u32 wide_out, float *pixels,
                                     Out *finished, Out *out) {
    u64 elements = 3ull * size * size;
    out += blockIdx.x * elements;
    const float *image = source(sources, size, blockIdx.x);
    if (image == 0) {
        fill_with_nan(out, elements);
        return;  // the whole block returns: the condition depends on the image alone
    }
    Draw d = draw(*step, sample_ids[blockIdx.x], aug);
    Jitter jitter = make_jitter(d, means ? means[blockIdx.x] : 0.0f);
    Pose pose = {size, d.flip, d.turns};
    u32 tiles = tiles_across(size) * tiles_across(size);
    for (u32 index = blockIdx.y; index < tiles; index += gridDim.y) {
        Tile t = make_tile(pose, index);
        load_tile(image, size, wide_in, t, pixels);
        __syncthreads();
        for (u32 k = threadIdx.x; k < TILE * TILE; k += blockDim.x) {
            u32 i = k / TILE, j = k % TILE;
            if (i < t.height && j < t.width) {
                Place p = source_of(pose, t.i + i, t.j + j);
                const float *rgb = pixels + (p.y - t.top) * PITCH + 3 * (p.x - t.left);
                Pixel pixel = finish(Pixel{tone(rgb[0] * UNIT, jitter), tone(rgb[1] * UNIT, jitter),
                                           tone(rgb[2] * UNIT, jitter)},
                                     jitter);
                Out *to = finished + i * TILE_ELEMENTS + 3 * j;
                put(to, pixel.r);
                put(to + 1, pixel.g);
                put(to + 2, pixel.b);
            }
        }
        __syncthreads();
        // No barrier here: the next tile's load writes other memory than this store reads.
        store_tile(t, size, wide_out, finished, out);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    fovea_view_f32(const float *resized, u32 count, const u32 *selection, const u64 *sample_ids,
                   const StepSeed *step, u32 size, u32 flip, u32 quarter_turns, u32 offset,
                   float brightness, float contrast, float saturation, const float *means,
                   u32 wide_in, u32 wide_out, float *out) {
    __shared__ float pixels[TILE * PITCH];
    __shared__ __align__(16) float finished[TILE * TILE_ELEMENTS];
    Sources sources = {resized, count, selection};
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    view(sources, sample_ids, step, size, aug, means, wide_in, wide_out, pixels, finished, out);
}

extern "C" __global__ void __launch_bounds__(256)
    fovea_view_bf16(const float *resized, u32 count, const u32 *selection, const u64 *sample_ids,
                    const StepSeed *step, u32 size, u32 flip, u32 quarter_turns, u32 offset,
                    float brightness, float contrast, float saturation, const float *means,
                    u32 wide_in, u32 wide_out, bf16 *out) {
    __shared__ float pixels[TILE * PITCH];
    __shared__ __align__(16) bf16 finished[TILE * TILE_ELEMENTS];
    Sources sources = {resized, count, selection};
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    view(sources, sample_ids, step, size, aug, means, wide_in, wide_out, pixels, finished, out);
}

// As view for images that are rotated, scaled or erased: every thread interpolates its own pixels.
template <class Out>
__device__ __forceinline__ void view_show(const Sources &sources, const u64 *sample_ids,
                                          const StepSeed *step, u32 size, const Augment &aug,
                                          const float *means, const Interpolation &strengths,
                                          ShownSample &shared, Out *out) {
    u64 elements = 3ull * size * size;
    out += blockIdx.x * elements;
    const float *image = source(sources, size, blockIdx.x);
    if (image == 0) {
        fill_with_nan(out, elements);
        return;  // the whole block returns: the condition depends on the image alone
    }
    u64 id = sample_ids[blockIdx.x];
    Draw d = draw(*step, id, aug);
    Jitter jitter = make_jitter(d, means ? means[blockIdx.x] : 0.0f);
    if (threadIdx.x == 0) {
        shared = draw_shown(*step, id, strengths, 0, 0, size);
    }
    __syncthreads();
    ShownSample drawn = shared;
    Pose pose = {size, d.flip, d.turns};
    u32 pixels = size * size;
    for (u32 k = blockIdx.y * blockDim.x + threadIdx.x; k < pixels; k += gridDim.y * blockDim.x) {
        u32 i = k / size, j = k % size;
        Place p = source_of(pose, i, j);
        float rgb[3];
        show_point(image, size, size, drawn.map, p.y, p.x, rgb);
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
    fovea_view_show_f32(const float *resized, u32 count, const u32 *selection,
                        const u64 *sample_ids, const StepSeed *step, u32 size, u32 flip,
                        u32 quarter_turns, u32 offset, float brightness, float contrast,
                        float saturation, const float *means, float rotation, float scale,
                        float erasing, float *out) {
    __shared__ ShownSample shared;
    Sources sources = {resized, count, selection};
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    Interpolation strengths = {rotation, scale, erasing};
    view_show(sources, sample_ids, step, size, aug, means, strengths, shared, out);
}

extern "C" __global__ void __launch_bounds__(256)
    fovea_view_show_bf16(const float *resized, u32 count, const u32 *selection,
                         const u64 *sample_ids, const StepSeed *step, u32 size, u32 flip,
                         u32 quarter_turns, u32 offset, float brightness, float contrast,
                         float saturation, const float *means, float rotation, float scale,
                         float erasing, bf16 *out) {
    __shared__ ShownSample shared;
    Sources sources = {resized, count, selection};
    Augment aug = {flip, quarter_turns, offset, brightness, contrast, saturation};
    Interpolation strengths = {rotation, scale, erasing};
    view_show(sources, sample_ids, step, size, aug, means, strengths, shared, out);
}
