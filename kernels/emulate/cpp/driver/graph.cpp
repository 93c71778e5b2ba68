// Stream capture and graphs. Items that are put on a capturing stream are recorded with the stream that they were for;
// a launch plays them back on streams of its own, each of which waits for the others where it did in the capture.
#include "driver.h"

namespace driver {
namespace {

// Waits and recordings are played back with marks of their own, because nobody ever reaches the capture's.
void play(Context &context, const Recording &recording) {
    std::map<Stream *, std::shared_ptr<Stream>> streams;
    std::map<Mark *, std::shared_ptr<Mark>> marks;
    for (const auto &[captured, item] : recording.items) {
        auto &stream = streams[captured.get()];
        if (!stream) {
            stream = std::make_shared<Stream>(&context);
        }
        Item now = item;
        if (item.record) {
            now.record = std::make_shared<Mark>();
            now.record->stream = stream;
            marks[item.record.get()] = now.record;
        }
        if (item.wait) {
            now.wait = marks[item.wait.get()];
        }
        enqueue(*stream, std::move(now));
    }
    // The other streams have been joined: they are done as far as the first stream waits for them.
    if (auto &origin = streams[recording.origin.get()]) {
        drain(*origin);
    }
    for (auto &[captured, stream] : streams) {
        if (stream) {
            drain(*stream);
        }
    }
}

}  // namespace

Code record(Stream &stream, Item item) {
    Capture &capture = *stream.capture;
    if (capture.invalid) {
        return ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    auto &items = capture.recording.items;
    if (item.work) {
        stream.clock[&stream] = items.size() + 1;
    }
    items.emplace_back(stream.shared_from_this(), std::move(item));
    return SUCCESS;
}

void invalidate(Stream &stream) {
    if (stream.capture) {
        stream.capture->invalid = true;
    }
}

}  // namespace driver

using namespace driver;

API Code cuStreamBeginCapture_v2(void *handle, int) {
    return in_context([&](State &s, Context &context) {
        if (stream_of(context, handle) == context.default_stream) {
            return ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        auto stream = s.streams.find(handle);
        if (!stream) {
            return ERROR_INVALID_HANDLE;
        }
        if (stream->capture) {
            return ERROR_ILLEGAL_STATE;
        }
        stream->capture = std::make_shared<Capture>();
        stream->capture->recording.origin = stream;
        return SUCCESS;
    });
}

API Code cuStreamEndCapture(void *handle, void **graph) {
    return in_context([&](State &s, Context &) {
        *graph = nullptr;
        auto stream = s.streams.find(handle);
        if (!stream) {
            return ERROR_INVALID_HANDLE;
        }
        auto capture = stream->capture;
        if (!capture) {
            return ERROR_ILLEGAL_STATE;
        }
        Code code = capture->invalid ? ERROR_STREAM_CAPTURE_INVALIDATED : SUCCESS;
        if (capture->recording.origin != stream) {
            capture->invalid = true;
            return ERROR_STREAM_CAPTURE_UNMATCHED;
        }
        Clock known = stream->clock;
        for (const auto &[other_handle, other] : s.streams.live) {
            if (other->capture == capture) {
                if (!code && known[other.get()] < other->clock[other.get()]) {
                    code = ERROR_STREAM_CAPTURE_UNJOINED;
                }
                other->capture = nullptr;
                other->clock.clear();
            }
        }
        if (!code) {
            auto recording = std::make_shared<const Recording>(std::move(capture->recording));
            *graph = s.graphs.add(std::make_shared<Graph>(Graph{recording}));
        }
        return code;
    });
}

API Code cuGraphInstantiateWithFlags(void **exec, void *handle, unsigned long long) {
    return in_context([&](State &s, Context &context) {
        auto graph = s.graphs.find(handle);
        if (!graph) {
            return ERROR_INVALID_VALUE;
        }
        *exec = s.execs.add(std::make_shared<GraphExec>(GraphExec{&context, graph->recording}));
        return SUCCESS;
    });
}

API Code cuGraphDestroy(void *handle) {
    return anywhere([&](State &s) { return s.graphs.live.erase(handle) ? SUCCESS : ERROR_INVALID_VALUE; });
}

API Code cuGraphExecDestroy(void *handle) {
    return anywhere([&](State &s) { return s.execs.live.erase(handle) ? SUCCESS : ERROR_INVALID_VALUE; });
}

API Code cuGraphLaunch(void *handle, void *stream) {
    return in_context([&](State &s, Context &context) {
        auto exec = s.execs.find(handle);
        if (!exec) {
            return ERROR_INVALID_VALUE;
        }
        auto recording = exec->recording;
        return enqueue_work(context, stream, [recording](Context &context) { play(context, *recording); });
    });
}
