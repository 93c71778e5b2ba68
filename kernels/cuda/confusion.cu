// Confusion counts of logits. Twin: confusion.rs.
//
// Counts are whole numbers below 2^24, which f32 adds exactly, so the order of the additions does not matter.
#include "common.cuh"

// `logits` [rows, classes]; `labels` [rows]; `counts` as the twin's CountLayout says, added to. A thread takes one row.
extern "C" __global__ void __launch_bounds__(256)
    fovea_confusion_counts(const float *logits, const u64 *labels, u32 rows, u32 classes,
                           u32 one_of, float lowest, float *counts) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    const float *z = logits + (u64)row * classes;
    u64 label = labels[row];
    if (one_of) {
        if (label >= classes) {
            return;  // no label
        }
        u32 guess = 0;
        for (u32 c = 0; c < classes; ++c) {
            if (z[c] > z[guess]) {
                guess = c;
            }
        }
        atomicAdd(counts + (u32)label * classes + guess, 1.0f);
        return;
    }
    if (label >> classes) {
        return;  // no label
    }
    u32 either = 0, both = 0;
    for (u32 c = 0; c < classes; ++c) {
        bool truth = label >> c & 1u, guess = z[c] >= lowest;
        either += truth || guess;
        both += truth && guess;
        if (truth || guess) {
            u32 kind = truth && guess ? 0u : guess ? 1u : 2u;
            atomicAdd(counts + kind * classes + c, 1.0f);
        }
    }
    atomicAdd(counts + 3 * classes + either * (classes + 1) + both, 1.0f);
}
