//! How the ranks of a generation get one segment: rank 0 makes it and hands its file descriptor
//! to the others over a socket in the abstract namespace. Neither the memory nor the socket has a name
//! in a file system, so a rank killed at any moment leaves nothing behind.

use std::collections::BTreeSet;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::LocalOptions;
use super::segment::{Segment, SegmentLayout};
use crate::{AbortHandle, Absent, Error, Result};

/// The first bytes of a greeting; the last one is the version of the segment's layout.
const MAGIC: [u8; 8] = *b"FOVEAsh\x01";
const GREETING_BYTES: usize = 40;
const WELCOME: u8 = 1;
const REFUSED: u8 = 0;
const REFUSAL_BYTES: u64 = 1024;
/// How long rank 0 waits for the greeting of a rank that has connected; sent at once by any real one.
const GREETING_TIMEOUT: Duration = Duration::from_millis(100);
/// How often a waiting rank looks again, for peers and for an abort.
const POLL: Duration = Duration::from_micros(500);

/// Waits until this rank has the generation's segment (rank 0: until all ranks have it).
pub(super) fn meet(
    options: &LocalOptions,
    layout: SegmentLayout,
    abort: &AbortHandle,
    deadline: Instant,
) -> Result<(OwnedFd, Segment)> {
    let wait = Wait {
        options,
        abort,
        started: Instant::now(),
        deadline,
    };
    if options.rank == 0 {
        host(&wait, layout)
    } else {
        loop {
            if let Some(joined) = visit(&wait, layout)? {
                return Ok(joined);
            }
            std::thread::sleep(POLL);
        }
    }
}

struct Wait<'a> {
    options: &'a LocalOptions,
    abort: &'a AbortHandle,
    started: Instant,
    deadline: Instant,
}

impl Wait<'_> {
    /// An error once there is no point in waiting for `absent` any longer.
    fn check(&self, absent: impl Iterator<Item = usize>) -> Result<()> {
        let LocalOptions { rank, world, .. } = *self.options;
        if let Some(reason) = self.abort.reason() {
            return Err(Error::aborted("join", rank, Some(rank), reason));
        }
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let absent = absent.map(Absent::unseen).collect();
        let waited = self.started.elapsed();
        Err(Error::deadline("join", (rank, world), waited, absent))
    }

    fn system(&self, what: &str, source: io::Error) -> Error {
        Error::System {
            rank: self.options.rank,
            what: what.to_string(),
            source,
            help: "backend local needs Linux with memfd and abstract Unix sockets, all ranks in one \
                   container and under one user; else use `--backend mpi`",
        }
    }

    fn refused(&self, reason: impl Into<String>) -> Error {
        Error::Refused {
            rank: self.options.rank,
            generation: self.options.generation,
            reason: reason.into(),
        }
    }

    fn address(&self) -> Result<SocketAddr> {
        SocketAddr::from_abstract_name(socket_name(self.options))
            .map_err(|e| self.system("name the socket", e))
    }

    fn greeting(&self) -> [u8; GREETING_BYTES] {
        let o = self.options;
        let mut bytes = [0; GREETING_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        let numbers = [
            o.rank as u64,
            o.world as u64,
            o.chunk_f32 as u64,
            o.generation,
        ];
        for (field, number) in bytes[8..].chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// The name in the abstract namespace, which everyone on the machine can see: so the run id is hashed.
pub(super) fn socket_name(options: &LocalOptions) -> String {
    let run = blake3::hash(options.run_id.as_bytes()).to_hex();
    format!("fovea-{}-g{}", &run[..24], options.generation)
}

fn host(wait: &Wait<'_>, layout: SegmentLayout) -> Result<(OwnedFd, Segment)> {
    let make = || {
        let fd = Segment::create(&layout)?;
        let segment = Segment::map(fd.as_fd(), layout)?;
        Ok((fd, segment))
    };
    let (fd, segment) = make().map_err(|e| wait.system("make the shared memory", e))?;
    if wait.options.world > 1 {
        // Ranks that are in already wait in the segment: they must hear that nothing comes of it.
        admit_all(wait, &fd).inspect_err(|error| segment.abort(0, &error.headline()))?;
    }
    Ok((fd, segment))
}

fn admit_all(wait: &Wait<'_>, fd: &OwnedFd) -> Result<()> {
    let listener = match UnixListener::bind_addr(&wait.address()?) {
        Ok(listener) => listener,
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            return Err(wait.refused("another process is rank 0 of this generation already"));
        }
        Err(e) => return Err(wait.system("listen for the other ranks", e)),
    };
    listener
        .set_nonblocking(true)
        .map_err(|e| wait.system("listen for the other ranks", e))?;
    let mut absent: BTreeSet<usize> = (1..wait.options.world).collect();
    while !absent.is_empty() {
        wait.check(absent.iter().copied())?;
        match listener.accept() {
            Ok((stream, _)) => admit(wait, &stream, fd, &mut absent)?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(POLL),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(wait.system("accept another rank", e)),
        }
    }
    Ok(())
}

/// Lets one caller in or tells it why not. Only settings that differ between ranks are an error of
/// rank 0's own; strangers and broken connections are their own problem.
fn admit(
    wait: &Wait<'_>,
    stream: &UnixStream,
    fd: &OwnedFd,
    absent: &mut BTreeSet<usize>,
) -> Result<()> {
    let mut greeting = [0; GREETING_BYTES];
    let greeted = same_user(stream).is_ok_and(|same| same)
        && stream.set_nonblocking(false).is_ok()
        && stream.set_read_timeout(Some(GREETING_TIMEOUT)).is_ok()
        && stream.set_write_timeout(Some(GREETING_TIMEOUT)).is_ok()
        && { stream }.read_exact(&mut greeting).is_ok();
    if !greeted {
        return Ok(());
    }
    let mine = wait.greeting();
    let theirs = describe(&greeting);
    let rank = usize::try_from(number(&greeting, 0)).unwrap_or(usize::MAX);
    if greeting[..8] != mine[..8] || greeting[16..] != mine[16..] {
        let mine = describe(&mine);
        // The answer is a courtesy: a caller that does not wait for it loses nothing else.
        let _ = answer(
            stream,
            REFUSED,
            &format!("rank 0 has {mine}, this rank {theirs}"),
            None,
        );
        return Err(Error::Mismatch {
            rank: 0,
            mine: format!("join with {mine}"),
            other: rank,
            theirs: format!("join with {theirs}"),
        });
    }
    if !absent.contains(&rank) {
        let reason = format!("the seat of rank {rank} is taken or does not exist ({theirs})");
        let _ = answer(stream, REFUSED, &reason, None);
    } else if answer(stream, WELCOME, "", Some(fd)).is_ok() {
        absent.remove(&rank);
    }
    Ok(())
}

/// One try to get the segment from rank 0; None if rank 0 is not there yet.
fn visit(wait: &Wait<'_>, layout: SegmentLayout) -> Result<Option<(OwnedFd, Segment)>> {
    wait.check(std::iter::once(0))?;
    let stream = match UnixStream::connect_addr(&wait.address()?) {
        Ok(stream) => stream,
        Err(e) if is_not_there(&e) => return Ok(None),
        Err(e) => return Err(wait.system("reach rank 0", e)),
    };
    if !same_user(&stream).map_err(|e| wait.system("identify rank 0", e))? {
        return Err(wait.refused("another user's process answers in the place of rank 0"));
    }
    let greet = || {
        stream.set_read_timeout(Some(POLL))?;
        let sent = rustix::net::send(&stream, &wait.greeting(), SendFlags::NOSIGNAL)?;
        io::Result::Ok(sent)
    };
    if greet().is_err() {
        return Ok(None); // rank 0 went away in this moment; it may come back
    }
    let Some(answer) = hear(wait, &stream)? else {
        return Ok(None);
    };
    match answer {
        Answer::Refused(reason) => Err(wait.refused(reason)),
        Answer::Welcome(fd) => {
            let segment = Segment::map(fd.as_fd(), layout)
                .map_err(|e| wait.system("map the shared memory", e))?;
            Ok(Some((fd, segment)))
        }
    }
}

enum Answer {
    Welcome(OwnedFd),
    Refused(String),
}

/// None if rank 0 closed the connection without an answer.
fn hear(wait: &Wait<'_>, stream: &UnixStream) -> Result<Option<Answer>> {
    let mut kind = [REFUSED];
    let fd = loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut kind)];
        match rustix::net::recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return Ok(None),
            Ok(_) => {
                break control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                });
            }
            Err(Errno::AGAIN | Errno::INTR) => wait.check(std::iter::once(0))?,
            Err(_) => return Ok(None),
        }
    };
    match (kind, fd) {
        ([WELCOME], Some(fd)) => Ok(Some(Answer::Welcome(fd))),
        _ => {
            let mut reason = String::new();
            // Half a reason is better than none.
            let _ = stream.take(REFUSAL_BYTES).read_to_string(&mut reason);
            Ok(Some(Answer::Refused(reason)))
        }
    }
}

fn answer(
    stream: &UnixStream,
    kind: u8,
    text: &str,
    fd: Option<&OwnedFd>,
) -> rustix::io::Result<()> {
    let fds = fd.map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.as_slice().is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds.as_slice()));
    }
    let kind = [kind];
    let parts = [IoSlice::new(&kind), IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(stream, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn same_user(stream: &UnixStream) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(peer.uid == rustix::process::geteuid())
}

fn is_not_there(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionRefused | Interrupted | WouldBlock)
}

fn number(greeting: &[u8; GREETING_BYTES], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&greeting[8 + 8 * index..16 + 8 * index]);
    u64::from_le_bytes(bytes)
}

fn describe(greeting: &[u8; GREETING_BYTES]) -> String {
    if greeting[..8] != MAGIC {
        return "a segment of another version of fovea".to_string();
    }
    let [world, chunk, generation] = [1, 2, 3].map(|i| number(greeting, i));
    format!("world size {world}, chunks of {chunk} f32, generation {generation}")
}
