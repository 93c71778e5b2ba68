// Kernels with the faults that the scheduler must find; see tests.rs.
#include "cuda_on_cpu.h"
#include "registry.h"

namespace {

// Half of a block leaves while the other half waits.
void leaves_early(void *const *) {
    if (threadIdx.x < 32) {
        return;
    }
    __syncthreads();
}

// Two barriers, each reached by half of the block.
void other_barrier(void *const *) {
    if (threadIdx.x % 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

// One lane does not take part in a shuffle of its warp.
void missing_lane(void *const *) {
    if (threadIdx.x != 5) {
        __shfl_sync(0xFFFFFFFFu, 1.0f, 0);
    }
}

void part_of_a_warp(void *const *) {
    __shfl_down_sync(0xFFFFu, 1.0f, 1);
}

void misaligned(void *const *arguments) {
    FOVEA_ACCESS(*static_cast<char **>(arguments[0]) + 4, 16);
}

// A 16-byte access whose last 8 bytes lie beyond the buffer, which ends 8 bytes before a word per thread.
void beyond_the_end(void *const *arguments) {
    FOVEA_ACCESS(*static_cast<char **>(arguments[0]) + 4 * blockDim.x - 16, 16);
}

void before_the_start(void *const *arguments) {
    FOVEA_ACCESS(*static_cast<char **>(arguments[0]) - 16, 16);
}

// Thread t's value from shared memory written by thread t + 1, with no barrier in between.
void race(void *const *arguments) {
    __shared__ unsigned shared[64];
    unsigned *out = *static_cast<unsigned **>(arguments[0]);
    shared[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = shared[(threadIdx.x + 1) % 64];
}

// Writes the content of shared memory at the start of a block, and each lane's left neighbour.
void sound(void *const *arguments) {
    __shared__ unsigned shared[64];
    unsigned *out = *static_cast<unsigned **>(arguments[0]);
    unsigned poison = shared[threadIdx.x];
    __syncthreads();
    shared[threadIdx.x] = 100 * blockIdx.x + threadIdx.x;
    __syncthreads();
    unsigned neighbour = shared[63 - threadIdx.x];
    unsigned down = __shfl_down_sync(0xFFFFFFFFu, threadIdx.x, 4);
    unsigned first = __shfl_sync(0xFFFFFFFFu, threadIdx.x, 3);
    unsigned *mine = out + 4 * (64 * blockIdx.x + threadIdx.x);
    mine[0] = poison;
    mine[1] = neighbour;
    mine[2] = down;
    mine[3] = first;
}

const unsigned char POINTER[] = {8};

const emulator::Entry TABLE[] = {
    {"test_leaves_early", leaves_early, POINTER, 1},
    {"test_other_barrier", other_barrier, POINTER, 1},
    {"test_missing_lane", missing_lane, POINTER, 1},
    {"test_part_of_a_warp", part_of_a_warp, POINTER, 1},
    {"test_misaligned", misaligned, POINTER, 1},
    {"test_beyond_the_end", beyond_the_end, POINTER, 1},
    {"test_before_the_start", before_the_start, POINTER, 1},
    {"test_race", race, POINTER, 1},
    {"test_sound", sound, POINTER, 1},
};

}  // namespace

const emulator::Entry *emulator::find_test(const char *name) {
    for (const Entry &entry : TABLE) {
        if (std::strcmp(entry.name, name) == 0) {
            return &entry;
        }
    }
    return nullptr;
}
