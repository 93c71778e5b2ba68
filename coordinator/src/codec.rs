//! Frames: `[length: u32 LE][version: u8][message]`, where `length` counts version and message and
//! the message is bincode 2 (standard configuration) of a [`Request`](crate::protocol::Request) or
//! [`Reply`].
//!
//! Only this module knows about bincode; golden bytes in its tests hold the
//! format. The reader checks the length against a cap before it allocates.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Error, Result};
use crate::protocol::{PROTOCOL_VERSION, Reply};

/// Cap for a frame after the handshake, in bytes.
pub const MAX_FRAME: usize = 1 << 20;
/// Cap for frames of a peer that has not proved to know the token, in bytes.
pub const MAX_HELLO: usize = 4 << 10;
/// Bytes before the message: length and version.
pub const HEADER: usize = 5;

/// Bincode's configuration; the limit bounds what a decoder allocates for lengths inside a message.
fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME>()
}

/// A message as bincode, without a frame: for hashes and for records on disk.
pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    bincode::serde::encode_to_vec(value, config()).map_err(|error| Error::FrameContent {
        bytes: 0,
        detail: error.to_string(),
    })
}

/// Reads what [`to_bytes`] wrote; bytes that are left over are an error.
pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let content = |detail: String| Error::FrameContent {
        bytes: bytes.len(),
        detail,
    };
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|error| content(error.to_string()))?;
    if used != bytes.len() {
        return Err(content(format!(
            "{} bytes are left over",
            bytes.len() - used
        )));
    }
    Ok(value)
}

/// A whole frame, ready to be written in one piece.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    encode_version(message, PROTOCOL_VERSION)
}

fn encode_version<T: Serialize>(message: &T, version: u8) -> Result<Vec<u8>> {
    let mut frame = vec![0, 0, 0, 0, version];
    bincode::serde::encode_into_std_write(message, &mut frame, bincode::config::standard())
        .map_err(|error| Error::FrameContent {
            bytes: frame.len(),
            detail: error.to_string(),
        })?;
    let length = frame.len() - 4;
    let length = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_FRAME)
        .ok_or(Error::FrameTooLarge {
            bytes: length as u64,
            limit: MAX_FRAME,
        })?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The body length that a frame announces, if it is allowed.
fn body_length(prefix: [u8; 4], limit: usize) -> Result<usize> {
    let bytes = u32::from_le_bytes(prefix);
    match usize::try_from(bytes) {
        Ok(0) => Err(Error::FrameContent {
            bytes: 0,
            detail: "it is empty".to_owned(),
        }),
        Ok(length) if length <= limit => Ok(length),
        _ => Err(Error::FrameTooLarge {
            bytes: u64::from(bytes),
            limit,
        }),
    }
}

/// A message from a frame's body (version byte and message).
pub fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    match body.split_first() {
        Some((&PROTOCOL_VERSION, message)) => from_bytes(message),
        Some((&theirs, _)) => Err(Error::Version {
            ours: PROTOCOL_VERSION,
            theirs,
        }),
        None => Err(Error::FrameContent {
            bytes: 0,
            detail: "it is empty".to_owned(),
        }),
    }
}

/// A reply from a frame's body. From a coordinator of another version, [`Reply::Drop`] is still
/// understood, so that this side hears why it was dropped.
pub fn decode_reply(body: &[u8]) -> Result<Reply> {
    let reply = decode_body(body);
    if let (Err(Error::Version { .. }), Some((_, message))) = (&reply, body.split_first())
        && let Ok(Reply::Drop { reason }) = from_bytes(message)
    {
        return Ok(Reply::Drop { reason });
    }
    reply
}

/// Reads one frame's body; `None` when the peer closed between two frames.
pub fn read_body(stream: &mut impl Read, limit: usize) -> Result<Option<Vec<u8>>> {
    let mut prefix = [0u8; 4];
    let mut filled = 0;
    while filled < prefix.len() {
        match stream.read(&mut prefix[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut body = vec![0u8; body_length(prefix, limit)?];
    stream.read_exact(&mut body)?;
    Ok(Some(body))
}

/// As [`read_body`], on a tokio stream. Not cancel-safe: a frame that was begun is lost.
pub async fn read_body_async(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<Option<Vec<u8>>> {
    let mut prefix = [0u8; 4];
    let mut filled = 0;
    while filled < prefix.len() {
        match stream.read(&mut prefix[filled..]).await? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            n => filled += n,
        }
    }
    let mut body = vec![0u8; body_length(prefix, limit)?];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

/// Writes one frame in one piece.
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<()> {
    stream.write_all(&encode(message)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{
        Abort, Assignment, Cause, CheckpointInfo, MemberId, MemberState, Next, Ready, Request,
        Role, Seated, StartPoint, Terms, TrainerEvent, TrainerInfo, Vote,
    };
    use crate::status::{RankStatus, RunState, Status, Turned};

    fn requests() -> Vec<Request> {
        let text = || "r".to_owned();
        vec![
            Request::Hello {
                proof: [7; 32],
                role: Role::Trainer(TrainerInfo {
                    member: Some(MemberId(1 << 32)),
                    host: "n1".to_owned(),
                    machine: "n1/b".to_owned(),
                    pid: 300,
                    preferred_rank: Some(1),
                }),
            },
            Request::Hello {
                proof: [8; 32],
                role: Role::Observer,
            },
            Request::Ready(Ready {
                terms: Terms {
                    samples_per_epoch: 1000,
                    fingerprint: "f".to_owned(),
                    elastic: true,
                },
                have: Some(StartPoint::default()),
                gave_up: Some(text()),
            }),
            Request::Heartbeat {
                generation: 1,
                state: MemberState::Saving,
                step: 9,
                samples_per_s: 1.5,
                beat: 400,
            },
            Request::Vote(Vote {
                generation: 1,
                epoch: 2,
                step: 70_000,
                cursor_after: 300,
                loss: 0.25,
                finite: true,
                samples: 64,
                step_ms: 12.5,
            }),
            Request::Event(TrainerEvent::EpochEnd {
                epoch: 1,
                metrics: BTreeMap::from([("f1".to_owned(), 0.5)]),
                undefined: Some("why".to_owned()),
            }),
            Request::Event(TrainerEvent::CheckpointSaved(CheckpointInfo {
                step: 5,
                path: "p".to_owned(),
                weights_blake3: "w".to_owned(),
                took_ms: 70,
            })),
            Request::Event(TrainerEvent::Finished {
                step: 5,
                weights_blake3: None,
            }),
            Request::Event(TrainerEvent::Left { step: 5 }),
            Request::Event(TrainerEvent::Shared {
                step: 5,
                state_blake3: "s".to_owned(),
            }),
            Request::Event(TrainerEvent::Failed { reason: text() }),
            Request::Event(TrainerEvent::CheckpointFailed {
                step: 5,
                reason: text(),
            }),
            Request::GetStatus,
            Request::Drain { reason: text() },
            Request::Shutdown { reason: text() },
            Request::Fail { reason: text() },
            Request::Publish {
                generation: 1,
                bytes: vec![0, 255],
            },
        ]
    }

    fn replies() -> Vec<Reply> {
        let status = Status {
            state: RunState::Training,
            generation: 1,
            epoch: 2,
            epochs: 3,
            step: 4,
            cursor: 5,
            samples_total: 6,
            world: 1,
            incidents: 2,
            last_incident: Some("l".to_owned()),
            ranks: vec![RankStatus {
                rank: Some(0),
                member: MemberId(1),
                host: "h".to_owned(),
                pid: 2,
                state: MemberState::Training,
                step: 4,
                samples_per_s: 2.0,
                last_seen_ms: 3,
            }],
            ranks_left_out: 7,
            samples_per_s: 1.0,
            loss: Some(0.5),
            eta_s: None,
            checkpoint: None,
            last_epoch: None,
            reason: "r".to_owned(),
            summary: BTreeMap::new(),
            turned: Turned {
                malformed_frames: 8,
                refused_tokens: 9,
                dropped_connections: 300,
            },
            unsaved: Some("u".to_owned()),
        };
        vec![
            Reply::Drop {
                reason: "no".to_owned(),
            },
            Reply::Challenge { nonce: [9; 32] },
            Reply::Welcome {
                member: Some(MemberId(3)),
                heartbeat_ms: 1000,
            },
            Reply::Assign(Assignment {
                generation: 1,
                rank: 1,
                world: 2,
                machines: vec![Seated {
                    rank: 0,
                    machine: "a/b".to_owned(),
                }],
                start: StartPoint {
                    epoch: 1,
                    step: 2,
                    cursor: 3,
                },
                source: Some(1),
                share: true,
                last: false,
            }),
            Reply::Commit {
                generation: 1,
                step: 2,
                next: Next::Regroup,
            },
            Reply::Abort(Abort {
                generation: 1,
                cause: Cause::Failed,
                reason: "x".to_owned(),
            }),
            Reply::StatusReport(Box::new(status)),
            Reply::Noted {
                detail: "d".to_owned(),
            },
            Reply::Published {
                generation: 1,
                bytes: vec![0, 255],
            },
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Another build of the same protocol version has to understand these.
    #[test]
    fn golden_bytes() {
        let mut lines = Vec::new();
        lines.extend(requests().iter().map(|m| hex(&encode(m).unwrap())));
        lines.extend(replies().iter().map(|m| hex(&encode(m).unwrap())));
        let golden = include_str!("../tests/golden/protocol-v5.txt");
        let golden: Vec<&str> = golden.lines().collect();
        assert_eq!(
            lines, golden,
            "a change of these bytes needs a new PROTOCOL_VERSION"
        );
    }

    #[test]
    fn messages_come_back() {
        for message in requests() {
            let frame = encode(&message).unwrap();
            let body = read_body(&mut &frame[..], MAX_FRAME).unwrap().unwrap();
            assert_eq!(decode_body::<Request>(&body).unwrap(), message);
        }
        for message in replies() {
            let frame = encode(&message).unwrap();
            assert_eq!(decode_reply(&frame[4..]).unwrap(), message);
        }
        assert!(read_body(&mut &[][..], MAX_FRAME).unwrap().is_none());
    }

    #[test]
    fn lengths_are_checked_before_anything_is_allocated() {
        let mut stream = &u32::MAX.to_le_bytes()[..];
        let error = read_body(&mut stream, MAX_FRAME).unwrap_err();
        assert!(matches!(
            error,
            Error::FrameTooLarge {
                bytes: 0xffff_ffff,
                limit: MAX_FRAME
            }
        ));
        assert!(read_body(&mut &[0u8; 4][..], MAX_FRAME).is_err());
        assert!(matches!(
            read_body(&mut &[9, 0, 0, 0, 1][..], MAX_FRAME),
            Err(Error::Stream { .. })
        ));
        let huge = Request::Drain {
            reason: "x".repeat(MAX_FRAME),
        };
        assert!(matches!(encode(&huge), Err(Error::FrameTooLarge { .. })));
        // A string inside a short frame that claims to be 2^60 bytes long: Drain is variant 6.
        let mut body = encode(&Request::Drain {
            reason: String::new(),
        })
        .unwrap()
        .split_off(4);
        body.pop();
        body.push(253);
        body.extend_from_slice(&(1u64 << 60).to_le_bytes());
        assert!(matches!(
            decode_body::<Request>(&body),
            Err(Error::FrameContent { .. })
        ));
    }

    #[test]
    fn other_versions_are_named_and_can_say_why_they_drop() {
        let body = encode_version(&Request::GetStatus, 9).unwrap().split_off(4);
        let error = decode_body::<Request>(&body).unwrap_err().to_string();
        assert!(
            error.contains("version 9") && error.contains("version 5"),
            "{error}"
        );
        let drop = Reply::Drop {
            reason: "too old".to_owned(),
        };
        let body = encode_version(&drop, 9).unwrap().split_off(4);
        assert_eq!(decode_reply(&body).unwrap(), drop);
        let other = encode_version(&Reply::Challenge { nonce: [0; 32] }, 9)
            .unwrap()
            .split_off(4);
        assert!(matches!(
            decode_reply(&other),
            Err(Error::Version { theirs: 9, .. })
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_body::<Request>(&bytes);
            let _ = decode_reply(&bytes);
            let mut versioned = vec![PROTOCOL_VERSION];
            versioned.extend_from_slice(&bytes);
            let _ = decode_body::<Request>(&versioned);
            let _ = decode_reply(&versioned);
            let mut stream = &bytes[..];
            while let Ok(Some(_)) = read_body(&mut stream, MAX_HELLO) {}
        }

        #[test]
        fn mutated_frames_never_panic(
            which in any::<prop::sample::Index>(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut frames: Vec<Vec<u8>> = requests().iter().map(|m| encode(m).unwrap()).collect();
            frames.extend(replies().iter().map(|m| encode(m).unwrap()));
            let mut frame = frames.swap_remove(which.index(frames.len()));
            for (at, with) in flips {
                let at = at.index(frame.len());
                frame[at] ^= with;
            }
            frame.truncate(cut.index(frame.len() + 1));
            if let Ok(Some(body)) = read_body(&mut &frame[..], MAX_FRAME) {
                let _ = decode_body::<Request>(&body);
                let _ = decode_reply(&body);
            }
        }
    }
}
