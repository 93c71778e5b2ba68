// How the emulator finds and calls a kernel.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

struct Entry {
    const char *name;
    void (*call)(void *const *arguments);
    const unsigned char *sizes;  // bytes of each argument
    size_t arguments;
};

// Null if there is no kernel of this name.
const Entry *find(const char *name);
// As `find`, among the faulty kernels of the emulator's own tests.
const Entry *find_test(const char *name);
// Null for an index beyond the last kernel.
const char *name_of(size_t index);

// Whether a wide access outside of all declared buffers is allowed all the same. Null: none is.
extern bool (*foreign)(uintptr_t address, size_t bytes);

}  // namespace emulator
