//! The NCCL library: found, opened, and called by the signatures of `nccl.h`.
//!
//! Bound by hand, like NVRTC: `cudarc` opens the first libnccl that the loader finds, not the one next to
//! libtorch, and panics where there is none. It needs only eleven functions, a structure of five numbers and one of
//! 128 bytes. Results are plain integers: a code that this file does not know
//! is reported by its number.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::PathBuf;

use fovea_kernels::DType;
use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};

use super::super::{Error, Result};
use super::search::{NcclSearch, NcclVersion};

/// Its own functions come before those of the NCCL that libtorch has loaded, which may be another version (dlfcn.h).
const RTLD_DEEPBIND: c_int = 8;

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
const SUM: c_int = 0;

/// The type of the elements of a sum, with the number that `ncclDataType_t` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataType {
    U8 = 1,
    F32 = 7,
    Bf16 = 9,
}

impl From<DType> for DataType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::Bf16 => Self::Bf16,
        }
    }
}

/// A live communicator of the library. Which thread uses it when is for [`super::comm`] to see to.
pub(super) type CommunicatorHandle = *mut c_void;

/// What rank 0 of a generation makes and gives to the others, so that they find each other.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId(pub [u8; 128]);

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An address and a random number; nobody reads 128 bytes.
        write!(
            f,
            "UniqueId({}...)",
            blake3::hash(&self.0).to_hex().split_at(8).0
        )
    }
}

/// `ncclConfig_t` as NCCL 2.14 had it. Newer ones have more at the end, and go by `size` and `version`.
#[repr(C)]
struct CommunicatorConfig {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    /// What 2.17 has here; ours says 2.14, so it is not looked at.
    unset: c_int,
}

impl CommunicatorConfig {
    const NOT_BLOCKING: Self = Self {
        size: size_of::<Self>(),
        magic: 0xcafe_beef,
        version: NcclVersion::OLDEST.0 as c_uint,
        blocking: 0,
        unset: c_int::MIN,
    };
}

type CollectiveFunction = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    CommunicatorHandle,
    *mut c_void,
) -> c_int;

struct Functions {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(
        *mut CommunicatorHandle,
        c_int,
        UniqueId,
        c_int,
        *mut CommunicatorConfig,
    ) -> c_int,
    finalize: unsafe extern "C" fn(CommunicatorHandle) -> c_int,
    destroy: unsafe extern "C" fn(CommunicatorHandle) -> c_int,
    abort: unsafe extern "C" fn(CommunicatorHandle) -> c_int,
    get_async_error: unsafe extern "C" fn(CommunicatorHandle, *mut c_int) -> c_int,
    all_reduce: CollectiveFunction,
    broadcast: CollectiveFunction,
    all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        CommunicatorHandle,
        *mut c_void,
    ) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(CommunicatorHandle) -> *const c_char,
}

/// The loaded library, until the process ends: it has threads of its own.
pub struct Library {
    path: PathBuf,
    version: NcclVersion,
    functions: Functions,
    /// Never unloaded, so that the functions stay where they are.
    _loaded: ManuallyDrop<Loaded>,
}

impl Library {
    /// Loads the first NCCL that can be loaded, and warns of a version that is known to be bad.
    ///
    /// # Errors
    ///
    /// There is none, it lacks a function, or it is older than [`NcclVersion::OLDEST`].
    pub fn open(search: &NcclSearch) -> Result<Self> {
        let mut tried = Vec::new();
        for path in search.candidates() {
            // SAFETY: loading NCCL runs no code but its own initialisers.
            match unsafe { Loaded::open(Some(&path), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND) } {
                Ok(loaded) => return Self::new(loaded, path),
                Err(error) => tried.push(format!("{} ({error})", path.display())),
            }
        }
        Err(Error::NcclMissing {
            tried: tried.join(", "),
        })
    }

    fn new(loaded: Loaded, path: PathBuf) -> Result<Self> {
        let loaded = ManuallyDrop::new(loaded);
        let missing = |error: libloading::Error| Error::NcclMissing {
            tried: format!("{} ({error})", path.display()),
        };
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: each is given the type that nccl.h declares for the name, by the field it goes
                // into, and is used only while the library is open, which it stays.
                *unsafe { loaded.get($name) }.map_err(missing)?
            };
        }
        // First of all: an older library lacks some of the others.
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = function!(b"ncclGetVersion\0");
        let mut version = NcclVersion(0);
        // SAFETY: ncclGetVersion(int *version).
        let code = unsafe { get_version(&mut version.0) };
        if code != SUCCESS || version < NcclVersion::OLDEST {
            return Err(Error::NcclTooOld {
                path: path.display().to_string(),
                version: version.to_string(),
                oldest: NcclVersion::OLDEST.to_string(),
            });
        }
        let functions = Functions {
            get_unique_id: function!(b"ncclGetUniqueId\0"),
            init: function!(b"ncclCommInitRankConfig\0"),
            finalize: function!(b"ncclCommFinalize\0"),
            destroy: function!(b"ncclCommDestroy\0"),
            abort: function!(b"ncclCommAbort\0"),
            get_async_error: function!(b"ncclCommGetAsyncError\0"),
            all_reduce: function!(b"ncclAllReduce\0"),
            broadcast: function!(b"ncclBroadcast\0"),
            all_gather: function!(b"ncclAllGather\0"),
            error_string: function!(b"ncclGetErrorString\0"),
            last_error: function!(b"ncclGetLastError\0"),
        };
        let library = Self {
            path,
            version,
            functions,
            _loaded: loaded,
        };
        if let Some(warning) = library.warning() {
            tracing::warn!("{warning}");
        }
        Ok(library)
    }

    /// Where it was found: a path, or a name that the system's loader knew.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The version that the library reports.
    #[must_use]
    pub fn version(&self) -> NcclVersion {
        self.version
    }

    /// What [`Self::open`] warned of, if it did.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        self.version.warning()
    }

    /// A new id for the ranks of one generation. The thread that listens for them belongs to NCCL and lives
    /// in this process.
    ///
    /// # Errors
    ///
    /// No network interface that NCCL can use.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: ncclGetUniqueId(ncclUniqueId *), 128 bytes.
        let code = unsafe { (self.functions.get_unique_id)(&mut id) };
        match code {
            SUCCESS => Ok(id),
            // SAFETY: no communicator.
            code => Err(unsafe { self.error("ncclGetUniqueId", 0, code, std::ptr::null_mut()) }),
        }
    }

    /// A communicator that never blocks, and the code of the call. It is null if the call failed.
    pub(super) fn init(
        &self,
        id: UniqueId,
        rank: c_int,
        world: c_int,
    ) -> (CommunicatorHandle, c_int) {
        let mut handle = std::ptr::null_mut();
        let mut config = CommunicatorConfig::NOT_BLOCKING;
        // SAFETY: all are alive for the call, which copies them.
        let code = unsafe { (self.functions.init)(&mut handle, world, id, rank, &mut config) };
        (handle, code)
    }

    /// # Safety
    /// `handle` must be a communicator that was not destroyed or aborted, used by no other thread now. This
    /// goes for the calls below, too.
    pub(super) unsafe fn finalize(&self, handle: CommunicatorHandle) -> c_int {
        // SAFETY: as promised by the caller.
        unsafe { (self.functions.finalize)(handle) }
    }

    /// # Safety
    /// As [`Self::finalize`]; nobody may use the handle afterwards.
    pub(super) unsafe fn destroy(&self, handle: CommunicatorHandle) -> c_int {
        // SAFETY: as promised by the caller.
        unsafe { (self.functions.destroy)(handle) }
    }

    /// # Safety
    /// As [`Self::destroy`].
    pub(super) unsafe fn abort(&self, handle: CommunicatorHandle) -> c_int {
        // SAFETY: as promised by the caller.
        unsafe { (self.functions.abort)(handle) }
    }

    /// The code of the call, or else the communicator's state.
    ///
    /// # Safety
    /// As [`Self::finalize`].
    pub(super) unsafe fn state(&self, handle: CommunicatorHandle) -> c_int {
        let mut state = SUCCESS;
        // SAFETY: as promised by the caller; the state is written.
        match unsafe { (self.functions.get_async_error)(handle, &mut state) } {
            SUCCESS => state,
            code => code,
        }
    }

    /// Sums `len` elements over all ranks, in place.
    ///
    /// # Safety
    /// As [`Self::finalize`]; `stream` is alive, and `address` is device memory of that many elements that
    /// nobody else touches until the stream is through.
    pub(super) unsafe fn all_reduce(
        &self,
        handle: CommunicatorHandle,
        address: u64,
        len: usize,
        element: DataType,
        stream: usize,
    ) -> c_int {
        let at = address as *mut c_void;
        // SAFETY: as promised by the caller.
        unsafe {
            (self.functions.all_reduce)(
                at,
                at,
                len,
                element as c_int,
                SUM,
                handle,
                stream as *mut c_void,
            )
        }
    }

    /// Copies the `len` bytes of `root` to all ranks, in place.
    ///
    /// # Safety
    /// As [`Self::all_reduce`].
    pub(super) unsafe fn broadcast(
        &self,
        handle: CommunicatorHandle,
        address: u64,
        len: usize,
        root: usize,
        stream: usize,
    ) -> c_int {
        let at = address as *mut c_void;
        let (element, root) = (DataType::U8 as c_int, root as c_int);
        // SAFETY: as promised by the caller.
        unsafe {
            (self.functions.broadcast)(at, at, len, element, root, handle, stream as *mut c_void)
        }
    }

    /// Gathers `len` bytes of every rank: rank r's lie at `address + r * len`, and its own are there before.
    ///
    /// # Safety
    /// As [`Self::all_reduce`], for `len` bytes of every rank.
    pub(super) unsafe fn all_gather(
        &self,
        handle: CommunicatorHandle,
        address: u64,
        len: usize,
        rank: usize,
        stream: usize,
    ) -> c_int {
        let mine = (address + (rank * len) as u64) as *const c_void;
        let (all, element) = (address as *mut c_void, DataType::U8 as c_int);
        // SAFETY: as promised by the caller.
        unsafe {
            (self.functions.all_gather)(mine, all, len, element, handle, stream as *mut c_void)
        }
    }

    /// What to tell of `code`.
    ///
    /// # Safety
    /// `handle` must be null or a communicator as for [`Self::finalize`].
    pub(super) unsafe fn error(
        &self,
        call: &'static str,
        rank: usize,
        code: c_int,
        handle: CommunicatorHandle,
    ) -> Error {
        // SAFETY: it gives a literal for any code.
        let text = unsafe { text((self.functions.error_string)(code)) };
        // SAFETY: it gives a buffer of the library's that ends in NUL, and takes null.
        let details = unsafe { text_of_last((self.functions.last_error)(handle)) };
        Error::Nccl {
            call,
            rank,
            code,
            text,
            details,
            help: help(code),
        }
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// # Safety
/// `words` must be null or end in NUL.
unsafe fn text(words: *const c_char) -> String {
    if words.is_null() {
        return String::new();
    }
    // SAFETY: as promised by the caller.
    let words = unsafe { CStr::from_ptr(words) };
    words.to_string_lossy().into_owned()
}

/// NCCL's last message in one line.
///
/// # Safety
/// As [`text`].
unsafe fn text_of_last(words: *const c_char) -> String {
    // SAFETY: as promised by the caller.
    let words = unsafe { text(words) };
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What to do about a code (`ncclResult_t`).
fn help(code: c_int) -> &'static str {
    match code {
        1 => {
            "the GPU or its driver failed: see `nvidia-smi` and the kernel log (`dmesg`) for Xid errors; NCCL_DEBUG=WARN has \
             NCCL's own words"
        }
        2 => {
            "the network or shared memory failed: NCCL_DEBUG=INFO shows which call; NCCL_SOCKET_IFNAME chooses the \
             interface, and /dev/shm needs room"
        }
        4 | 5 => {
            "ranks that share a GPU need an NCCL_HOSTID of their own; else this is a bug: run again with NCCL_DEBUG=WARN and \
             report it"
        }
        6 => {
            "another rank, or the network to it, is gone: see the other ranks' logs; the run goes on with those \
             that are left"
        }
        _ => "run again with NCCL_DEBUG=WARN, and try another NCCL (FOVEA_NCCL): 2.27 or 2.29",
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_nccl_hears_what_was_tried_and_what_to_do() {
        let search = NcclSearch {
            chosen: Some("/nowhere/libnccl.so.2".into()),
            libtorch: None,
        };
        let error = Library::open(&search).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/libnccl.so.2")
                && error.contains("help:")
                && error.contains("FOVEA_NCCL"),
            "{error}"
        );
    }

    #[test]
    fn the_config_is_that_of_2_14() {
        assert_eq!(size_of::<CommunicatorConfig>(), 24);
        assert_eq!(std::mem::offset_of!(CommunicatorConfig, blocking), 16);
        assert_eq!(CommunicatorConfig::NOT_BLOCKING.version, 21_400);
    }
}
