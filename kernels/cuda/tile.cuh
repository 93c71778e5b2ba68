// A square of pixels, mirrored and turned tile by tile: which source pixels a tile of the output shows, and how 16-byte
// stores write the finished tile.
#pragma once
#include "common.cuh"

#define TILE 32u
#define TILE_ELEMENTS (3u * TILE)

// Mirror, then quarter turns counter-clockwise, of a square of `size` pixels.
struct Pose {
    u32 size, flip, turns;
};

struct Place {
    u32 y, x;
};

// The pixel of the square that pixel (i, j) of the output shows (`Window::place` of the twin).
__device__ __forceinline__ Place source_of(const Pose &pose, u32 i, u32 j) {
    u32 last = pose.size - 1;
    Place p;
    switch (pose.turns) {
        case 0: p = Place{i, j}; break;
        case 1: p = Place{j, last - i}; break;
        case 2: p = Place{last - i, last - j}; break;
        default: p = Place{last - j, i}; break;
    }
    if (pose.flip) {
        p.x = last - p.x;
    }
    return p;
}

// Rows i.., columns j.. of the output and the rectangle of the source that they show.
struct Tile {
    u32 i, j, height, width;
    u32 top, left, source_height, source_width;
};

__device__ __forceinline__ u32 tiles_across(u32 size) {
    return (size + TILE - 1) / TILE;
}

__device__ __forceinline__ Tile make_tile(const Pose &pose, u32 index) {
    u32 across = tiles_across(pose.size);
    Tile t;
    t.i = index / across * TILE;
    t.j = index % across * TILE;
    t.height = min(TILE, pose.size - t.i);
    t.width = min(TILE, pose.size - t.j);
    Place a = source_of(pose, t.i, t.j);
    Place b = source_of(pose, t.i + t.height - 1, t.j + t.width - 1);
    t.top = min(a.y, b.y);
    t.left = min(a.x, b.x);
    t.source_height = max(a.y, b.y) - t.top + 1;
    t.source_width = max(a.x, b.x) - t.left + 1;
    return t;
}

// Writes a finished tile, `[TILE, TILE, 3]` in shared memory, to `out`, `[size, size, 3]`.
template <class Out>
__device__ __forceinline__ void store_tile(const Tile &t, u32 size, u32 wide, const Out *finished,
                                           Out *out) {
    const u32 per_store = 16 / sizeof(Out);
    const u32 stores = TILE_ELEMENTS / per_store;
    u32 elements = 3 * t.width;
    if (wide) {
        for (u32 k = threadIdx.x; k < t.height * stores; k += blockDim.x) {
            u32 row = k / stores, column = k % stores * per_store;
            if (column < elements) {
                u64 at = ((u64)(t.i + row) * size + t.j) * 3 + column;
                store16(out + at, load16(finished + row * TILE_ELEMENTS + column));
            }
        }
        return;
    }
    for (u32 k = threadIdx.x; k < t.height * TILE_ELEMENTS; k += blockDim.x) {
        u32 row = k / TILE_ELEMENTS, column = k % TILE_ELEMENTS;
        if (column < elements) {
            out[((u64)(t.i + row) * size + t.j) * 3 + column] =
                finished[row * TILE_ELEMENTS + column];
        }
    }
}

// Fills this block's share of a sample whose spec is invalid.
template <class Out>
__device__ __forceinline__ void fill_with_nan(Out *out, u64 elements) {
    u64 step = (u64)gridDim.y * blockDim.x;
    for (u64 k = (u64)blockIdx.y * blockDim.x + threadIdx.x; k < elements; k += step) {
        put(out + k, quiet_nan());
    }
}
