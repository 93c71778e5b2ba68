//! One simulated member: a trainer's messages without its work.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

use super::Load;
use crate::codec;
use crate::error::{Error, Result};
use crate::order;
use crate::protocol::{
    Assignment, MemberState, Next, Ready, Reply, Request, Role, StartPoint, Terms, TrainerInfo,
    Vote,
};
use crate::token::Token;

/// Samples of a virtual shard in every step.
const SAMPLES: u64 = 4;
/// A process that failed needs this long to start again.
const RESTART: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);

/// What all members have in common.
pub(super) struct MemberContext {
    addr: String,
    token: Token,
    pub load: Load,
    generation: AtomicU64,
    tally: Mutex<Tally>,
}

/// Counts and latencies that all members of a run add to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub votes: Vec<Duration>,
    pub recoveries: Vec<Duration>,
    pub steps: u64,
    pub failures: u64,
    pub heartbeat_ms: u32,
    newest: u64,
    /// The step that is voted for, and when the last vote for it was sent.
    voted: Option<(u64, Instant)>,
    /// The first failure since the newest commit.
    failed: Option<Instant>,
}

impl MemberContext {
    pub fn new(addr: String, token: Token, load: Load) -> Self {
        Self {
            addr,
            token,
            load,
            generation: AtomicU64::new(0),
            tally: Mutex::default(),
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    pub fn tally(&self) -> Tally {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn voted(&self, step: u64) {
        self.lock().voted = Some((step, Instant::now()));
    }

    fn committed(&self, step: u64) {
        let now = Instant::now();
        let mut tally = self.lock();
        if let Some((voted, at)) = tally.voted
            && voted == step
        {
            tally.votes.push(now - at);
        }
        if step > tally.newest {
            tally.newest = step;
            tally.steps += 1;
            if let Some(failed) = tally.failed.take() {
                tally.recoveries.push(now - failed);
            }
        }
    }

    fn failed(&self) {
        let mut tally = self.lock();
        tally.failures += 1;
        tally.failed.get_or_insert_with(Instant::now);
    }
}

/// How a life ended.
enum End {
    Failed,
    Lost,
}

pub(super) struct SimulatedMember {
    number: u32,
    lives: u32,
    shared: Arc<MemberContext>,
}

/// A connection with a seat or on the way to one.
struct Life {
    writer: OwnedWriteHalf,
    have: Option<StartPoint>,
    seat: Option<Assignment>,
    /// When the vote of the running attempt is due.
    vote_at: Option<Instant>,
}

impl SimulatedMember {
    pub fn new(number: u32, shared: Arc<MemberContext>) -> Self {
        Self {
            number,
            lives: 0,
            shared,
        }
    }

    /// Lives until `ends`; one life after the other.
    pub async fn run(mut self, ends: Arc<AtomicBool>) {
        while !ends.load(Ordering::Relaxed) {
            self.lives += 1;
            match self.live().await {
                Ok(End::Failed) => sleep(RESTART).await,
                Ok(End::Lost) => sleep(PAUSE).await,
                Err(error) => {
                    tracing::debug!("member {}: {error}", self.number);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn live(&self) -> Result<End> {
        let (mut reader, writer, heartbeat_ms) = self.enter().await?;
        self.shared.lock().heartbeat_ms = heartbeat_ms;
        let mut life = Life {
            writer,
            have: None,
            seat: None,
            vote_at: None,
        };
        life.ready().await?;
        let every = Duration::from_millis(u64::from(heartbeat_ms.max(1)));
        let mut beats = interval(every);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat = 0;
        // Its own read future lives across turns: a frame that was begun is not lost.
        let (frames, mut inbox) = tokio::sync::mpsc::channel(16);
        let reading = async move {
            while let Ok(Some(body)) = codec::read_body_async(&mut reader, codec::MAX_FRAME).await {
                let Ok(reply) = codec::decode_reply(&body) else {
                    break;
                };
                if frames.send(reply).await.is_err() {
                    break;
                }
            }
        };
        let mut reading = std::pin::pin!(reading);
        let mut open = true;
        loop {
            let due = life.vote_at.map(tokio::time::Instant::from_std);
            tokio::select! {
                () = &mut reading, if open => open = false,
                reply = inbox.recv() => match reply {
                    Some(reply) => self.take(&mut life, reply).await?,
                    None => return Ok(End::Lost),
                },
                () = async { sleep_until(due.unwrap_or_else(tokio::time::Instant::now)).await }, if due.is_some() => {
                    life.vote_at = None;
                    self.vote(&mut life).await?;
                }
                _ = beats.tick() => {
                    beat += 1;
                    life.beat(beat).await?;
                    if self.is_to_fail(beat, every) && life.seat.is_some() {
                        self.shared.failed();
                        return Ok(End::Failed);
                    }
                }
            }
        }
    }

    /// Decided per heartbeat by a hash, so that a run can be repeated.
    fn is_to_fail(&self, beat: u64, every: Duration) -> bool {
        if beat < 3 {
            return false;
        }
        let mut text = [0u8; 16];
        text[..4].copy_from_slice(&self.number.to_le_bytes());
        text[4..8].copy_from_slice(&self.lives.to_le_bytes());
        text[8..].copy_from_slice(&beat.to_le_bytes());
        let hash = blake3::hash(&text);
        let mut first = [0u8; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        let chance = self.shared.load.fail_per_minute * every.as_secs_f64() / 60.0;
        (u64::from_le_bytes(first) as f64) < chance * u64::MAX as f64
    }

    async fn enter(&self) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf, u32)> {
        let stream = TcpStream::connect(&self.shared.addr).await?;
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::with_capacity(256, reader);
        let nonce = match next(&mut reader).await? {
            Reply::Challenge { nonce } => nonce,
            other => return Err(unexpected(&other, "a challenge")),
        };
        let role = Role::Trainer(TrainerInfo {
            member: None,
            host: format!("node{:04}", self.number / 8),
            machine: format!("node{:04}/bench", self.number / 8),
            pid: self.number + 1_000_000 * self.lives,
            preferred_rank: None,
        });
        let proof = *self
            .shared
            .token
            .proof(&nonce, &codec::to_bytes(&role)?)
            .as_bytes();
        let hello = codec::encode(&Request::Hello { proof, role })?;
        writer.write_all(&hello).await?;
        match next(&mut reader).await? {
            Reply::Welcome { heartbeat_ms, .. } => Ok((reader, writer, heartbeat_ms)),
            other => Err(unexpected(&other, "a welcome")),
        }
    }

    async fn take(&self, life: &mut Life, reply: Reply) -> Result<()> {
        match reply {
            Reply::Assign(seat) => {
                self.shared
                    .generation
                    .fetch_max(seat.generation, Ordering::Relaxed);
                life.have = Some(seat.start);
                life.vote_at = Some(Instant::now() + self.shared.load.step);
                life.seat = Some(seat);
                Ok(())
            }
            Reply::Commit { step, next, .. } => {
                self.shared.committed(step);
                if let Some(have) = &mut life.have {
                    have.step = step;
                    have.cursor += self.samples();
                }
                match next {
                    Next::Step => {
                        life.vote_at = Some(Instant::now() + self.shared.load.step);
                        Ok(())
                    }
                    Next::Regroup | Next::Leave => life.ready().await,
                }
            }
            Reply::Abort(_) => {
                life.vote_at = None;
                life.ready().await
            }
            Reply::Drop { reason } => Err(Error::Dropped { reason }),
            other => Err(unexpected(&other, "an order")),
        }
    }

    /// Of one step, over all ranks.
    fn samples(&self) -> u64 {
        SAMPLES * self.shared.load.world as u64
    }

    async fn vote(&self, life: &mut Life) -> Result<()> {
        let (Some(seat), Some(have)) = (&life.seat, life.have) else {
            return Ok(());
        };
        let mine = order::virtual_shard(self.samples() as usize, seat.rank, seat.world);
        let vote = Vote {
            generation: seat.generation,
            epoch: have.epoch,
            step: have.step + 1,
            cursor_after: have.cursor + self.samples(),
            loss: 0.5,
            finite: true,
            samples: mine.len() as u64,
            step_ms: self.shared.load.step.as_secs_f32() * 1e3,
        };
        let step = vote.step;
        life.send(&Request::Vote(vote)).await?;
        self.shared.voted(step);
        Ok(())
    }
}

impl Life {
    async fn send(&mut self, request: &Request) -> Result<()> {
        self.writer.write_all(&codec::encode(request)?).await?;
        Ok(())
    }

    async fn ready(&mut self) -> Result<()> {
        self.seat = None;
        let ready = Ready {
            terms: Terms {
                samples_per_epoch: u64::MAX / 4,
                fingerprint: "bench".to_owned(),
                elastic: true,
            },
            have: self.have,
            gave_up: None,
        };
        self.send(&Request::Ready(ready)).await
    }

    async fn beat(&mut self, beat: u64) -> Result<()> {
        let (generation, state) = match &self.seat {
            Some(seat) => (seat.generation, MemberState::Training),
            None => (0, MemberState::Waiting),
        };
        let step = self.have.map_or(0, |have| have.step);
        self.send(&Request::Heartbeat {
            generation,
            state,
            step,
            samples_per_s: 0.0,
            beat,
        })
        .await
    }
}

async fn next(reader: &mut BufReader<OwnedReadHalf>) -> Result<Reply> {
    match codec::read_body_async(reader, codec::MAX_FRAME).await? {
        Some(body) => codec::decode_reply(&body),
        None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
    }
}

fn unexpected(reply: &Reply, expected: &'static str) -> Error {
    Error::Unexpected {
        peer: "the coordinator".to_owned(),
        got: format!("{reply:?}").chars().take(200).collect(),
        expected,
    }
}
