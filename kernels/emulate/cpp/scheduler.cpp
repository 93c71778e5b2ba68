// Runs a launch: blocks one after the other, the threads of a block as fibers on one OS thread.
//
// A fiber runs until it ends or waits at a barrier or shuffle. When none can run, the scheduler releases the waiting
// fibers if all that must be there are there; otherwise the launch fails. A seed draws the order of blocks and of
// threads and the speed of warps, because a GPU promises none: a missing barrier then shows as another result. All
// shared memory is poisoned before each block.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_on_cpu.h"
#include "registry.h"

Index threadIdx, blockIdx, blockDim, gridDim;

// Bounds of the section that holds all __shared__ variables of this program or library; the linker defines them.
extern "C" __attribute__((visibility("hidden"))) char __start_fovea_shared[], __stop_fovea_shared[];

bool (*emulator::foreign)(uintptr_t address, size_t bytes) = nullptr;

namespace {

constexpr unsigned WARP_LANES = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 * 1024;

enum class State { Ready, Done, AtBarrier, AtShuffle };

struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    jmp_buf at;
    bool started = false;
    State state = State::Ready;
    const char *file = "";
    int line = 0;
    unsigned shuffles = 0;
};

// Two sets of slots suffice: no thread is more than one shuffle ahead of its warp.
struct Slots {
    uint64_t bits[2][WARP_LANES];
};

std::mutex one_launch_at_a_time;
// Start and end of the buffers that wide accesses may touch.
std::mutex buffers_lock;
// Not destroyed at the end of the process, when other threads may still run.
auto &buffers = *new std::map<uintptr_t, uintptr_t>;
auto &fibers = *new std::vector<Fiber>(MOST_THREADS);
auto &slots = *new std::vector<Slots>(MOST_THREADS / WARP_LANES);
unsigned running;
jmp_buf scheduler;
const emulator::Entry *kernel;
void *const *arguments;
char message[512];
bool failed;

void to_scheduler() {
    if (!_setjmp(fibers[running].at)) {
        _longjmp(scheduler, 1);
    }
}

void fiber_main() {
    for (;;) {
        kernel->call(arguments);
        fibers[running].state = State::Done;
        to_scheduler();
    }
}

void resume(unsigned thread) {
    Fiber &fiber = fibers[thread];
    running = thread;
    threadIdx = Index{thread, 0, 0};
    if (_setjmp(scheduler)) {
        return;
    }
    if (fiber.started) {
        _longjmp(fiber.at, 1);
    }
    fiber.started = true;
    if (!fiber.stack) {
        fiber.stack.reset(new char[STACK_BYTES]);
    }
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    setcontext(&fiber.context);
}

void set_failure(const char *format, va_list list) {
    failed = true;
    int length = std::snprintf(message, sizeof message, "%s, block (%u, %u, %u): ", kernel->name,
                               blockIdx.x, blockIdx.y, blockIdx.z);
    std::vsnprintf(message + length, sizeof message - length, format, list);
}

void report(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report(const char *format, ...) {
    va_list list;
    va_start(list, format);
    set_failure(format, list);
    va_end(list);
}

const char *what(State state) {
    switch (state) {
        case State::Ready: return "runs";
        case State::Done: return "has left";
        case State::AtBarrier: return "waits at the barrier";
        default: return "waits at the shuffle";
    }
}

// Whether the threads first..first + count wait for the same thing in the same place as the first.
bool together(unsigned first, unsigned count) {
    const Fiber &a = fibers[first];
    for (unsigned t = first + 1; t < first + count; ++t) {
        const Fiber &b = fibers[t];
        if (b.state != a.state || b.line != a.line || std::strcmp(a.file, b.file) != 0) {
            report("divergence: thread %u %s in %s:%d, thread %u %s in %s:%d", first,
                   what(a.state), a.file, a.line, t, what(b.state), b.file, b.line);
            return false;
        }
    }
    return true;
}

// Releases the fibers whose group is complete. Returns false if the launch cannot continue.
bool release(unsigned threads) {
    bool some = false;
    for (unsigned warp = 0; warp < threads; warp += WARP_LANES) {
        bool shuffling = false;
        for (unsigned t = warp; t < warp + WARP_LANES; ++t) {
            shuffling |= fibers[t].state == State::AtShuffle;
        }
        if (shuffling) {
            if (!together(warp, WARP_LANES)) {
                return false;
            }
            for (unsigned t = warp; t < warp + WARP_LANES; ++t) {
                fibers[t].state = State::Ready;
            }
            some = true;
        }
    }
    for (unsigned t = 0; t < threads; ++t) {
        some |= fibers[t].state == State::Ready;  // of a warp that was skipped
    }
    if (some) {
        return true;
    }
    if (!together(0, threads)) {
        return false;
    }
    for (unsigned t = 0; t < threads; ++t) {
        fibers[t].state = State::Ready;
    }
    return true;
}

struct Random {
    uint64_t state;
    uint64_t next() {  // splitmix64
        uint64_t z = (state += 0x9E3779B97F4A7C15ull);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return z ^ (z >> 31);
    }
};

std::vector<unsigned> shuffled_order(unsigned count, Random &random) {
    std::vector<unsigned> order(count);
    for (unsigned k = 0; k < count; ++k) {
        order[k] = k;
    }
    for (unsigned k = count; k > 1; --k) {
        std::swap(order[k - 1], order[random.next() % k]);
    }
    return order;
}

// False if the block failed; its fibers are then left where they were.
//
// Warps have speeds: a slow one is skipped most of the time, so the others get ahead of it as far as barriers allow.
bool run_block(const std::vector<unsigned> &order, Random &random) {
    unsigned threads = blockDim.x;
    std::vector<unsigned> slowness(threads / WARP_LANES), resting(threads / WARP_LANES);
    for (unsigned &slow : slowness) {
        slow = 1u << random.next() % 4;
    }
    std::memset(__start_fovea_shared, 0xFF, __stop_fovea_shared - __start_fovea_shared);
    for (unsigned t = 0; t < threads; ++t) {
        fibers[t].state = State::Ready;
        fibers[t].file = "";
        fibers[t].line = 0;
        fibers[t].shuffles = 0;
    }
    for (;;) {
        bool all_done = true;
        for (size_t warp = 0; warp < slowness.size(); ++warp) {
            resting[warp] = random.next() % slowness[warp] != 0;
        }
        for (unsigned thread : order) {
            if (fibers[thread].state == State::Ready && !resting[thread / WARP_LANES]) {
                resume(thread);
            }
            all_done &= fibers[thread].state == State::Done;
            if (failed) {
                return false;
            }
        }
        if (all_done) {
            return true;
        }
        if (!release(threads)) {
            return false;
        }
    }
}

}  // namespace

unsigned emulator::lane() {
    return running % WARP_LANES;
}

void emulator::fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    set_failure(format, list);
    va_end(list);
    to_scheduler();
    __builtin_unreachable();
}

void emulator::check_access(const void *address, unsigned bytes, const char *file, int line) {
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    if (at % bytes != 0) {
        fail("%s:%d: an access of %u bytes at an address that is %u beyond a multiple of it", file,
             line, bytes, unsigned(at % bytes));
    }
    const char *byte = static_cast<const char *>(address);
    if (byte >= __start_fovea_shared && byte + bytes <= __stop_fovea_shared) {
        return;
    }
    uintptr_t start = 0, end = 0;
    {
        std::lock_guard<std::mutex> lock(buffers_lock);
        auto after = buffers.upper_bound(at);
        if (after != buffers.begin()) {
            start = std::prev(after)->first;
            end = std::prev(after)->second;
        }
    }
    if (at + bytes > end && !(foreign && foreign(at, bytes))) {
        fail("%s:%d: an access of %u bytes outside of all buffers; the one before it has %llu and "
             "starts %llu before it",
             file, line, bytes, (unsigned long long)(end - start), (unsigned long long)(at - start));
    }
}

void emulator::barrier(const char *file, int line) {
    Fiber &fiber = fibers[running];
    fiber.state = State::AtBarrier;
    fiber.file = file;
    fiber.line = line;
    to_scheduler();
}

uint64_t emulator::shuffle(uint64_t bits, unsigned mask, unsigned source, const char *file,
                           int line) {
    if (mask != 0xFFFFFFFFu) {
        fail("%s:%d: a shuffle of mask %#x; only whole warps are emulated", file, line, mask);
    }
    Fiber &fiber = fibers[running];
    uint64_t *set = slots[running / WARP_LANES].bits[fiber.shuffles++ % 2];
    set[lane()] = bits;
    fiber.state = State::AtShuffle;
    fiber.file = file;
    fiber.line = line;
    to_scheduler();
    return set[source];
}

// Runs a kernel. Returns 0, or 1 with a message in `error`.
extern "C" int fovea_emulate(const char *name, const unsigned *grid, unsigned threads,
                             void *const *values, const unsigned char *sizes, size_t count,
                             uint64_t seed, char *error, size_t error_bytes) {
    std::lock_guard<std::mutex> lock(one_launch_at_a_time);
    static const emulator::Entry nothing = {"launch", nullptr, nullptr, 0};
    failed = false;
    kernel = emulator::find(name);
    if (!kernel) {
        kernel = emulator::find_test(name);
    }
    blockIdx = Index{0, 0, 0};
    gridDim = Index{grid[0], grid[1], grid[2]};
    blockDim = Index{threads, 1, 1};
    arguments = values;
    if (!kernel) {
        kernel = &nothing;
        report("there is no kernel %s", name);
    } else if (count != kernel->arguments) {
        report("%zu arguments instead of %zu", count, kernel->arguments);
    } else if (threads == 0 || threads % WARP_LANES != 0 || threads > MOST_THREADS) {
        report("%u threads; a multiple of 32 up to 1024 is needed", threads);
    } else if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 ||
               grid[2] > 65535 || grid[0] > 2147483647u) {
        report("a grid of %u x %u x %u is not launched by CUDA", grid[0], grid[1], grid[2]);
    }
    for (size_t k = 0; !failed && k < count; ++k) {
        if (sizes[k] != kernel->sizes[k]) {
            report("argument %zu has %u bytes instead of %u", k, sizes[k], kernel->sizes[k]);
        }
    }
    if (!failed) {
        Random random{seed};
        std::vector<unsigned> order = shuffled_order(threads, random);
        std::vector<unsigned> blocks = shuffled_order(grid[0] * grid[1] * grid[2], random);
        for (unsigned block : blocks) {
            blockIdx = Index{block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
            if (!run_block(order, random)) {
                break;
            }
        }
    }
    if (failed) {
        for (Fiber &fiber : fibers) {
            fiber.started = false;  // some stopped in the middle of a kernel: restart them
        }
        std::snprintf(error, error_bytes, "%s", message);
    }
    return failed;
}

// Declares a buffer, or with `bytes` 0 removes it.
extern "C" void fovea_emulated_buffer(uintptr_t address, size_t bytes) {
    std::lock_guard<std::mutex> lock(buffers_lock);
    if (bytes) {
        buffers[address] = address + bytes;
    } else {
        buffers.erase(address);
    }
}

// The name of kernel `index`; null for an index beyond the last.
extern "C" const char *fovea_emulated_kernel(size_t index) {
    return emulator::name_of(index);
}
