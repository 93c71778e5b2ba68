//! One peer: handshake, then frames in and frames out until one side has enough.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::limits::{Admission, AdmissionGate, Counters, PeerKind, TokenBucket};
use crate::codec;
use crate::error::{Error, Result};
use crate::membership::Ticket;
use crate::protocol::{Reply, Request, Role, StartPoint};
use crate::token::{self, Token};

/// A frame that is shared by all whom it goes to.
pub(super) type Frame = Arc<[u8]>;

/// Frames that may wait for one peer. A peer with more has stopped reading.
pub(super) const OUTBOX: usize = 256;
/// Read ahead, per connection: a heartbeat or a vote has some 30 bytes.
const READ_AHEAD: usize = 1 << 10;
/// How long one frame may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last frames to a peer may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long, and for how many bytes, a peer is listened to after it was told to go.
const LINGER: Duration = Duration::from_millis(250);
const LINGER_BYTES: usize = 1 << 20;

/// What a connection tells the core.
#[derive(Debug)]
pub(super) enum Message {
    /// The handshake is complete; frames for the peer go into `outbox`.
    Opened {
        ticket: Ticket,
        role: Role,
        outbox: mpsc::Sender<Frame>,
    },
    /// The peer said something.
    Request { ticket: Ticket, request: Request },
    /// The peer closed, broke the connection, or said something that cannot be read; then it is
    /// told so.
    Closed {
        ticket: Ticket,
        detail: String,
        tell: Option<String>,
    },
    /// What the search for a checkpoint found. (Not from a connection; it takes the same way.)
    Checkpoint(std::result::Result<StartPoint, String>),
}

/// The same for all connections.
pub(super) struct Settings {
    pub token: Token,
    pub handshake: Duration,
    pub heartbeat_ms: u32,
    pub frames_per_s: u32,
    /// How long an observer or a launcher may say nothing.
    pub idle: Duration,
    pub counters: Arc<Counters>,
    pub gate: AdmissionGate,
}

pub(super) struct Connection {
    pub ticket: Ticket,
    pub peer: SocketAddr,
    pub settings: Arc<Settings>,
    pub core: mpsc::Sender<Message>,
}

impl Connection {
    pub async fn serve(self, stream: TcpStream) {
        let entered = self.settings.gate.enter(self.ticket);
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("{}: {error}", self.peer);
            return;
        }
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
        let greeted = match entered {
            Ok((pass, evicted)) => self.greet(pass, evicted, &mut reader, &mut writer).await,
            Err(error) => Err(error),
        };
        match greeted {
            Ok((role, pass)) => {
                self.converse(role, reader, writer).await;
                drop(pass);
            }
            Err(error) => self.turn_away(&error, reader, writer).await,
        }
    }

    /// The handshake, as long as it may take. The place is given back when it does not succeed.
    async fn greet(
        &self,
        mut pass: Admission,
        evicted: oneshot::Receiver<()>,
        reader: &mut BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
    ) -> Result<(Role, Admission)> {
        let handshake = timeout(self.settings.handshake, self.handshake(reader, writer));
        let role = tokio::select! {
            done = handshake => done.map_err(|_| Error::Timeout {
                what: "the handshake".to_owned(),
                waited_ms: self.settings.handshake.as_millis() as u64,
                help: "answer the challenge at once",
            })??,
            Ok(()) = evicted => return Err(self.settings.gate.evicted()),
        };
        pass.settle(match role {
            Role::Trainer(_) => PeerKind::Trainer,
            Role::Observer | Role::Launcher => PeerKind::Other,
        })?;
        Ok((role, pass))
    }

    async fn handshake(
        &self,
        reader: &mut BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
    ) -> Result<Role> {
        let nonce = token::random32()?;
        writer
            .write_all(&codec::encode(&Reply::Challenge { nonce })?)
            .await?;
        let body = codec::read_body_async(reader, codec::MAX_HELLO)
            .await?
            .ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        match codec::decode_body(&body)? {
            Request::Hello { proof, role } => {
                // Hashes are compared in constant time.
                if self.settings.token.proof(&nonce, &codec::to_bytes(&role)?) != proof {
                    return Err(Error::Token {
                        origin: format!("of the {} at {}", role.name(), self.peer),
                        detail: "it is not this run's".to_owned(),
                    });
                }
                Ok(role)
            }
            _ => Err(Error::Token {
                origin: format!("of the peer at {}", self.peer),
                detail: "it was not shown before the first request".to_owned(),
            }),
        }
    }

    /// Tells a peer without a completed handshake why, and closes.
    async fn turn_away(
        &self,
        error: &Error,
        mut reader: BufReader<OwnedReadHalf>,
        mut writer: OwnedWriteHalf,
    ) {
        if matches!(error, Error::Stream { .. }) {
            tracing::debug!("{} left in the handshake: {error}", self.peer);
            return;
        }
        if self.settings.counters.closed_for(error) {
            tracing::warn!("turned away {}: {error}", self.peer);
        }
        let Ok(frame) = codec::encode(&Reply::Drop {
            reason: error.to_string(),
        }) else {
            return;
        };
        let farewell = async {
            writer.write_all(&frame).await?;
            writer.shutdown().await
        };
        if let Ok(Ok(())) = timeout(FLUSH_TIMEOUT, farewell).await {
            linger(&mut reader).await;
        }
    }

    async fn converse(
        self,
        role: Role,
        mut reader: BufReader<OwnedReadHalf>,
        writer: OwnedWriteHalf,
    ) {
        let (outbox, frames) = mpsc::channel(OUTBOX);
        let ticket = self.ticket;
        // A trainer's silence is noticed by its heartbeats.
        let idle = match role {
            Role::Trainer(_) => None,
            Role::Observer | Role::Launcher => Some(self.settings.idle),
        };
        if self
            .core
            .send(Message::Opened {
                ticket,
                role,
                outbox,
            })
            .await
            .is_err()
        {
            return;
        }
        let mut writing = std::pin::pin!(write_all(writer, frames));
        tokio::select! {
            closed = self.listen(&mut reader, idle) => {
                // The core drops the outbox, which ends the writing. When the run is over it
                // has done so already, and its last frames must still go out.
                let _ = self.core.send(closed).await;
                let _ = timeout(FLUSH_TIMEOUT, &mut writing).await;
            }
            result = &mut writing => if let Err(error) = result {
                let detail = format!("cannot write to it: {error}");
                let closed = Message::Closed { ticket, detail, tell: None };
                // When the core is gone, so is the run.
                let _ = self.core.send(closed).await;
                return;
            },
        }
        linger(&mut reader).await;
    }

    /// Passes requests on until there are no more.
    async fn listen(
        &self,
        reader: &mut BufReader<OwnedReadHalf>,
        idle: Option<Duration>,
    ) -> Message {
        let ticket = self.ticket;
        let mut bucket = TokenBucket::new(self.settings.frames_per_s, Instant::now());
        loop {
            let request = match read_within(reader, idle).await {
                Ok(Some(body)) => {
                    // Not read on while it is ahead of its rate; the system's buffers then slow it.
                    let ahead = bucket.take(body.len(), Instant::now());
                    if !ahead.is_zero() {
                        sleep(ahead).await;
                    }
                    codec::decode_body(&body)
                }
                Ok(None) => {
                    let detail = "it closed the connection".to_owned();
                    return Message::Closed {
                        ticket,
                        detail,
                        tell: None,
                    };
                }
                Err(error) => Err(error),
            };
            let error = match request {
                Ok(request) => match self.core.send(Message::Request { ticket, request }).await {
                    Ok(()) => continue,
                    Err(_) => {
                        return Message::Closed {
                            ticket,
                            detail: String::new(),
                            tell: None,
                        };
                    }
                },
                Err(error) => error,
            };
            let tell = match &error {
                Error::Stream { .. } => None,
                other => {
                    if self.settings.counters.closed_for(other) {
                        tracing::warn!("dropped {}: {other}", self.peer);
                    }
                    Some(other.to_string())
                }
            };
            return Message::Closed {
                ticket,
                detail: first_line(&error),
                tell,
            };
        }
    }
}

/// A frame, which has to come within this time.
async fn read_within(
    reader: &mut BufReader<OwnedReadHalf>,
    idle: Option<Duration>,
) -> Result<Option<Vec<u8>>> {
    let frame = codec::read_body_async(reader, codec::MAX_FRAME);
    let Some(limit) = idle else {
        return frame.await;
    };
    timeout(limit, frame).await.unwrap_or_else(|_| {
        Err(Error::Timeout {
            what: "a request".to_owned(),
            waited_ms: limit.as_millis() as u64,
            help: "connect again when there is something to ask",
        })
    })
}

fn first_line(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Writes frames until the core lets go of the outbox, then closes this direction.
async fn write_all(
    mut writer: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Frame>,
) -> std::io::Result<()> {
    while let Some(frame) = frames.recv().await {
        timeout(WRITE_TIMEOUT, writer.write_all(&frame)).await??;
    }
    writer.shutdown().await
}

/// Reads on for a moment. A socket that is closed with unread bytes is reset, and the peer would
/// lose the message that says why it was closed.
async fn linger(reader: &mut (impl AsyncRead + Unpin)) {
    let discard = async {
        let mut chunk = [0u8; 4096];
        let mut left = LINGER_BYTES;
        while let Ok(n) = reader.read(&mut chunk).await
            && n > 0
            && left > 0
        {
            left = left.saturating_sub(n);
        }
    };
    let _ = timeout(LINGER, discard).await;
}
