//! One error type: what happened, where, with numbers, and on its own line what to do about it.

use std::io;
use std::path::PathBuf;

use crate::ids::Abort;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the coordinator and its clients.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, written or locked.
    #[error("cannot {what} {}: {source}\n  help: check that the directory exists, is writable and has space left", path.display())]
    File {
        /// The verb of the message: `read`, `write`, `lock`.
        what: &'static str,
        /// Path as the program was given it.
        path: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
    /// The socket could not be opened.
    #[error(
        "cannot listen on {addr}: {source}\n  help: choose an address of this machine, or port 0 for any free port"
    )]
    Listen {
        /// Address that was asked for.
        addr: String,
        /// Error of `bind`, as a port that is taken.
        source: io::Error,
    },
    /// Another coordinator holds the run directory.
    #[error("run directory {} is in use by pid {pid} on host {host}\n  help: wait for it to end, stop it, or choose another run directory with --out", run_dir.display())]
    RunInUse {
        /// The directory that is locked.
        run_dir: PathBuf,
        /// Process that holds it, `unknown` when it has not said yet.
        pid: String,
        /// Host of that process; `unknown` as for `pid`.
        host: String,
    },
    /// A journal or ledger whose checks fail.
    #[error("{} is damaged at byte {offset}: {detail}\n  help: it is not a torn last record, so it is not cut; keep a copy, and start in a new run directory from the newest checkpoint", path.display())]
    Corrupt {
        /// A file of records: the journal or the ledger.
        path: PathBuf,
        /// First byte of the damaged record, from the start of the file.
        offset: u64,
        /// The check that failed, with its numbers.
        detail: String,
    },
    /// A file of another format version.
    #[error("{} has format version {found}, this program reads version {expected}\n  help: use the program that wrote it, or a new run directory", path.display())]
    FileVersion {
        /// A file of records: the journal or the ledger.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// A JSON file that cannot be read.
    #[error("{} cannot be read: {detail}\n  help: was it written by another version or edited? remove it when no run uses this directory", path.display())]
    Json {
        /// Path of the JSON file, as `coordinator.json`.
        path: PathBuf,
        /// What the parser says.
        detail: String,
    },
    /// The token file or argument is not a token.
    #[error(
        "the token {origin} is not usable: {detail}\n  help: it has to be 64 hexadecimal digits, in a file that only its owner can read; use the file `token` of the run directory"
    )]
    Token {
        /// Where it came from.
        origin: String,
        /// Which rule of a token file is broken.
        detail: String,
    },
    /// The system gave no random bytes.
    #[error(
        "no random bytes from the system: {detail}\n  help: the kernel's random source has to be available in this container"
    )]
    Random {
        /// Error of the random number generator.
        detail: String,
    },
    /// The options contradict themselves.
    #[error("coordinator options: {detail}\n  help: {help}")]
    Options {
        /// Which option, its value, and what is allowed.
        detail: String,
        /// An instruction that mends the option.
        help: &'static str,
    },

    /// More connections than the coordinator has room for.
    #[error("{detail}\n  help: {help}")]
    Limit {
        /// Which limit, with numbers.
        detail: String,
        /// An instruction that mends it.
        help: &'static str,
    },
    /// A frame over the cap.
    #[error(
        "frame of {bytes} bytes is over the limit of {limit} bytes\n  help: the peer is not a fovea process, or it is sending more than the protocol allows"
    )]
    FrameTooLarge {
        /// Length that was announced.
        bytes: u64,
        /// Most bytes that a frame may have on this connection.
        limit: usize,
    },
    /// A frame that holds no message.
    #[error(
        "frame of {bytes} bytes cannot be decoded: {detail}\n  help: the peer is not a fovea process, or its build differs although the protocol version is the same"
    )]
    FrameContent {
        /// Length of the body.
        bytes: usize,
        /// Message of the decoder.
        detail: String,
    },
    /// A peer of another protocol version.
    #[error(
        "the peer speaks protocol version {theirs}, this program speaks version {ours}\n  help: start all processes of a run from the same build of fovea"
    )]
    Version {
        /// Version of this program.
        ours: u8,
        /// Version of the peer.
        theirs: u8,
    },
    /// The connection broke in the middle of something.
    #[error(
        "the connection broke: {source}\n  help: the other process ended or the network failed; see its log"
    )]
    Stream {
        /// Error of the socket.
        #[from]
        source: io::Error,
    },
    /// The connection ended or broke.
    #[error(
        "connection to {peer} is lost: {detail}\n  help: see the coordinator's log and status.json for why; continue with --resume"
    )]
    Lost {
        /// Name and address of the lost peer.
        peer: String,
        /// The system's error, or the peer's last words.
        detail: String,
    },
    /// Nothing happened in time.
    #[error("no answer in {waited_ms} ms while waiting for {what}\n  help: {help}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long, in milliseconds.
        waited_ms: u64,
        /// An instruction that finds the process which hangs.
        help: &'static str,
    },
    /// The coordinator closed this connection and said why.
    #[error("the coordinator refused this process: {reason}")]
    Dropped {
        /// What it said, with its own help line when there is something to do.
        reason: String,
    },
    /// The generation is over.
    #[error(
        "generation {} is over ({:?}): {}\n  help: the run directory's newest checkpoint is intact; continue with --resume",
        .0.generation,
        .0.cause,
        .0.reason
    )]
    Aborted(Abort),
    /// A message that does not belong here.
    #[error(
        "{peer} answered {got} while {expected} was due\n  help: this is a bug in fovea; please report it with the coordinator's log"
    )]
    Unexpected {
        /// Name and address of the peer that sent it.
        peer: String,
        /// The start of the message, at most 200 characters.
        got: String,
        /// The message that the protocol allows here.
        expected: &'static str,
    },

    /// `patches_per_image` is 0; a unit needs a patch.
    #[error(
        "patches_per_image is 0, the least is 1\n  help: set train.patches_per_image to 1 or more"
    )]
    PatchesPerImage,
    /// `images_per_step` is 0; a step needs a unit.
    #[error("images_per_step is 0, the least is 1\n  help: set train.images_per_step to 1 or more")]
    ImagesPerStep,
    /// An image that is listed twice.
    #[error(
        "image {image} is listed twice for the epoch's order\n  help: the manifest names an image twice; prepare the dataset again"
    )]
    ImageTwice {
        /// Index of the image, its position in the manifest.
        image: u32,
    },
    /// A cell that is listed twice.
    #[error(
        "cell {cell} of image {image} is listed twice for the epoch's order\n  help: this is a bug in the caller; please report it"
    )]
    CellTwice {
        /// Index of the image, its position in the manifest.
        image: u32,
        /// Index of the cell in the image's grid.
        cell: u16,
    },
    /// A cursor that no step of this order can have left.
    #[error(
        "cursor {cursor} of epoch {epoch} is not between two units (the nearest below is {below}, the epoch has {total} samples)\n  help: the checkpoint belongs to another dataset, seed or patches_per_image; resume with the config that wrote it"
    )]
    Cursor {
        /// Epoch that the cursor counts in, from 0.
        epoch: u32,
        /// Samples of the epoch that are committed.
        cursor: u64,
        /// Samples in the epoch.
        total: u64,
        /// The last unit boundary below.
        below: u64,
    },
    /// A world size that the virtual shards do not allow.
    #[error(
        "{world} ranks cannot share {virtual_shards} virtual shards with the same result as one rank\n  help: use one of {allowed:?} ranks, or change train.virtual_shards"
    )]
    WorldSize {
        /// World size that was asked for.
        world: usize,
        /// Virtual shards of the config.
        virtual_shards: usize,
        /// World sizes that work.
        allowed: Vec<usize>,
    },
    /// A rank outside the world.
    #[error("rank {rank} does not exist among {world} ranks\n  help: ranks count from 0")]
    Rank {
        /// Rank that was asked for, from 0.
        rank: usize,
        /// World size that the rank must be below.
        world: usize,
    },
}

impl Error {
    /// Whether the request is at fault, and not the machine or a peer: no retry helps.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::RunInUse { .. }
                | Self::FileVersion { .. }
                | Self::Token { .. }
                | Self::Options { .. }
                | Self::PatchesPerImage
                | Self::ImagesPerStep
                | Self::WorldSize { .. }
        )
    }

    /// A closure for `map_err` on file operations.
    pub(crate) fn file(
        what: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { what, path, source }
    }
}

impl From<fovea_files::Error> for Error {
    fn from(error: fovea_files::Error) -> Self {
        Self::file(error.action, &error.path)(error.source)
    }
}
