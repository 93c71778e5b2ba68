// A stand-in for NCCL: ranks are threads of one process, device memory is host memory (driver/). It can misbehave as
// the real NCCL does when a rank or a network is lost, and it reports errors that the real one would hide: calls on a
// communicator that is aborted, destroyed, in use by another thread or not ready; ranks that are in different
// operations.
//
// An operation is an item on its stream. It begins when the item's turn comes on all ranks, a thread of its own
// performs it some time later, and until then it holds the items behind it on the streams.
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Result { SUCCESS, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, IN_PROGRESS };

struct UniqueId {
    char bytes[128];
};

// ncclConfig_t of NCCL 2.14; all later versions begin with it.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

struct Comm;

// The kind of an operation; the same on all ranks.
struct Kind {
    const char *name = nullptr;
    size_t count = 0;
    int type = 0, root = 0;

    bool operator==(const Kind &other) const {
        return !strcmp(name, other.name) && count == other.count && type == other.type && root == other.root;
    }
};

// The n-th operation of a world.
struct Meeting {
    Kind kind;
    int first = 0;  // the rank that called it first
    bool called = false, hangs = false, done = false;
    size_t arrived = 0;
    std::vector<const char *> from;
    std::vector<char *> to;
};

struct World {
    std::vector<Comm *> members;
    size_t joined = 0, finalized = 0;
    bool broken = false;  // a member was aborted
    std::map<int, std::shared_ptr<Meeting>> meetings;
};

struct Comm {
    std::shared_ptr<World> world;
    int rank = 0;
    int operations = 0;
    int state = IN_PROGRESS;
    bool connected = false, finalizing = false;
    const char *over = nullptr;         // how it ended; null while it lives
    bool released = false;              // its operations no longer hold their streams
    std::atomic<bool> in_use{false};
};

struct Call {
    Comm *comm;
    std::shared_ptr<Meeting> meeting;
    bool arrived = false;
};

struct Settings {
    int version = 22705;
    bool init_hangs = false;
    int hang_at = -1;
    int fail_rank = -1, fail_at = -1, fail_code = 0;
    int error_rank = -1, error_at = -1, error_code = 0;
    int abort_ms = 0, connect_ms = 0, delay_us = 200;
};

struct State {
    std::mutex lock;
    Settings settings;
    std::map<std::string, std::shared_ptr<World>> worlds;
    std::set<Comm *> comms;  // never freed
    std::string findings;
    uint64_t ids = 0;
};

// Never destroyed: its threads may outlive main.
State &state() {
    static State *s = new State;
    return *s;
}

using Guard = std::lock_guard<std::mutex>;

__attribute__((format(printf, 1, 2))) void found(const char *format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    state().findings += std::string(text) + "\n";
}

// Null, with a finding, for a communicator that must not be used. The caller holds the lock.
Comm *usable(void *handle, const char *call) {
    Comm *comm = static_cast<Comm *>(handle);
    if (!state().comms.count(comm)) {
        found("%s with what is no communicator", call);
        return nullptr;
    }
    if (comm->over) {
        found("%s on rank %d, whose communicator was %s", call, comm->rank, comm->over);
        return nullptr;
    }
    return comm;
}

// Detects two threads in one communicator.
struct Use {
    explicit Use(Comm *comm, const char *call) : comm(comm) {
        if (comm && comm->in_use.exchange(true)) {
            Guard guard(state().lock);
            found("%s on rank %d while another thread uses the communicator", call, comm->rank);
        }
        // Gives a second thread time to enter.
        std::this_thread::yield();
    }
    ~Use() {
        if (comm) {
            comm->in_use = false;
        }
    }
    Comm *comm;
};

Comm *known(void *handle, const char *call) {
    Guard guard(state().lock);
    return usable(handle, call);
}

float from_bf16(uint16_t bits) {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

uint16_t to_bf16(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    if ((word & 0x7fffffff) > 0x7f800000) {
        return uint16_t(word >> 16 | 0x40);
    }
    return uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

size_t width(int type) {
    switch (type) {
        case 1: return 1;
        case 7: return 4;
        case 9: return 2;
        default: return 0;
    }
}

// Sums the ranks in ring order, beginning at another rank for each element: not in the order of the CPU's tree.
void sum(Meeting &meeting) {
    size_t world = meeting.from.size(), bytes = meeting.kind.count * width(meeting.kind.type);
    std::vector<char> out(bytes);
    for (size_t i = 0; i < meeting.kind.count; ++i) {
        float total = 0;
        for (size_t k = 0; k < world; ++k) {
            const char *from = meeting.from[(i + k) % world];
            if (meeting.kind.type == 7) {
                float value;
                memcpy(&value, from + 4 * i, 4);
                total = k ? total + value : value;
            } else {
                uint16_t value;
                memcpy(&value, from + 2 * i, 2);
                total = k ? from_bf16(to_bf16(total + from_bf16(value))) : from_bf16(value);
            }
        }
        if (meeting.kind.type == 7) {
            memcpy(&out[4 * i], &total, 4);
        } else {
            uint16_t rounded = to_bf16(total);
            memcpy(&out[2 * i], &rounded, 2);
        }
    }
    for (char *to : meeting.to) {
        memcpy(to, out.data(), bytes);
    }
}

void perform(Meeting &meeting) {
    size_t bytes = meeting.kind.count * width(meeting.kind.type), world = meeting.to.size();
    if (!strcmp(meeting.kind.name, "ncclAllReduce")) {
        sum(meeting);
    } else if (!strcmp(meeting.kind.name, "ncclBroadcast")) {
        for (char *to : meeting.to) {
            memmove(to, meeting.from[meeting.kind.root], bytes);
        }
    } else {
        for (char *to : meeting.to) {
            for (size_t rank = 0; rank < world; ++rank) {
                memmove(to + rank * bytes, meeting.from[rank], bytes);
            }
        }
    }
}

// The driver calls it, under its lock, when the operation's turn on its stream has come, until it returns 1.
int ready(void *data) {
    Call *call = static_cast<Call *>(data);
    State &s = state();
    Guard guard(s.lock);
    if (call->comm->released) {
        return 1;
    }
    std::shared_ptr<Meeting> meeting = call->meeting;
    if (!call->arrived) {
        call->arrived = true;
        if (++meeting->arrived == meeting->to.size() && !meeting->hangs) {
            std::thread([meeting, delay = s.settings.delay_us] {
                std::this_thread::sleep_for(std::chrono::microseconds(delay));
                Guard guard(state().lock);
                // A rank that was aborted meanwhile has taken its memory back.
                if (!meeting->hangs) {
                    perform(*meeting);
                    meeting->done = true;
                }
            }).detach();
        }
    }
    return meeting->done;
}

// Puts the operation on its stream.
void enqueue(Comm *comm, std::shared_ptr<Meeting> meeting, void *stream) {
    using Hold = int (*)(void *, int (*)(void *), void *);
    static Hold hold = reinterpret_cast<Hold>(dlsym(RTLD_DEFAULT, "fovea_driver_hold"));
    int code = hold ? hold(stream, ready, new Call{comm, meeting}) : -1;
    if (code) {
        Guard guard(state().lock);
        found("rank %d: the driver gives %d for an operation on a stream", comm->rank, code);
    }
}

int operation(const char *name, const void *from, void *to, size_t count, int type, int root, void *handle, void *stream) {
    Comm *comm = known(handle, name);
    if (!comm) {
        return INVALID_ARGUMENT;
    }
    Use use(comm, name);
    State &s = state();
    std::shared_ptr<Meeting> meeting;
    bool later = false;
    {
        Guard guard(s.lock);
        if (comm->state != SUCCESS) {
            found("%s on rank %d, whose communicator is in state %d", name, comm->rank, comm->state);
            return INVALID_USAGE;
        }
        int number = comm->operations++;
        if (comm->rank == s.settings.fail_rank && number == s.settings.fail_at) {
            return comm->state = s.settings.fail_code;
        }
        if (comm->rank == s.settings.error_rank && number == s.settings.error_at) {
            comm->state = s.settings.error_code;
        }
        auto &slot = comm->world->meetings[number];
        if (!slot) {
            slot = std::make_shared<Meeting>();
            slot->from.resize(comm->world->members.size());
            slot->to.resize(comm->world->members.size());
        }
        meeting = slot;
        Kind kind{name, count, type, root};
        if (!meeting->called) {
            meeting->called = true;
            meeting->kind = kind;
            meeting->first = comm->rank;
            meeting->hangs |= number == s.settings.hang_at;
        } else if (!(meeting->kind == kind)) {
            found("operation %d: rank %d is in %s of %zu, rank %d in %s of %zu", number, meeting->first,
                  meeting->kind.name, meeting->kind.count, comm->rank, name, count);
            meeting->hangs = true;
        }
        if (!width(type) || (!strcmp(name, "ncclAllReduce") && type == 1)) {
            found("%s of type %d is not known here", name, type);
            return INVALID_ARGUMENT;
        }
        meeting->from[comm->rank] = static_cast<const char *>(from);
        meeting->to[comm->rank] = static_cast<char *>(to);
        meeting->hangs |= comm->state != SUCCESS;
        later = !comm->connected && s.settings.connect_ms > 0 && comm->state == SUCCESS;
        comm->connected = true;
        if (later) {
            comm->state = IN_PROGRESS;
        }
    }
    if (!later) {
        enqueue(comm, meeting, stream);
        return SUCCESS;
    }
    // NCCL does so when it must make connections first: another thread puts the work on the stream later.
    std::thread([=, wait = s.settings.connect_ms] {
        std::this_thread::sleep_for(std::chrono::milliseconds(wait));
        {
            Guard guard(state().lock);
            if (comm->over) {
                return;
            }
        }
        enqueue(comm, meeting, stream);
        Guard guard(state().lock);
        comm->state = SUCCESS;
    }).detach();
    return IN_PROGRESS;
}

}  // namespace

API int ncclGetVersion(int *version) {
    Guard guard(state().lock);
    *version = state().settings.version;
    return SUCCESS;
}

API int ncclGetUniqueId(UniqueId *id) {
    Guard guard(state().lock);
    memset(id, 0x5a, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "stand-in %llu", (unsigned long long)++state().ids);
    return SUCCESS;
}

API int ncclCommInitRankConfig(void **handle, int world, UniqueId id, int rank, Config *config) {
    State &s = state();
    Guard guard(s.lock);
    if (config->size < sizeof(Config) || config->magic != 0xcafebeef || config->version < 21400 || config->blocking) {
        found("rank %d: config of %zu bytes, magic %x, version %u, blocking %d", rank, config->size, config->magic,
              config->version, config->blocking);
        return INVALID_ARGUMENT;
    }
    auto &slot = s.worlds[std::string(id.bytes, sizeof id.bytes)];
    if (!slot) {
        slot = std::make_shared<World>();
        slot->members.resize(world);
    }
    if (rank < 0 || rank >= world || slot->members.size() != size_t(world) || slot->members[rank]) {
        found("rank %d of %d does not fit a world of %zu", rank, world, slot->members.size());
        return INVALID_ARGUMENT;
    }
    Comm *comm = new Comm;
    comm->world = slot;
    comm->rank = rank;
    slot->members[rank] = comm;
    s.comms.insert(comm);
    if (++slot->joined == slot->members.size() && !s.settings.init_hangs) {
        for (Comm *member : slot->members) {
            member->state = SUCCESS;
        }
    }
    *handle = comm;
    return IN_PROGRESS;
}

API int ncclCommGetAsyncError(void *handle, int *code) {
    Comm *comm = known(handle, "ncclCommGetAsyncError");
    if (!comm) {
        return INVALID_ARGUMENT;
    }
    Use use(comm, "ncclCommGetAsyncError");
    Guard guard(state().lock);
    if (comm->finalizing && comm->state == IN_PROGRESS) {
        bool all = comm->world->finalized == comm->world->members.size();
        comm->state = all ? SUCCESS : comm->world->broken ? REMOTE_ERROR : IN_PROGRESS;
    }
    *code = comm->state;
    return SUCCESS;
}

API int ncclCommFinalize(void *handle) {
    Comm *comm = known(handle, "ncclCommFinalize");
    if (!comm) {
        return INVALID_ARGUMENT;
    }
    Use use(comm, "ncclCommFinalize");
    Guard guard(state().lock);
    comm->finalizing = true;
    comm->world->finalized += 1;
    return comm->state = IN_PROGRESS;
}

API int ncclCommDestroy(void *handle) {
    Comm *comm = known(handle, "ncclCommDestroy");
    if (!comm) {
        return INVALID_ARGUMENT;
    }
    Use use(comm, "ncclCommDestroy");
    Guard guard(state().lock);
    if (!comm->finalizing || comm->state != SUCCESS) {
        found("ncclCommDestroy on rank %d before it was finalized", comm->rank);
    }
    comm->over = "destroyed";
    return SUCCESS;
}

API int ncclCommAbort(void *handle) {
    Comm *comm = known(handle, "ncclCommAbort");
    if (!comm) {
        return INVALID_ARGUMENT;
    }
    Use use(comm, "ncclCommAbort");
    int wait;
    {
        Guard guard(state().lock);
        comm->over = "aborted";
        comm->world->broken = true;
        wait = state().settings.abort_ms;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(wait));
    Guard guard(state().lock);
    for (auto &entry : comm->world->meetings) {
        entry.second->hangs |= !entry.second->done;
    }
    comm->released = true;
    return SUCCESS;
}

API int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream) {
    return operation("ncclAllReduce", from, to, count, type, op, comm, stream);
}

API int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream) {
    return operation("ncclBroadcast", from, to, count, type, root, comm, stream);
}

API int ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream) {
    return operation("ncclAllGather", from, to, count, type, 0, comm, stream);
}

API const char *ncclGetErrorString(int code) {
    static const char *const texts[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error",
                                        "invalid argument", "invalid usage", "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return code >= 0 && code < 8 ? texts[code] : "unknown result code";
}

API const char *ncclGetLastError(void *) { return "stand-in:\n  what went wrong"; }

// How the stand-in behaves. A setting applies to operations that begin after it.
API void fovea_nccl_reset() {
    Guard guard(state().lock);
    state().settings = Settings();
    state().findings.clear();
}

API void fovea_nccl_set(const char *name, int a, int b, int c) {
    Guard guard(state().lock);
    Settings &set = state().settings;
    std::string key = name;
    if (key == "version") {
        set.version = a;
    } else if (key == "init_hangs") {
        set.init_hangs = a;
    } else if (key == "hang_at") {
        set.hang_at = a;
    } else if (key == "fail") {
        set.fail_rank = a, set.fail_at = b, set.fail_code = c;
    } else if (key == "async_error") {
        set.error_rank = a, set.error_at = b, set.error_code = c;
    } else if (key == "abort_ms") {
        set.abort_ms = a;
    } else if (key == "connect_ms") {
        set.connect_ms = a;
    } else if (key == "delay_us") {
        set.delay_us = a;
    } else {
        found("no setting %s", name);
    }
}

// Communicators that are neither destroyed nor aborted.
API int fovea_nccl_live() {
    Guard guard(state().lock);
    int live = 0;
    for (Comm *comm : state().comms) {
        live += !comm->over;
    }
    return live;
}

// Writes the findings since the last call, one per line; returns their length.
API size_t fovea_nccl_findings(char *text, size_t bytes) {
    Guard guard(state().lock);
    std::string findings = std::move(state().findings);
    state().findings.clear();
    snprintf(text, bytes, "%s", findings.c_str());
    return findings.size();
}
