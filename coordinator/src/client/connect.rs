//! Finding the coordinator and the handshake.

use std::io::{self, BufReader};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::codec;
use crate::error::{Error, Result};
use crate::protocol::{MemberId, Reply, Request, Role};
use crate::rundir::CoordinatorInfo;
use crate::token::Token;

/// Longest wait for one step of one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// How long the coordinator's machine may leave heartbeats unacknowledged.
const SILENCE: Duration = Duration::from_secs(15);

/// Where the coordinator is.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A run directory: address and token are read from it, again for every try.
    RunDir(PathBuf),
    /// An address `host:port` and the token, for machines that do not share the directory.
    Address {
        /// The coordinator's `host:port`.
        addr: String,
        /// The secret that the proof is made with.
        token: Token,
    },
}

impl Endpoint {
    fn describe(&self) -> String {
        match self {
            Endpoint::RunDir(dir) => format!("the coordinator of {}", dir.display()),
            Endpoint::Address { addr, .. } => format!("the coordinator at {addr}"),
        }
    }

    fn resolve(&self) -> Result<(String, Token)> {
        match self {
            // The token is older than the address file, so when this one is there that one is.
            Endpoint::RunDir(dir) => Ok((CoordinatorInfo::load(dir)?.addr, Token::load(dir)?)),
            Endpoint::Address { addr, token } => Ok((addr.clone(), token.clone())),
        }
    }
}

/// A connection after the handshake.
pub(super) struct Opened {
    pub peer: String,
    pub reader: BufReader<TcpStream>,
    pub member: Option<MemberId>,
    pub heartbeat_ms: u32,
}

/// Connects, trying again until `deadline` while the coordinator is not there; at least once.
pub(super) fn open(endpoint: &Endpoint, role: &Role, deadline: Instant) -> Result<Opened> {
    let begun = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let error = match attempt(endpoint, role, deadline) {
            Ok(opened) => return Ok(opened),
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => error,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let detail = error.to_string();
            let detail = detail.lines().next().unwrap_or_default();
            return Err(Error::Timeout {
                what: format!("{} ({detail})", endpoint.describe()),
                waited_ms: begun.elapsed().as_millis() as u64,
                help: "start it with `fovea coordinator`, or check that this machine reaches its address; it binds 127.0.0.1 unless told otherwise",
            });
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Errors that another try does not mend.
fn is_final(error: &Error) -> bool {
    match error {
        Error::File { source, .. } => source.kind() != io::ErrorKind::NotFound,
        // Something else may own the port of a coordinator that is gone.
        Error::Stream { .. } | Error::FrameTooLarge { .. } | Error::FrameContent { .. } => false,
        _ => true,
    }
}

fn attempt(endpoint: &Endpoint, role: &Role, deadline: Instant) -> Result<Opened> {
    let (addr, token) = endpoint.resolve()?;
    let patience = deadline
        .saturating_duration_since(Instant::now())
        .clamp(Duration::from_millis(500), TRY_TIMEOUT);
    let stream = dial(&addr, patience)?;
    stream.set_nodelay(true)?;
    // A cut link says nothing: what stays unacknowledged for so long ends the connection.
    let unheard = SILENCE.as_millis() as u32;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, unheard).map_err(io::Error::from)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut reader = BufReader::new(stream);
    let nonce = match next(&mut reader)? {
        Reply::Challenge { nonce } => nonce,
        other => return Err(refusal(other, &addr, "a challenge")),
    };
    let proof = *token.proof(&nonce, &codec::to_bytes(role)?).as_bytes();
    let hello = Request::Hello {
        proof,
        role: role.clone(),
    };
    codec::write_frame(reader.get_mut(), &hello)?;
    match next(&mut reader)? {
        Reply::Welcome {
            member,
            heartbeat_ms,
        } => Ok(Opened {
            peer: format!("coordinator {addr}"),
            reader,
            member,
            heartbeat_ms,
        }),
        other => Err(refusal(other, &addr, "a welcome")),
    }
}

fn dial(addr: &str, patience: Duration) -> Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{addr} has no address"));
    for candidate in addr.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = io::Error::new(error.kind(), format!("{candidate}: {error}")),
        }
    }
    Err(last.into())
}

fn next(reader: &mut BufReader<TcpStream>) -> Result<Reply> {
    match codec::read_body(reader, codec::MAX_FRAME)? {
        Some(body) => codec::decode_reply(&body),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

fn refusal(reply: Reply, addr: &str, expected: &'static str) -> Error {
    match reply {
        Reply::Drop { reason } => Error::Dropped { reason },
        other => Error::Unexpected {
            peer: format!("coordinator {addr}"),
            got: format!("{other:?}"),
            expected,
        },
    }
}
