//! Fovea's own streams, and the events by which streams and the host wait for each other.
//!
//! A stream's handle is `usize`, as [`Kernels::run`] takes it, so libtorch's streams work as well.

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent_flags, CUresult, CUstream_flags};

use super::error::{Result, check};
use super::kernels::Kernels;

/// Driver version from which events measure time by cuEventElapsedTime_v2.
const WITH_ELAPSED_TIME_V2: u32 = 12_080;

/// A stream that does not wait for the default stream. Dropping it destroys it; the work that is on it is still done.
#[derive(Debug)]
pub struct Stream {
    kernels: Arc<Kernels>,
    handle: sys::CUstream,
}

// SAFETY: a stream may be used from any thread (CUDA driver API, "Stream Management"); every call makes the
// context current in its thread first.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks its shared state.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of ordinary priority.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn new(kernels: &Arc<Kernels>) -> Result<Self> {
        Self::with_priority(kernels, 0)
    }

    /// A stream whose kernels go before those of other streams when multiprocessors become free.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn with_high_priority(kernels: &Arc<Kernels>) -> Result<Self> {
        let (mut least, mut greatest) = (0, 0);
        let current = kernels.enter()?;
        // SAFETY: writes two ints.
        check("cuCtxGetStreamPriorityRange", unsafe {
            sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest)
        })?;
        drop(current);
        Self::with_priority(kernels, greatest)
    }

    fn with_priority(kernels: &Arc<Kernels>, priority: c_int) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        let _current = kernels.enter()?;
        // SAFETY: the context is current; destroyed once, in drop.
        check("cuStreamCreateWithPriority", unsafe {
            sys::cuStreamCreateWithPriority(&mut handle, flags, priority)
        })?;
        Ok(Self {
            kernels: Arc::clone(kernels),
            handle,
        })
    }

    /// The driver's handle, valid as long as `self`.
    #[must_use]
    pub fn handle(&self) -> usize {
        self.handle as usize
    }

    /// Waits until all work on the stream is done.
    ///
    /// # Errors
    ///
    /// The error of work on the device since.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as self.
        unsafe { self.kernels.synchronize(self.handle()) }
    }

    /// Makes work that is put on the stream from now on wait for the last recording of `event`. Returns at once.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: the stream lives as long as self.
        unsafe { wait_event(self.handle(), event) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = self.kernels.enter() {
            // SAFETY: created once. An error leaves nothing to do.
            unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// As [`Stream::wait`], for a stream of another library.
///
/// # Errors
///
/// The driver's error.
///
/// # Safety
///
/// `stream` must be a live stream of the event's GPU.
pub unsafe fn wait_event(stream: usize, event: &Event) -> Result<()> {
    let _current = event.kernels.enter()?;
    // SAFETY: as promised by the caller; the event lives.
    check("cuStreamWaitEvent", unsafe {
        sys::cuStreamWaitEvent(stream as sys::CUstream, event.handle, 0)
    })
}

/// A point in the work of a stream. Before it is first recorded it counts as reached.
#[derive(Debug)]
pub struct Event {
    kernels: Arc<Kernels>,
    handle: sys::CUevent,
    timed: bool,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Event {}
// SAFETY: as for `Stream`.
unsafe impl Sync for Event {}

impl Event {
    /// An event that can be waited for but not timed.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn new(kernels: &Arc<Kernels>) -> Result<Self> {
        Self::create(kernels, false)
    }

    /// An event that also records its time, which costs the stream a little.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn timed(kernels: &Arc<Kernels>) -> Result<Self> {
        Self::create(kernels, true)
    }

    fn create(kernels: &Arc<Kernels>, timed: bool) -> Result<Self> {
        // A waiting thread sleeps, because other threads of this process (loading, NCCL's) need the processor.
        let flags = CUevent_flags::CU_EVENT_BLOCKING_SYNC as c_uint
            | if timed {
                CUevent_flags::CU_EVENT_DEFAULT as c_uint
            } else {
                CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint
            };
        let mut handle = std::ptr::null_mut();
        let _current = kernels.enter()?;
        // SAFETY: the context is current; destroyed once, in drop.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&mut handle, flags)
        })?;
        Ok(Self {
            kernels: Arc::clone(kernels),
            handle,
            timed,
        })
    }

    /// Records the event on `stream`: from now on it stands for all work that is there now. Returns at once.
    ///
    /// # Errors
    ///
    /// The driver's error.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU.
    pub unsafe fn record(&self, stream: usize) -> Result<()> {
        let _current = self.kernels.enter()?;
        // SAFETY: as promised by the caller; the event lives.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(self.handle, stream as sys::CUstream)
        })
    }

    /// Whether the device has reached the event. Does not wait.
    ///
    /// # Errors
    ///
    /// The error of work on the device since.
    pub fn is_done(&self) -> Result<bool> {
        let _current = self.kernels.enter()?;
        // SAFETY: the event lives.
        match unsafe { sys::cuEventQuery(self.handle) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Waits until the device has reached the event.
    ///
    /// # Errors
    ///
    /// The error of work on the device since.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.kernels.enter()?;
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(self.handle)
        })
    }

    /// Milliseconds on the device from `earlier` to `self`; the device must have reached both.
    ///
    /// # Errors
    ///
    /// One of them is not timed, was never recorded, or is not reached yet.
    pub fn ms_since(&self, earlier: &Self) -> Result<f32> {
        let untimed = |what: &'static str, actual: String, help| crate::Error::Argument {
            what,
            limit: "two timed events and a driver of CUDA 12.8 or newer",
            actual,
            help,
        };
        if !self.timed || !earlier.timed {
            let actual = format!("timed: {}, earlier: {}", self.timed, earlier.timed);
            return Err(untimed("Event", actual, "make both by Event::timed").into());
        }
        let driver = &self.kernels.device().driver;
        if *driver < WITH_ELAPSED_TIME_V2 {
            let actual = self.kernels.device().driver_version();
            return Err(untimed("the driver", actual, "update the NVIDIA driver").into());
        }
        let mut ms = 0.0;
        let _current = self.kernels.enter()?;
        // SAFETY: writes one float; both events live.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime_v2(&mut ms, earlier.handle, self.handle)
        })?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.kernels.enter() {
            // SAFETY: created once. An error leaves nothing to do.
            unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
