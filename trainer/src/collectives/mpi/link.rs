//! The few MPI calls this backend makes, with their errors and their requests kept in one place. The
//! only file of this backend that calls into the MPI library, through `trainer/mpi/link.c`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use crate::collectives::{Error, Result};

/// What a message is; MPI keeps the order of messages of one tag between two ranks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tag {
    Note = 1,
    Data = 2,
    Abort = 3,
}

/// The longest abort reason sent, in bytes.
const REASON_BYTES: usize = 248;
/// How long a rank that gives up works on telling the others.
const FAREWELL: Duration = Duration::from_millis(10);

/// A communicator and its requests, as `link.c` keeps them.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

/// What `fovea_mpi_open` returns where it is not an error of MPI.
const RUNNING: c_int = -1;
const NO_THREADS: c_int = -2;
const NO_MEMORY: c_int = -3;

/// Longest message of an MPI error that is passed on, in bytes.
const ERROR_BYTES: usize = 512;

// The signatures of `link.c`; see there.
unsafe extern "C" {
    fn fovea_mpi_open(
        out: *mut *mut Opaque,
        rank: *mut c_int,
        world: *mut c_int,
        level: *mut c_int,
        call: *mut *const c_char,
    ) -> c_int;
    fn fovea_mpi_send(
        link: *mut Opaque,
        data: *const c_void,
        bytes: c_int,
        peer: c_int,
        tag: c_int,
    ) -> c_int;
    fn fovea_mpi_receive(
        link: *mut Opaque,
        data: *mut c_void,
        bytes: c_int,
        peer: c_int,
        tag: c_int,
    ) -> c_int;
    fn fovea_mpi_progress(link: *mut Opaque, done: *mut c_int, finished: *mut c_int) -> c_int;
    fn fovea_mpi_forget(link: *mut Opaque);
    fn fovea_mpi_take(
        link: *mut Opaque,
        data: *mut c_void,
        bytes: c_int,
        tag: c_int,
        there: *mut c_int,
        source: *mut c_int,
        call: *mut *const c_char,
    ) -> c_int;
    fn fovea_mpi_error(code: c_int, text: *mut c_char, room: c_int) -> c_int;
    fn fovea_mpi_close(link: *mut Opaque);
}

/// A private communicator over all ranks, and the messages under way on it.
pub(super) struct Link {
    inner: NonNull<Opaque>,
    pub(super) rank: usize,
    pub(super) world: usize,
    /// Per request, whom it is with; None once it is complete.
    peers: Vec<Option<usize>>,
    finished: Vec<c_int>,
    /// After an error, messages may stay under way for ever: then MPI must not be finalized.
    broken: bool,
}

// SAFETY: the handles are only used by whoever has the `Link`, one thread at a time, and `open`
// asked MPI for MPI_THREAD_SERIALIZED, which allows exactly that.
unsafe impl Send for Link {}

impl Link {
    /// Starts MPI in this process; once per process.
    pub(super) fn open() -> Result<Self> {
        let (mut inner, mut call) = (ptr::null_mut(), c"MPI_Init_thread".as_ptr());
        let (mut rank, mut world, mut level) = (0, 0, 0);
        // SAFETY: plain out-parameters.
        let code = unsafe {
            fovea_mpi_open(
                &raw mut inner,
                &raw mut rank,
                &raw mut world,
                &raw mut level,
                &raw mut call,
            )
        };
        let message = match (code, NonNull::new(inner)) {
            (0, Some(inner)) => {
                return Ok(Self {
                    inner,
                    rank: rank as usize,
                    world: world as usize,
                    peers: Vec::new(),
                    finished: Vec::new(),
                    broken: false,
                });
            }
            (RUNNING, _) => "MPI was started in this process before".to_owned(),
            (NO_THREADS, _) => {
                format!("the library offers thread level {level}, but MPI_THREAD_SERIALIZED is needed")
            }
            (NO_MEMORY, _) => "out of memory".to_owned(),
            (code, _) => meaning(code),
        };
        // SAFETY: the name of a call, which `link.c` has as a literal.
        let call = unsafe { CStr::from_ptr(call) };
        Err(Error::Mpi {
            call: call.to_str().unwrap_or("MPI"),
            rank: 0,
            message,
            help: "start each process once, with the MPI launcher (mpirun, srun --mpi=...) of the MPI \
                   that this binary was built with",
        })
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        Err(Error::Mpi {
            call,
            rank: self.rank,
            message: meaning(code),
            help: "the launcher's output may say more; resume from the last checkpoint",
        })
    }

    /// Starts sending `data` to `peer`.
    ///
    /// # Safety
    /// The memory stays where it is and is not written to until [`Link::progress`] has returned 0, or
    /// for ever if it never does.
    pub(super) unsafe fn send(&mut self, data: *const [u8], peer: usize, tag: Tag) -> Result<()> {
        let len = self.count_in(data.len(), peer);
        // SAFETY: the caller keeps the memory, which is as long as we say.
        let code = unsafe {
            fovea_mpi_send(
                self.inner.as_ptr(),
                data.cast::<c_void>(),
                len,
                peer as c_int,
                tag as c_int,
            )
        };
        self.check("MPI_Isend", code)
    }

    /// Starts receiving exactly `data.len()` bytes from `peer`.
    ///
    /// # Safety
    /// The memory stays where it is and is neither read nor written to until [`Link::progress`] has
    /// returned 0, or for ever if it never does.
    pub(super) unsafe fn receive(&mut self, data: *mut [u8], peer: usize, tag: Tag) -> Result<()> {
        let len = self.count_in(data.len(), peer);
        // SAFETY: as in `send`.
        let code = unsafe {
            fovea_mpi_receive(
                self.inner.as_ptr(),
                data.cast::<c_void>(),
                len,
                peer as c_int,
                tag as c_int,
            )
        };
        self.check("MPI_Irecv", code)
    }

    /// Counts a request with `peer` in; the length of its message as MPI wants it.
    fn count_in(&mut self, len: usize, peer: usize) -> c_int {
        self.peers.push(Some(peer));
        self.finished.push(0);
        count(len)
    }

    /// Moves the messages under way along; says how many have just been completed and how many are
    /// still under way.
    pub(super) fn progress(&mut self) -> Result<(usize, usize)> {
        let mut done = 0;
        // SAFETY: `finished` has an element for each request.
        let code = unsafe {
            fovea_mpi_progress(
                self.inner.as_ptr(),
                &raw mut done,
                self.finished.as_mut_ptr(),
            )
        };
        self.check("MPI_Testsome", code)?;
        let done = usize::try_from(done).unwrap_or(0);
        for index in &self.finished[..done] {
            let peer = usize::try_from(*index)
                .ok()
                .and_then(|i| self.peers.get_mut(i));
            if let Some(peer) = peer {
                *peer = None;
            }
        }
        let left = self.peers.iter().flatten().count();
        if left == 0 {
            // SAFETY: all requests are complete.
            unsafe { fovea_mpi_forget(self.inner.as_ptr()) };
            self.peers.clear();
            self.finished.clear();
        }
        Ok((done, left))
    }

    /// The ranks that messages are under way with.
    pub(super) fn waiting_for(&self) -> Vec<usize> {
        let peers = self.peers.iter().flatten().copied();
        peers
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// An abort that another rank has sent: by whom, and why.
    pub(super) fn hear_abort(&mut self) -> Result<Option<(usize, String)>> {
        let mut reason = [0_u8; REASON_BYTES];
        let (mut there, mut source, mut call) = (0, 0, ptr::null());
        // SAFETY: the buffer is as long as we say; the others are plain out-parameters.
        let code = unsafe {
            fovea_mpi_take(
                self.inner.as_ptr(),
                reason.as_mut_ptr().cast(),
                count(reason.len()),
                Tag::Abort as c_int,
                &raw mut there,
                &raw mut source,
                &raw mut call,
            )
        };
        if code != 0 {
            // SAFETY: the name of the call, which `link.c` has as a literal and always sets.
            let call = unsafe { CStr::from_ptr(call) };
            self.check(call.to_str().unwrap_or("MPI_Iprobe"), code)?;
        }
        if there == 0 {
            return Ok(None);
        }
        let end = reason.iter().position(|b| *b == 0).unwrap_or(reason.len());
        let reason = String::from_utf8_lossy(&reason[..end]).into_owned();
        Ok(Some((usize::try_from(source).unwrap_or(0), reason)))
    }

    /// Gives up for good; with a reason, the others are told, as far as that goes in [`FAREWELL`].
    pub(super) fn abort(&mut self, reason: Option<&str>) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        let Some(reason) = reason else { return };
        let mut bytes = [0_u8; REASON_BYTES];
        let len = reason.len().min(REASON_BYTES);
        bytes[..len].copy_from_slice(&reason.as_bytes()[..len]);
        let bytes: &'static [u8] = Box::leak(Box::new(bytes));
        let rank = self.rank;
        for peer in (0..self.world).filter(|peer| *peer != rank) {
            // SAFETY: leaked memory stays for ever. If it fails, that rank's own deadline has to do.
            let _ = unsafe { self.send(bytes, peer, Tag::Abort) };
        }
        let end = Instant::now() + FAREWELL;
        while Instant::now() < end && matches!(self.progress(), Ok((_, 1..))) {
            std::thread::yield_now();
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.broken {
            // MPI_Finalize would wait for messages that nobody will ever take. Leaving without it makes
            // the launcher end the other processes, which is what is left to do.
            return;
        }
        // SAFETY: no message is under way and nobody uses the link after this.
        unsafe { fovea_mpi_close(self.inner.as_ptr()) };
    }
}

/// What MPI says that an error code means.
fn meaning(code: c_int) -> String {
    let mut text = [0_u8; ERROR_BYTES];
    // SAFETY: the buffer is as long as we say.
    let len = unsafe { fovea_mpi_error(code, text.as_mut_ptr().cast(), count(text.len())) };
    match usize::try_from(len) {
        Ok(len @ 1..=ERROR_BYTES) => String::from_utf8_lossy(&text[..len]).into_owned(),
        _ => format!("error {code}"),
    }
}

/// Lengths of messages and lists here are bounded by the chunk, far below 2^31.
fn count(len: usize) -> c_int {
    c_int::try_from(len).expect("pieces of a message are at most a chunk long")
}
