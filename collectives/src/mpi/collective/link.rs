//! The few MPI calls this backend makes, with their errors and their requests kept in one place. The
//! only file of this backend that calls the MPI library.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use ::mpi::environment::Universe;
use ::mpi::ffi;
use ::mpi::traits::{AsRaw, Communicator};

use crate::{Error, Result};

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

/// A private communicator over all ranks, and the messages under way on it.
pub(super) struct Link {
    universe: Option<Universe>,
    comm: ffi::MPI_Comm,
    pub(super) rank: usize,
    pub(super) world: usize,
    requests: Vec<ffi::MPI_Request>,
    /// Whom each request is with; None once it is complete.
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
        use ::mpi::Threading;
        let failed = |message: String| Error::Mpi {
            call: "MPI_Init_thread",
            rank: 0,
            message,
            help: "start each process once, with the MPI launcher (mpirun, srun --mpi=...) of the MPI \
                   that this binary was built with",
        };
        let (universe, provided) = ::mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| failed("MPI was started in this process before".to_string()))?;
        if provided < Threading::Serialized {
            return Err(failed(format!(
                "the library offers {provided:?}, but threads need Serialized"
            )));
        }
        let all = universe.world();
        let mut link = Self {
            comm: all.as_raw(),
            rank: all.rank() as usize,
            world: all.size() as usize,
            universe: Some(universe),
            requests: Vec::new(),
            peers: Vec::new(),
            finished: Vec::new(),
            broken: false,
        };
        let mut comm = MaybeUninit::uninit();
        // SAFETY: MPI is running; `comm` receives the new communicator.
        let code = unsafe { ffi::MPI_Comm_dup(link.comm, comm.as_mut_ptr()) };
        link.check("MPI_Comm_dup", code)?;
        // SAFETY: MPI_Comm_dup succeeded, so it has written the handle.
        link.comm = unsafe { comm.assume_init() };
        // SAFETY: a communicator of our own; without this every error would end the process.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(link.comm, ffi::RSMPI_ERRORS_RETURN) };
        link.check("MPI_Comm_set_errhandler", code)?;
        Ok(link)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == ffi::MPI_SUCCESS as c_int {
            return Ok(());
        }
        let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize];
        let mut len = 0;
        // SAFETY: the buffer has the length that MPI asks for.
        let told = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut len) };
        let message = if told == ffi::MPI_SUCCESS as c_int {
            let len = usize::try_from(len).unwrap_or(0).min(text.len());
            String::from_utf8_lossy(&text[..len]).into_owned()
        } else {
            format!("error {code}")
        };
        Err(Error::Mpi {
            call,
            rank: self.rank,
            message,
            help: "the launcher's output may say more; resume from the last checkpoint",
        })
    }

    /// Starts sending `data` to `peer`.
    ///
    /// # Safety
    /// The memory stays where it is and is not written to until [`Link::progress`] has returned 0, or
    /// for ever if it never does.
    pub(super) unsafe fn send(&mut self, data: *const [u8], peer: usize, tag: Tag) -> Result<()> {
        let (len, request) = (count(data.len()), self.new_request(peer));
        // SAFETY: the caller keeps the memory; the request is a slot of our own.
        let code = unsafe {
            ffi::MPI_Isend(
                data.cast::<c_void>(),
                len,
                ffi::RSMPI_UINT8_T,
                peer as c_int,
                tag as c_int,
                self.comm,
                request,
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
        let (len, request) = (count(data.len()), self.new_request(peer));
        // SAFETY: as in `send`.
        let code = unsafe {
            ffi::MPI_Irecv(
                data.cast::<c_void>(),
                len,
                ffi::RSMPI_UINT8_T,
                peer as c_int,
                tag as c_int,
                self.comm,
                request,
            )
        };
        self.check("MPI_Irecv", code)
    }

    fn new_request(&mut self, peer: usize) -> *mut ffi::MPI_Request {
        self.peers.push(Some(peer));
        self.finished.push(0);
        // SAFETY: a constant of the library, set before main.
        self.requests.push(unsafe { ffi::RSMPI_REQUEST_NULL });
        let last = self.requests.len() - 1;
        &raw mut self.requests[last]
    }

    /// Moves the messages under way along; says how many have just been completed and how many are
    /// still under way.
    pub(super) fn progress(&mut self) -> Result<(usize, usize)> {
        let mut done = 0;
        // SAFETY: both arrays have as many elements as we say. Requests move when the vector grows,
        // which MPI allows: a request is a handle.
        let code = unsafe {
            ffi::MPI_Testsome(
                count(self.requests.len()),
                self.requests.as_mut_ptr(),
                &raw mut done,
                self.finished.as_mut_ptr(),
                ffi::RSMPI_STATUSES_IGNORE,
            )
        };
        self.check("MPI_Testsome", code)?;
        // MPI_UNDEFINED, a negative number, means that none is left.
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
            self.requests.clear();
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
        let mut status = MaybeUninit::uninit();
        let mut there = 0;
        // SAFETY: plain out-parameters.
        let code = unsafe {
            ffi::MPI_Iprobe(
                ffi::RSMPI_ANY_SOURCE,
                Tag::Abort as c_int,
                self.comm,
                &raw mut there,
                status.as_mut_ptr(),
            )
        };
        self.check("MPI_Iprobe", code)?;
        if there == 0 {
            return Ok(None);
        }
        // SAFETY: with `there` set, MPI_Iprobe has filled the status in.
        let source = unsafe { status.assume_init() }.MPI_SOURCE;
        let mut reason = [0_u8; REASON_BYTES];
        // SAFETY: the buffer is as long as we say; the message is there, so this does not wait.
        let code = unsafe {
            ffi::MPI_Recv(
                reason.as_mut_ptr().cast(),
                count(reason.len()),
                ffi::RSMPI_UINT8_T,
                source,
                Tag::Abort as c_int,
                self.comm,
                ffi::RSMPI_STATUS_IGNORE,
            )
        };
        self.check("MPI_Recv", code)?;
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
        let universe = self.universe.take();
        if self.broken {
            // MPI_Finalize would wait for messages that nobody will ever take. Leaving without it makes
            // the launcher end the other processes, which is what is left to do.
            std::mem::forget(universe);
            return;
        }
        // SAFETY: no message is under way and nobody uses the communicator after this. An error here
        // has no consequence: the process is leaving.
        let _ = unsafe { ffi::MPI_Comm_free(&raw mut self.comm) };
    }
}

/// Lengths of messages and lists here are bounded by the chunk, far below 2^31.
fn count(len: usize) -> c_int {
    c_int::try_from(len).expect("pieces of a message are at most a chunk long")
}
