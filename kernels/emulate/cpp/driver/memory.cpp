// Memory and copies. A block lies between guard zones, holds NaN until it is written, and is kept for a while after it
// was freed: a change in a guard zone or in a freed block is a write that must not be.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "driver.h"

extern "C" void fovea_emulated_buffer(uintptr_t address, size_t bytes);

namespace driver {
namespace {

constexpr size_t GUARD = 4096;  // bytes before and after a block
constexpr int POISON = 0xFF;    // as f32 and bf16 a NaN, as an index far too large
constexpr size_t MOST_KEPT = size_t(64) << 20;
constexpr size_t MOST_PINNED = size_t(1) << 40;

struct Block {
    Context *context;
    bool pinned;  // host memory
    size_t bytes;
    size_t number;  // counts allocations
    char *start;    // of the first guard
    bool freed = false;

    size_t all() const { return GUARD + bytes + GUARD; }
    std::string name() const {
        return text("%s %zu of %zu bytes", pinned ? "pinned buffer" : "device buffer", number, bytes);
    }
};

// By the program's address. Not destroyed at the end of the process, when other threads may still call.
auto &blocks = *new std::map<uintptr_t, Block>;
// Addresses of freed blocks, oldest first.
auto &kept = *new std::deque<uintptr_t>;
size_t kept_bytes, allocations;

Block *find(uintptr_t address) {
    auto block = blocks.find(address);
    return block == blocks.end() || block->second.freed ? nullptr : &block->second;
}

// The block, live or freed, that [at, at + bytes) touches, guards included. Null if there is none.
const Block *touched(uintptr_t at, size_t bytes) {
    auto after = blocks.lower_bound(at);
    if (after != blocks.begin()) {
        const auto &[start, block] = *std::prev(after);
        if (at < start + block.bytes + GUARD) {
            return &block;
        }
    }
    return after != blocks.end() && at + bytes > after->first - GUARD ? &after->second : nullptr;
}

// The problem with an access, empty without one. Unknown memory is allowed: tensors of the CPU stand in for a GPU's.
std::string wrong(uintptr_t at, size_t bytes) {
    if (at == 0) {
        return "address 0";
    }
    const Block *block = touched(at, bytes);
    if (!block) {
        return "";
    }
    uintptr_t start = reinterpret_cast<uintptr_t>(block->start) + GUARD;
    if (!block->freed && at >= start && at + bytes <= start + block->bytes) {
        return "";
    }
    return text("%zu bytes from byte %td of %s%s", bytes, ptrdiff_t(at - start), block->name().c_str(),
                block->freed ? ", which was freed" : "");
}

// Reports, once, the bytes in [from, to) that are no longer poison.
void look_at(const Block &block, size_t from, size_t to, const char *where) {
    auto changed = [](char byte) { return byte != char(POISON); };
    char *begin = block.start + from, *end = block.start + to;
    // Compares each byte with the one before it: fast, and nearly always enough.
    if (begin == end || (!changed(*begin) && std::memcmp(begin, begin + 1, end - begin - 1) == 0)) {
        return;
    }
    char *first = std::find_if(begin, end, changed);
    ptrdiff_t at = first - (block.start + GUARD);
    found(text("%td bytes were written %s %s, the first at byte %td", std::count_if(first, end, changed), where,
               block.name().c_str(), at));
    std::memset(first, POISON, end - first);
}

void look_at_guards(const Block &block) {
    look_at(block, 0, GUARD, "before");
    look_at(block, GUARD + block.bytes, block.all(), "after");
    if (block.freed) {
        look_at(block, GUARD, GUARD + block.bytes, "into the freed");
    }
}

Code allocate(State &s, Context &context, size_t bytes, bool pinned, uintptr_t *address) {
    if (bytes == 0) {
        return ERROR_INVALID_VALUE;
    }
    size_t limit = pinned ? MOST_PINNED : s.memory - std::min(s.memory, context.used);
    if (bytes > limit) {
        return ERROR_OUT_OF_MEMORY;
    }
    Block block{&context, pinned, bytes, ++allocations, nullptr};
    block.start = static_cast<char *>(std::aligned_alloc(GUARD, (block.all() + GUARD - 1) / GUARD * GUARD));
    if (!block.start) {
        return ERROR_OUT_OF_MEMORY;
    }
    std::memset(block.start, POISON, block.all());
    context.used += pinned ? 0 : bytes;
    *address = reinterpret_cast<uintptr_t>(block.start) + GUARD;
    blocks.emplace(*address, block);
    fovea_emulated_buffer(*address, bytes);
    return SUCCESS;
}

void release(uintptr_t address, Block &block) {
    look_at_guards(block);
    fovea_emulated_buffer(address, 0);
    block.context->used -= block.pinned ? 0 : block.bytes;
    block.freed = true;
    std::memset(block.start, POISON, block.all());
    kept.push_back(address);
    kept_bytes += block.all();
    while (kept_bytes > MOST_KEPT) {
        auto oldest = blocks.find(kept.front());
        kept.pop_front();
        kept_bytes -= oldest->second.all();
        look_at_guards(oldest->second);
        std::free(oldest->second.start);
        blocks.erase(oldest);
    }
}

Code free_one(uintptr_t address, bool pinned, const char *call) {
    drain_all();  // because an item may still use it
    Block *block = find(address);
    if (!block || block->pinned != pinned) {
        found(text("%s of %#zx, which is no such allocation%s", call, size_t(address),
                   blocks.count(address) ? " any more" : ""));
        return ERROR_INVALID_VALUE;
    }
    release(address, *block);
    return SUCCESS;
}

// Host memory that a copy can reach by itself. All other memory is read or written before a call returns.
bool is_pinned(uintptr_t at) {
    const Block *block = touched(at, 1);
    return block && block->pinned;
}

struct Copy {
    uintptr_t to, from;
    size_t bytes;

    std::string wrong() const {
        std::string problem = driver::wrong(to, bytes);
        if (problem.empty()) {
            problem = driver::wrong(from, bytes);
        }
        if (problem.empty() && to < from + bytes && from < to + bytes) {
            problem = text("%zu bytes onto themselves", bytes);
        }
        return problem;
    }

    void operator()(Context &context) const {
        if (std::string problem = wrong(); !problem.empty()) {  // freed since
            return fault(context, ERROR_ILLEGAL_ADDRESS, "a copy of " + problem);
        }
        std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
    }
};

// The error that the driver returns at once for an impossible copy.
Code refuse(const char *call, const std::string &problem) {
    if (problem.empty()) {
        return SUCCESS;
    }
    found(text("%s of %s", call, problem.c_str()));
    return ERROR_INVALID_VALUE;
}

Code copy_now(const char *call, Context &context, const Copy &copy) {
    if (Code code = refuse(call, copy.wrong())) {
        return code;
    }
    drain(*context.default_stream);
    if (!context.fault) {
        copy(context);
    }
    return context.fault;
}

Code copy_async(const char *call, Context &context, void *stream, const Copy &copy) {
    Code code = refuse(call, copy.wrong());
    return code ? code : enqueue_work(context, stream, copy);
}

// The driver waits for copies of pageable memory, wholly or in part, which a capture forbids.
Code refuse_pageable(Context &context, void *handle) {
    auto stream = stream_of(context, handle);
    if (!stream) {
        return ERROR_INVALID_HANDLE;
    }
    if (stream->capture) {
        invalidate(*stream);
        return ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return SUCCESS;
}

}  // namespace

void free_all_of(Context &context) {
    std::vector<uintptr_t> of_context;
    for (const auto &[address, block] : blocks) {
        if (block.context == &context && !block.freed) {
            of_context.push_back(address);
        }
    }
    for (uintptr_t address : of_context) {
        release(address, blocks.at(address));
    }
}

size_t live_blocks() {
    return blocks.size() - kept.size();
}

void look_at_all_guards() {
    for (const auto &[address, block] : blocks) {
        look_at_guards(block);
    }
}

bool foreign(uintptr_t at, size_t bytes) {
    return !touched(at, bytes);
}

}  // namespace driver

using namespace driver;

API Code cuMemGetInfo_v2(size_t *free, size_t *total) {
    return in_context([&](State &s, Context &context) {
        *free = s.memory - std::min(s.memory, context.used);
        *total = s.memory;
        return SUCCESS;
    });
}

API Code cuMemAlloc_v2(Address *address, size_t bytes) {
    return in_context([&](State &s, Context &context) {
        uintptr_t at = 0;
        Code code = allocate(s, context, bytes, false, &at);
        *address = at;
        return code;
    });
}

API Code cuMemHostAlloc(void **host, size_t bytes, unsigned) {
    return in_context([&](State &s, Context &context) {
        uintptr_t at = 0;
        Code code = allocate(s, context, bytes, true, &at);
        *host = reinterpret_cast<void *>(at);
        return code;
    });
}

API Code cuMemFree_v2(Address address) {
    return in_context([&](State &, Context &) { return free_one(address, false, "cuMemFree"); });
}

API Code cuMemFreeHost(void *host) {
    uintptr_t address = reinterpret_cast<uintptr_t>(host);
    return in_context([&](State &, Context &) { return free_one(address, true, "cuMemFreeHost"); });
}

API Code cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) {
    return in_context([&](State &, Context &context) {
        return copy_now("cuMemcpyHtoD", context, Copy{to, reinterpret_cast<uintptr_t>(from), bytes});
    });
}

API Code cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) {
    return in_context([&](State &, Context &context) {
        return copy_now("cuMemcpyDtoH", context, Copy{reinterpret_cast<uintptr_t>(to), from, bytes});
    });
}

API Code cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    return in_context([&](State &, Context &context) {
        return copy_async("cuMemcpyDtoDAsync", context, stream, Copy{to, from, bytes});
    });
}

API Code cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    return in_context([&](State &, Context &context) {
        Copy copy{to, reinterpret_cast<uintptr_t>(from), bytes};
        if (is_pinned(copy.from)) {
            return copy_async("cuMemcpyHtoDAsync", context, stream, copy);
        }
        if (Code code = refuse_pageable(context, stream)) {
            return code;
        }
        auto staged = std::make_shared<std::vector<char>>(bytes);
        std::memcpy(staged->data(), from, bytes);
        copy.from = reinterpret_cast<uintptr_t>(staged->data());
        Code code = refuse("cuMemcpyHtoDAsync", copy.wrong());
        return code ? code : enqueue_work(context, stream, [staged, copy](Context &context) { copy(context); });
    });
}

API Code cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    return in_context([&](State &, Context &context) {
        Copy copy{reinterpret_cast<uintptr_t>(to), from, bytes};
        bool pinned = is_pinned(copy.to);
        if (!pinned) {
            if (Code code = refuse_pageable(context, stream)) {
                return code;
            }
        }
        Code code = copy_async("cuMemcpyDtoHAsync", context, stream, copy);
        if (!code && !pinned) {
            drain(*stream_of(context, stream));
        }
        return code ? code : context.fault;
    });
}

API Code cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
    return in_context([&](State &, Context &context) {
        Code code = refuse("cuMemsetD8Async", wrong(to, bytes));
        return code ? code : enqueue_work(context, stream, [=](Context &context) {
            if (std::string problem = wrong(to, bytes); !problem.empty()) {
                return fault(context, ERROR_ILLEGAL_ADDRESS, "a memset of " + problem);
            }
            std::memset(reinterpret_cast<void *>(to), value, bytes);
        });
    });
}
