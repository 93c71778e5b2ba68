// Streams and events. In lazy mode, an item on a stream runs only when something waits for it, which is the latest that
// CUDA allows: a missing wait then shows as another result. In eager mode it runs at once.
#include <chrono>
#include <thread>

#include "driver.h"

namespace driver {
namespace {

constexpr unsigned NON_BLOCKING = 1, DISABLE_TIMING = 2;

bool reach(const Mark &mark);

// Runs the next item of `stream`. Returns false if the item is held.
bool step(Stream &stream) {
    const Item &next = stream.queue.front();
    if ((next.hold && !next.hold()) || (next.wait && !reach(*next.wait))) {
        return false;
    }
    Item item = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (item.hold || item.wait) {
        return true;
    }
    if (item.record) {
        using namespace std::chrono;
        item.record->done = true;
        item.record->ms = duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
    } else if (!stream.context->fault) {
        item.work(*stream.context);
    }
    return true;
}

// Items wait only for marks that were put on their streams before, so this ends. Returns false if the stream is held.
bool reach(const Mark &mark) {
    while (!mark.done && !mark.stream->queue.empty()) {
        if (!step(*mark.stream)) {
            return false;
        }
    }
    return true;
}

// A call that waits on the host polls while a stream is held, and meanwhile lets others call.
template <class F>
Code patiently(F look) {
    for (;;) {
        Code code = look();
        if (code != ERROR_NOT_READY) {
            return code;
        }
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}

}  // namespace

void drain(Stream &stream) {
    while (!stream.queue.empty() && step(stream)) {
    }
}

void drain_all() {
    State &s = state();
    for (const auto &[device, context] : s.contexts) {
        if (context->default_stream) {
            drain(*context->default_stream);
        }
    }
    for (const auto &[handle, stream] : s.streams.live) {
        drain(*stream);
    }
    for (const auto &stream : s.orphans) {
        drain(*stream);
    }
    s.orphans.clear();
}

std::shared_ptr<Stream> stream_of(Context &context, void *handle) {
    void *const legacy = reinterpret_cast<void *>(1);
    return !handle || handle == legacy ? context.default_stream : state().streams.find(handle);
}

Code enqueue(Stream &stream, Item item) {
    if (stream.capture) {
        return record(stream, std::move(item));
    }
    stream.queue.push_back(std::move(item));
    if (!state().lazy) {
        drain(stream);
    }
    return stream.context->fault;
}

Code enqueue_work(Context &context, void *handle, std::function<void(Context &)> work) {
    auto stream = stream_of(context, handle);
    if (!stream || stream->context != &context) {
        return ERROR_INVALID_HANDLE;
    }
    return enqueue(*stream, Item{std::move(work), nullptr, nullptr});
}

}  // namespace driver

using namespace driver;

API Code cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    return in_context([&](State &, Context &) {
        *least = 0;
        *greatest = -5;
        return SUCCESS;
    });
}

API Code cuStreamCreateWithPriority(void **handle, unsigned flags, int) {
    return in_context([&](State &s, Context &context) {
        if (flags != NON_BLOCKING) {  // others wait for the default stream, which is not emulated
            return ERROR_NOT_SUPPORTED;
        }
        *handle = s.streams.add(std::make_shared<Stream>(&context));
        return SUCCESS;
    });
}

API Code cuStreamDestroy_v2(void *handle) {
    return in_context([&](State &s, Context &) {
        auto stream = s.streams.find(handle);
        if (!stream) {
            return ERROR_INVALID_HANDLE;
        }
        invalidate(*stream);
        s.streams.live.erase(handle);
        s.orphans.push_back(stream);  // its items still run
        return SUCCESS;
    });
}

API Code cuStreamSynchronize(void *handle) {
    return patiently([&] { return in_context([&](State &, Context &context) {
        auto stream = stream_of(context, handle);
        if (!stream) {
            return ERROR_INVALID_HANDLE;
        }
        if (stream->capture) {
            invalidate(*stream);
            return ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        drain(*stream);
        return stream->queue.empty() ? context.fault : ERROR_NOT_READY;
    }); });
}

API Code cuCtxSynchronize() {
    return in_context([&](State &s, Context &context) {
        for (const auto &[handle, stream] : s.streams.live) {
            if (stream->context == &context && stream->capture) {
                invalidate(*stream);
                return ERROR_STREAM_CAPTURE_UNSUPPORTED;
            }
        }
        drain_all();
        return context.fault;
    });
}

API Code cuStreamWaitEvent(void *handle, void *event_handle, unsigned) {
    return in_context([&](State &s, Context &context) {
        auto stream = stream_of(context, handle);
        auto event = s.events.find(event_handle);
        if (!stream || !event) {
            return ERROR_INVALID_HANDLE;
        }
        auto mark = event->mark;
        if (!mark) {
            return SUCCESS;
        }
        if (mark->captured) {
            auto capture = mark->capture.lock();
            if (!capture) {
                return ERROR_CAPTURED_EVENT;
            }
            if (stream == context.default_stream) {
                return ERROR_STREAM_CAPTURE_UNSUPPORTED;
            }
            if (stream->capture && stream->capture != capture) {
                invalidate(*stream);
                capture->invalid = true;
                return ERROR_STREAM_CAPTURE_MERGE;
            }
            stream->capture = capture;  // the stream joins the capture
            for (const auto &[other, item] : mark->clock) {
                size_t &known = stream->clock[other];
                known = std::max(known, item);
            }
        } else if (stream->capture) {
            invalidate(*stream);
            return ERROR_STREAM_CAPTURE_ISOLATION;
        }
        return enqueue(*stream, Item{nullptr, mark, nullptr});
    });
}

API Code cuEventCreate(void **handle, unsigned flags) {
    return in_context([&](State &s, Context &context) {
        *handle = s.events.add(std::make_shared<Event>(Event{&context, !(flags & DISABLE_TIMING), nullptr}));
        return SUCCESS;
    });
}

API Code cuEventDestroy_v2(void *handle) {
    return in_context([&](State &s, Context &) {
        return s.events.live.erase(handle) ? SUCCESS : ERROR_INVALID_HANDLE;
    });
}

API Code cuEventRecord(void *handle, void *stream_handle) {
    return in_context([&](State &s, Context &context) {
        auto stream = stream_of(context, stream_handle);
        auto event = s.events.find(handle);
        if (!stream || !event || event->context != stream->context) {
            return ERROR_INVALID_HANDLE;
        }
        auto mark = std::make_shared<Mark>();
        mark->stream = stream;
        mark->captured = stream->capture != nullptr;
        mark->capture = stream->capture;
        mark->clock = stream->clock;
        event->mark = mark;
        return enqueue(*stream, Item{nullptr, nullptr, mark});
    });
}

// Runs `then` with the last recording of an event, and does nothing for an event without one. Refuses a recording of a
// capture, which it invalidates.
template <class F>
static Code with_mark(void *handle, F then) {
    return in_context([&](State &s, Context &context) {
        auto event = s.events.find(handle);
        if (!event) {
            return ERROR_INVALID_HANDLE;
        }
        if (event->mark && event->mark->captured) {
            if (auto capture = event->mark->capture.lock()) {
                capture->invalid = true;
            }
            return ERROR_CAPTURED_EVENT;
        }
        Code code = event->mark ? then(*event->mark) : SUCCESS;
        return code ? code : context.fault;
    });
}

API Code cuEventQuery(void *handle) {
    return with_mark(handle, [](Mark &mark) {
        if (mark.done) {
            return SUCCESS;
        }
        if (state().lazy) {
            step(*mark.stream);
            return ERROR_NOT_READY;
        }
        drain(*mark.stream);
        return mark.done ? SUCCESS : ERROR_NOT_READY;
    });
}

API Code cuEventSynchronize(void *handle) {
    return patiently([&] { return with_mark(handle, [](Mark &mark) {
        return reach(mark) ? SUCCESS : ERROR_NOT_READY;
    }); });
}

API Code cuEventElapsedTime_v2(float *ms, void *start, void *end) {
    return in_context([&](State &s, Context &) {
        auto from = s.events.find(start), to = s.events.find(end);
        if (!from || !to || !from->timed || !to->timed || !from->mark || !to->mark) {
            return ERROR_INVALID_HANDLE;
        }
        if (!from->mark->done || !to->mark->done) {
            return ERROR_NOT_READY;
        }
        *ms = float(to->mark->ms - from->mark->ms);
        return SUCCESS;
    });
}

// Holds `stream` at this point, once it gets there, until `ready(data)` is not 0: for stand-ins of libraries whose work
// on a stream ends when other ranks have come. Any thread may call `ready`, which must not call the driver.
API Code fovea_driver_hold(void *handle, int (*ready)(void *), void *data) {
    return anywhere([&](State &s) {
        auto stream = s.streams.find(handle);
        if (!stream) {
            return ERROR_INVALID_HANDLE;
        }
        if (stream->capture) {
            return ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        return enqueue(*stream, Item{nullptr, nullptr, nullptr, [=] { return ready(data) != 0; }});
    });
}
