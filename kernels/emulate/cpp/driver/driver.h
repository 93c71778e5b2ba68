// Types and functions that the files of the stand-in for the CUDA driver share. One lock covers all of it: each
// function of the API takes it (`anywhere`, `in_context`), and everything else runs under it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "codes.h"

#define API extern "C" __attribute__((visibility("default")))

using Address = unsigned long long;  // CUdeviceptr

namespace driver {

struct Stream;
struct Context;

// For each stream of a capture, the item after which something comes.
using Clock = std::map<Stream *, size_t>;

// A point in the work of a stream: one recording of an event.
struct Mark {
    std::shared_ptr<Stream> stream;
    bool done = false;
    double ms = 0;
    // Whether the recording was made in a capture.
    bool captured = false;
    std::weak_ptr<struct Capture> capture;
    Clock clock;
};

// Something to do on a stream: exactly one of the four.
struct Item {
    std::function<void(Context &)> work;
    std::shared_ptr<Mark> wait;
    std::shared_ptr<Mark> record;
    std::function<bool()> hold = {};  // not done before it returns true, see fovea_driver_hold
};

// The captured items, in the order of the calls, each with its stream.
struct Recording {
    std::shared_ptr<Stream> origin;
    std::vector<std::pair<std::shared_ptr<Stream>, Item>> items;
};

struct Capture {
    Recording recording;
    bool invalid = false;
};

struct Stream : std::enable_shared_from_this<Stream> {
    explicit Stream(Context *context) : context(context) {}

    Context *context;
    std::deque<Item> queue;  // items that are not done yet
    std::shared_ptr<Capture> capture;
    Clock clock;
};

struct Event {
    Context *context;
    bool timed;
    std::shared_ptr<Mark> mark;  // of the last recording; null before the first
};

struct Graph {
    std::shared_ptr<const Recording> recording;
};

struct GraphExec {
    Context *context;
    std::shared_ptr<const Recording> recording;
};

struct Module {
    Context *context;
};

// Objects that the program refers to by handles. A handle is the object's address.
template <class T>
struct Table {
    std::map<void *, std::shared_ptr<T>> live;

    void *add(std::shared_ptr<T> object) {
        void *handle = object.get();
        live.emplace(handle, std::move(object));
        return handle;
    }
    // Returns null for a handle that is not alive.
    std::shared_ptr<T> find(void *handle) const {
        auto found = live.find(handle);
        return found == live.end() ? nullptr : found->second;
    }
};

// The primary context of a device.
struct Context {
    explicit Context(int device) : device(device) {}

    int device;
    unsigned retained = 0;
    std::shared_ptr<Stream> default_stream;
    size_t used = 0;       // bytes of device memory
    Code fault = SUCCESS;  // every call returns it once something has failed on the device
    std::string fault_text;
};

struct State {
    std::recursive_mutex lock;
    bool initialised = false;
    bool gone = false;
    bool lazy = false;
    int devices = 1;
    size_t memory = size_t(8) << 30;  // of a device, bytes
    uint64_t launches = 0;            // seeds the order of threads
    std::map<int, std::unique_ptr<Context>> contexts;
    Table<Stream> streams;
    std::vector<std::shared_ptr<Stream>> orphans;  // destroyed with work on them
    Table<Event> events;
    Table<Graph> graphs;
    Table<GraphExec> execs;
    Table<Module> modules;
    std::vector<std::string> findings;  // for fovea_driver_check
};

// Never destroyed: other threads may still call when the process ends.
State &state();

// The context that is current in this thread, or null.
Context *current();

// Notes a finding about the program under test; `fault` also makes it the context's fault.
void found(std::string text);
void fault(Context &context, Code code, std::string text);
std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));

// memory.cpp
void free_all_of(Context &context);
size_t live_blocks();
void look_at_all_guards();
// Whether kernels may access memory that was not allocated here: only memory that is not near any such block.
bool foreign(uintptr_t at, size_t bytes);

// stream.cpp
std::shared_ptr<Stream> stream_of(Context &context, void *handle);
// Puts `item` on `stream`: records it if the stream is being captured, runs it at once in eager mode.
Code enqueue(Stream &stream, Item item);
Code enqueue_work(Context &context, void *stream, std::function<void(Context &)> work);
// Runs all items on the stream, up to the first that is held.
void drain(Stream &stream);
void drain_all();

// graph.cpp
Code record(Stream &stream, Item item);
void invalidate(Stream &stream);

// Runs one function of the API.
template <class F>
Code anywhere(F run) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> lock(s.lock);
    if (s.gone) {
        return ERROR_DEINITIALIZED;
    }
    return s.initialised ? run(s) : ERROR_NOT_INITIALIZED;
}

// As `anywhere`, for functions that need a current context without a fault.
template <class F>
Code in_context(F run) {
    return anywhere([&](State &s) {
        Context *context = current();
        if (!context) {
            return ERROR_INVALID_CONTEXT;
        }
        return context->fault ? context->fault : run(s, *context);
    });
}

}  // namespace driver
