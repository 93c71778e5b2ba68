// How a kernel is found and called.
#pragma once
#include <cstddef>

namespace emulator {

struct Entry {
    const char *name;
    void (*call)(void *const *arguments);
    const unsigned char *sizes;  // bytes of each argument
    size_t arguments;
};

// Null if there is none of this name.
const Entry *find(const char *name);
// As `find`, among the faulty kernels of the emulator's own tests.
const Entry *find_test(const char *name);
// Null beyond the last.
const char *name_of(size_t index);

}  // namespace emulator
