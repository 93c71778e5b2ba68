// Antialiased bilinear resize of resident images to f32. Twin: resize.rs, bit for bit.
//
// Block (64 columns, row, image) of the output. The source columns that these output columns need are blended
// vertically into shared memory, one window of them after the other; then the horizontal blend adds the window's share.
// So any ratio works with the same memory, and every sum runs in the twin's order.
#include "common.cuh"

struct Image {
    u64 data;
    u32 height, width;
};

// Taps of an axis: `outputs` entries, then all weights (`ResizeTable` on the host).
struct Entry {
    u32 first, count, weights, unused;
};

#define COLUMNS 64u
#define CHANNELS 3u
#define WINDOW 256u

extern "C" __global__ void __launch_bounds__(192)
    fovea_resize(const Image *images, u32 image_count, const u32 *selection, const u32 *row_table,
                 const u32 *column_table, u32 in_height, u32 in_width, u32 out_height,
                 u32 out_width, float *out) {
    __shared__ float blended[WINDOW * CHANNELS];
    u32 index = selection[blockIdx.z], i = blockIdx.y, j0 = blockIdx.x * COLUMNS;
    u32 columns = min(COLUMNS, out_width - j0);
    u32 mine = threadIdx.x;  // one column and channel
    bool has_output = mine < columns * CHANNELS;
    out += (((u64)blockIdx.z * out_height + i) * out_width + j0) * CHANNELS + mine;
    Image image = {0, 0, 0};
    if (index < image_count) {
        image = images[index];
    }
    if (image.height != in_height || image.width != in_width) {
        if (has_output) {
            *out = quiet_nan();
        }
        return;  // the whole block returns: the condition depends on the image alone
    }
    const Entry *rows = (const Entry *)row_table, *across = (const Entry *)column_table;
    const float *row_weights = (const float *)(rows + out_height) + rows[i].weights;
    const float *column_weights = (const float *)(across + out_width);
    u32 first_row = rows[i].first, row_count = rows[i].count;
    Entry last = across[j0 + columns - 1];
    u32 begin = across[j0].first, end = last.first + last.count;
    Entry entry = {0, 0, 0, 0};
    if (has_output) {
        entry = across[j0 + mine / CHANNELS];
    }
    const u8 *pixels = (const u8 *)image.data + (u64)first_row * in_width * CHANNELS;
    float sum = 0.0f;
    for (u32 from = begin; from < end; from += WINDOW) {
        u32 to = min(from + WINDOW, end);
        for (u32 k = threadIdx.x; k < (to - from) * CHANNELS; k += blockDim.x) {
            const u8 *at = pixels + (u64)from * CHANNELS + k;
            float value = 0.0f;
            for (u32 r = 0; r < row_count; ++r) {
                value = value + row_weights[r] * (float)at[(u64)r * in_width * CHANNELS];
            }
            blended[k] = value;
        }
        __syncthreads();
        u32 low = max(from, entry.first), high = min(to, entry.first + entry.count);
        for (u32 x = low; x < high; ++x) {
            sum = sum + column_weights[entry.weights + x - entry.first] *
                            blended[(x - from) * CHANNELS + mine % CHANNELS];
        }
        __syncthreads();
    }
    if (has_output) {
        *out = sum;
    }
}
