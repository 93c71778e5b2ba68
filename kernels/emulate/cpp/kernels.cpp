// The kernels, compiled for the CPU, and the table by which they are found.
#include "cuda_on_cpu.h"

#include <utility>

#include "registry.h"

// Each file in a namespace of its own, as each is a module of its own on a GPU.
#include "common.cuh"
#include "draw.cuh"
#include "shade.cuh"
#include "tile.cuh"

namespace patch_crop_module {
#include "patch_crop.cu"
#undef CHUNKS
#undef PITCH
}  // namespace patch_crop_module
namespace resize_module {
#include "resize.cu"
#undef COLUMNS
#undef CHANNELS
#undef WINDOW
}  // namespace resize_module
namespace global_view_module {
#include "global_view.cu"
#undef LANES
#undef PITCH
}  // namespace global_view_module
namespace focal_loss_module {
#include "focal_loss.cu"
}  // namespace focal_loss_module
namespace fused_adam_module {
#include "fused_adam.cu"
#undef PER_THREAD
}  // namespace fused_adam_module
namespace flat_module {
#include "flat.cu"
}  // namespace flat_module

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
    KERNEL(patch_crop_module, fovea_patch_crop_f32),
    KERNEL(patch_crop_module, fovea_patch_crop_bf16),
    KERNEL(resize_module, fovea_resize),
    KERNEL(global_view_module, fovea_view_rows),
    KERNEL(global_view_module, fovea_view_mean),
    KERNEL(global_view_module, fovea_view_f32),
    KERNEL(global_view_module, fovea_view_bf16),
    KERNEL(focal_loss_module, fovea_focal_loss),
    KERNEL(fused_adam_module, fovea_fused_adam),
    KERNEL(flat_module, fovea_to_bf16),
    KERNEL(flat_module, fovea_accumulate_bf16),
    KERNEL(flat_module, fovea_sum_squares),
    KERNEL(flat_module, fovea_sum),
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
