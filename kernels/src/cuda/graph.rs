//! Work that is recorded once and launched as a whole, any number of times.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUstreamCaptureMode};

use super::error::{Error, Result, check};
use super::kernels::Kernels;

/// Launches and copies that were captured from a stream. Every launch of the graph repeats them with the same kernels,
/// addresses and sizes, on the memory's content at that time.
#[derive(Debug)]
pub struct Graph {
    kernels: Arc<Kernels>,
    exec: sys::CUgraphExec,
}

// SAFETY: an executable graph may be used from any thread, by one at a time (CUDA driver API, "Graph
// Management"); `launch` is the only use, and its caller promises that.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Records the work that `work` puts on `stream`, without running it; returns the graph and the result of `work`.
    /// The capture is ended in any case, also when `work` fails or panics.
    ///
    /// Other threads may use the device meanwhile (mode "relaxed"); but `work` must neither wait for `stream` nor ask
    /// whether it is done.
    ///
    /// # Errors
    ///
    /// The error of `work`. The driver's error if `stream` is the default stream, is being captured already, or
    /// something waited for it.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU, on which nobody else puts work meanwhile. What `work` puts there
    /// must be valid, as the calls that put it demand, whenever the graph is launched.
    pub unsafe fn capture<T, E: From<Error>>(
        kernels: &Arc<Kernels>,
        stream: usize,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(Self, T), E> {
        // SAFETY: as promised by the caller.
        let mut capture = unsafe { Capture::begin(kernels, stream)? };
        let done = work()?;
        let recorded = capture.end()?;
        let mut exec = std::ptr::null_mut();
        let _current = kernels.enter()?;
        // SAFETY: a live graph, which the call copies; destroyed once, in drop.
        check("cuGraphInstantiate", unsafe {
            sys::cuGraphInstantiateWithFlags(&mut exec, recorded.0, 0)
        })?;
        let kernels = Arc::clone(kernels);
        Ok((Self { kernels, exec }, done))
    }

    /// Starts the recorded work on `stream`. Returns at once.
    ///
    /// # Errors
    ///
    /// The driver's error.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU, the addresses in the recorded work valid until it is done, and no
    /// two threads may launch the same graph at once.
    pub unsafe fn launch(&self, stream: usize) -> Result<()> {
        let _current = self.kernels.enter()?;
        // SAFETY: as promised by the caller.
        check("cuGraphLaunch", unsafe {
            sys::cuGraphLaunch(self.exec, stream as sys::CUstream)
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_current) = self.kernels.enter() {
            // SAFETY: instantiated once. An error leaves nothing to do.
            unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// A stream that is being captured, until it is ended or dropped.
struct Capture<'a> {
    kernels: &'a Kernels,
    stream: sys::CUstream,
    open: bool,
}

impl<'a> Capture<'a> {
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU for as long as the result.
    unsafe fn begin(kernels: &'a Kernels, stream: usize) -> Result<Self> {
        let stream = stream as sys::CUstream;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        let _current = kernels.enter()?;
        // SAFETY: as promised by the caller; ended once.
        check("cuStreamBeginCapture", unsafe {
            sys::cuStreamBeginCapture_v2(stream, mode)
        })?;
        Ok(Self {
            kernels,
            stream,
            open: true,
        })
    }

    /// Ends the capture; the graph is null if nothing good was recorded.
    fn end(&mut self) -> Result<RecordedGraph> {
        self.open = false;
        let mut graph = std::ptr::null_mut();
        let _current = self.kernels.enter()?;
        // SAFETY: a live stream, by the promise of `begin`.
        let code = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        let recorded = RecordedGraph(graph);
        check("cuStreamEndCapture", code).map(|()| recorded)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.open {
            // The error of `work` is the one to report.
            let _ = self.end();
        }
    }
}

/// A graph as it was recorded.
struct RecordedGraph(sys::CUgraph);

impl Drop for RecordedGraph {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by cuStreamEndCapture, destroyed once; no context is needed.
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}
