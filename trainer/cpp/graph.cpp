// A step captured into a CUDA graph by libtorch's own class, which gives the allocations of the capture a memory pool
// of their own. Called from src/gpu/graph.rs.
//
// The program is linked without libtorch's CUDA side, which it loads when the user asks for a GPU, and the headers of
// that side need CUDA's. So this file looks its functions up by name, with the types that ATen/cuda/CUDAGraph.h of
// libtorch 2.11 gives them; tch accepts no other version.

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <utility>

#include "guarded.h"

namespace {

// Memory for an at::cuda::CUDAGraph, which has some 200 bytes.
struct alignas(64) Object {
  char bytes[4096];
};

using PoolId = std::pair<unsigned long long, unsigned long long>;
// cudaStreamCaptureModeRelaxed: other threads (NCCL's, those that copy) may use the device meanwhile.
constexpr int relaxed = 2;

// Member functions, called as the ABI defines it: the object is the first argument.
struct Functions {
  void (*construct)(void *self, bool keep_graph);
  void (*destroy)(void *self);
  void (*capture_begin)(void *self, PoolId pool, int mode);
  void (*capture_end)(void *self);
  void (*replay)(void *self);
};

template <class F> void find(F &function, const char *name) {
  function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  TORCH_CHECK(function, "fovea: libtorch's CUDA side has no ", name);
}

const Functions &functions() {
  static const Functions found = [] {
    Functions f{};
    find(f.construct, "_ZN2at4cuda9CUDAGraphC1Eb");
    find(f.destroy, "_ZN2at4cuda9CUDAGraphD1Ev");
    find(f.capture_begin, "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
    find(f.capture_end, "_ZN2at4cuda9CUDAGraph11capture_endEv");
    find(f.replay, "_ZN2at4cuda9CUDAGraph6replayEv");
    return f;
  }();
  return found;
}

} // namespace

extern "C" {

// Begins to record the work that is put on this thread's current stream.
char *fovea_graph_begin(void **graph) {
  return guarded([&] {
    const Functions &f = functions();
    Object *self = new Object;
    f.construct(self, false);
    try {
      f.capture_begin(self, PoolId{0, 0}, relaxed);
    } catch (...) {
      f.destroy(self);
      delete self;
      throw;
    }
    *graph = self;
  });
}

// Ends the recording; the thread that began it must call this.
char *fovea_graph_end(void *graph) {
  return guarded([&] { functions().capture_end(graph); });
}

// Puts the recorded work on the stream that it was recorded from.
char *fovea_graph_replay(void *graph) {
  return guarded([&] { functions().replay(graph); });
}

// Destroys the graph and returns its memory pool.
void fovea_graph_free(void *graph) {
  free(guarded([&] { functions().destroy(graph); }));
  delete static_cast<Object *>(graph);
}

} // extern "C"
