// A stand-in for libcuda.so.1, for tests: the functions that Fovea calls, on host memory, with the kernels of the
// emulator. This file holds devices, contexts, modules, launches, and the functions by which tests configure and query
// it.
#include "driver.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "../registry.h"

extern "C" int fovea_emulate(const char *name, const unsigned *grid, unsigned threads, void *const *values,
                             const unsigned char *sizes, size_t count, uint64_t seed, char *error,
                             size_t error_bytes);

namespace driver {

State &state() {
    static State &only = *new State;
    return only;
}

// The list outlives its thread too: destructors that run last in the thread still call the driver.
static thread_local std::vector<Context *> &currents = *new std::vector<Context *>;

Context *current() {
    return currents.empty() || !currents.back()->retained ? nullptr : currents.back();
}

void found(std::string text) {
    state().findings.push_back(std::move(text));
}

void fault(Context &context, Code code, std::string text) {
    if (!context.fault) {
        context.fault = code;
        context.fault_text = text;
    }
    found(std::move(text));
}

std::string text(const char *format, ...) {
    char buffer[1024];
    va_list list;
    va_start(list, format);
    std::vsnprintf(buffer, sizeof buffer, format, list);
    va_end(list);
    return buffer;
}

// A launch of a kernel with its arguments.
struct Launch {
    const emulator::Entry *kernel;
    unsigned grid[3];
    unsigned threads;
    std::vector<uint64_t> values;

    void operator()(Context &context) const {
        std::vector<uint64_t> copies = values;
        std::vector<void *> pointers;
        for (uint64_t &value : copies) {
            pointers.push_back(&value);
        }
        char error[512];
        if (fovea_emulate(kernel->name, grid, threads, pointers.data(), kernel->sizes, kernel->arguments,
                          ++state().launches, error, sizeof error)) {
            fault(context, ERROR_LAUNCH_FAILED, error);
        }
    }
};

}  // namespace driver

using namespace driver;

API Code cuInit(unsigned) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    if (s.gone) {
        return ERROR_DEINITIALIZED;
    }
    emulator::foreign = foreign;
    s.initialised = s.devices > 0;
    return s.initialised ? SUCCESS : ERROR_NO_DEVICE;
}

API Code cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

// NVRTC asks for tables of a real driver. It does not accept an error, but it accepts that the function is missing.
API Code cuGetExportTable(const void **, const void *) {
    return ERROR_NOT_FOUND;
}

API Code cuGetErrorName(int code, const char **name) {
    switch (code) {
#define DRIVER_CODE(code_name, number, text) \
    case number:                             \
        *name = "CUDA_" #code_name;          \
        return SUCCESS;
        DRIVER_CODES(DRIVER_CODE)
#undef DRIVER_CODE
    }
    *name = nullptr;
    return ERROR_INVALID_VALUE;
}

API Code cuGetErrorString(int code, const char **words) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    // A real driver has no such text. The text outlives the call, as the caller expects.
    Context *context = current();
    if (context && context->fault == code && code) {
        static std::set<std::string> &texts = *new std::set<std::string>;
        *words = texts.insert(context->fault_text).first->c_str();
        return SUCCESS;
    }
    switch (code) {
#define DRIVER_CODE(name, number, text) \
    case number:                        \
        *words = text;                  \
        return SUCCESS;
        DRIVER_CODES(DRIVER_CODE)
#undef DRIVER_CODE
    }
    *words = nullptr;
    return ERROR_INVALID_VALUE;
}

API Code cuDeviceGetCount(int *count) {
    return anywhere([&](State &s) {
        *count = s.devices;
        return SUCCESS;
    });
}

// Runs `then` if there is such a device.
template <class F>
static Code on_device(int device, F then) {
    return anywhere([&](State &s) {
        return device < 0 || device >= s.devices ? ERROR_INVALID_DEVICE : then(s);
    });
}

API Code cuDeviceGet(int *device, int ordinal) {
    return on_device(ordinal, [&](State &) {
        *device = ordinal;
        return SUCCESS;
    });
}

API Code cuDeviceGetName(char *name, int bytes, int device) {
    return on_device(device, [&](State &) {
        std::snprintf(name, size_t(bytes), "Emulated GPU");
        return SUCCESS;
    });
}

API Code cuDeviceTotalMem_v2(size_t *bytes, int device) {
    return on_device(device, [&](State &s) {
        *bytes = s.memory;
        return SUCCESS;
    });
}

API Code cuDeviceGetAttribute(int *value, int attribute, int device) {
    return on_device(device, [&](State &) {
        switch (attribute) {
            case 16: *value = 2; return SUCCESS;  // multiprocessors
            case 75: *value = 9; return SUCCESS;  // compute capability, major
            case 76: *value = 0; return SUCCESS;  // minor
            default: return ERROR_INVALID_VALUE;
        }
    });
}

API Code cuDevicePrimaryCtxRetain(void **handle, int device) {
    return on_device(device, [&](State &s) {
        auto &context = s.contexts[device];
        if (!context) {
            context.reset(new Context(device));
        }
        if (context->retained++ == 0) {
            context->default_stream = std::make_shared<Stream>(context.get());
        }
        *handle = context.get();
        return SUCCESS;
    });
}

template <class T>
static void drop_all_of(Table<T> &table, const Context &context) {
    for (auto entry = table.live.begin(); entry != table.live.end();) {
        entry = entry->second->context == &context ? table.live.erase(entry) : std::next(entry);
    }
}

API Code cuDevicePrimaryCtxRelease_v2(int device) {
    return on_device(device, [&](State &s) {
        auto entry = s.contexts.find(device);
        if (entry == s.contexts.end() || !entry->second->retained) {
            return ERROR_INVALID_CONTEXT;
        }
        Context &context = *entry->second;
        if (--context.retained == 0) {
            drain_all();
            drop_all_of(s.streams, context);
            drop_all_of(s.events, context);
            drop_all_of(s.execs, context);
            drop_all_of(s.modules, context);
            free_all_of(context);
            context.default_stream = nullptr;
        }
        return SUCCESS;
    });
}

API Code cuCtxPushCurrent_v2(void *handle) {
    return anywhere([&](State &s) {
        for (const auto &[device, context] : s.contexts) {
            if (context.get() == handle && context->retained) {
                currents.push_back(context.get());
                return SUCCESS;
            }
        }
        return ERROR_INVALID_CONTEXT;
    });
}

API Code cuCtxPopCurrent_v2(void **handle) {
    return anywhere([&](State &) {
        if (currents.empty()) {
            return ERROR_INVALID_CONTEXT;
        }
        *handle = currents.back();
        currents.pop_back();
        return SUCCESS;
    });
}

API Code cuModuleLoadData(void **handle, const void *image) {
    return in_context([&](State &s, Context &context) {
        // Machine code, or PTX. Its content does not matter: the kernels compiled into this library run instead.
        bool elf = std::memcmp(image, "\x7f" "ELF", 4) == 0;
        if (!elf && !std::strstr(static_cast<const char *>(image), ".version")) {
            return ERROR_INVALID_IMAGE;
        }
        *handle = s.modules.add(std::make_shared<Module>(Module{&context}));
        return SUCCESS;
    });
}

API Code cuModuleUnload(void *handle) {
    return in_context([&](State &s, Context &) {
        return s.modules.live.erase(handle) ? SUCCESS : ERROR_INVALID_HANDLE;
    });
}

API Code cuModuleGetFunction(const void **function, void *handle, const char *name) {
    return in_context([&](State &s, Context &) {
        *function = emulator::find(name);
        return !s.modules.find(handle) ? ERROR_INVALID_HANDLE : *function ? SUCCESS : ERROR_NOT_FOUND;
    });
}

API Code cuFuncLoad(const void *function) {
    return in_context([&](State &, Context &) { return function ? SUCCESS : ERROR_INVALID_HANDLE; });
}

API Code cuLaunchKernel(const emulator::Entry *kernel, unsigned x, unsigned y, unsigned z, unsigned threads,
                        unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void *stream,
                        void **arguments, void **extra) {
    return in_context([&](State &, Context &context) {
        if (!kernel) {
            return ERROR_INVALID_HANDLE;
        }
        bool grid = x && y && z && x <= 2147483647u && y <= 65535 && z <= 65535;
        if (!grid || threads == 0 || threads > 1024 || threads_y != 1 || threads_z != 1 || shared_bytes || extra) {
            return ERROR_INVALID_VALUE;
        }
        Launch launch{kernel, {x, y, z}, threads, {}};
        for (size_t k = 0; k < kernel->arguments; ++k) {
            uint64_t value = 0;
            std::memcpy(&value, arguments[k], kernel->sizes[k]);
            launch.values.push_back(value);
        }
        return enqueue_work(context, stream, std::move(launch));
    });
}

// Functions by which tests configure and query the stand-in.

API void fovea_driver_set_lazy(int lazy) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    s.lazy = lazy;
    if (!lazy) {
        drain_all();
    }
}

API void fovea_driver_set_devices(int devices) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    s.devices = devices;
}

API void fovea_driver_set_memory(size_t bytes) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    s.memory = bytes;
}

API void fovea_driver_set_gone(int gone) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    s.gone = gone;
}

// Buffers, streams, events, graphs (launchable or not) and modules that the program made and did not destroy.
API size_t fovea_driver_alive() {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    size_t graphs = s.graphs.live.size() + s.execs.live.size();
    return live_blocks() + s.streams.live.size() + s.events.live.size() + graphs + s.modules.live.size();
}

// Writes the findings since the last call, one per line, and forgets them; faulty contexts work again afterwards.
// Returns whether there was any.
API int fovea_driver_check(char *report, size_t bytes) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    drain_all();
    look_at_all_guards();
    std::string all;
    for (const std::string &finding : s.findings) {
        all += (all.empty() ? "" : "\n") + finding;
    }
    s.findings.clear();
    for (const auto &[device, context] : s.contexts) {
        context->fault = SUCCESS;
    }
    std::snprintf(report, bytes, "%s", all.c_str());
    return !all.empty();
}
