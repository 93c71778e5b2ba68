// The kernels, compiled for the CPU, and the table in which `find` looks them up. build.rs writes both includes.
#include "cuda_on_cpu.h"

#include <utility>

#include "registry.h"

// Each file has a namespace of its own, because on a GPU each is a module of its own.
#include "common.cuh"
#include "affine.cuh"
#include "draw.cuh"
#include "shade.cuh"
#include "sigmoid.cuh"
#include "tile.cuh"

#include "modules.inc"

namespace {

template <auto F>
struct Thunk;

template <class... A, void (*F)(A...)>
struct Thunk<F> {
    static constexpr unsigned char sizes[] = {sizeof(A)...};

    template <size_t... I>
    static void apply(void *const *arguments, std::index_sequence<I...>) {
        F(*static_cast<A *>(arguments[I])...);
    }

    static void call(void *const *arguments) {
        apply(arguments, std::index_sequence_for<A...>{});
    }

    static emulator::Entry entry(const char *name) {
        return emulator::Entry{name, call, sizes, sizeof...(A)};
    }
};

#define KERNEL(module, name) Thunk<&module::name>::entry(#name)

const emulator::Entry TABLE[] = {
#include "table.inc"
};

}  // namespace

const emulator::Entry *emulator::find(const char *name) {
    for (const Entry &entry : TABLE) {
        if (std::strcmp(entry.name, name) == 0) {
            return &entry;
        }
    }
    return nullptr;
}

const char *emulator::name_of(size_t index) {
    return index < sizeof TABLE / sizeof *TABLE ? TABLE[index].name : nullptr;
}
