//! The thin shell around [`crate::membership`]: sockets, files and the clock.
//!
//! One loop owns the state machine and all mutable state around it. Connections are tasks
//! that turn bytes into messages for that loop and its frames into bytes; see
//! `server/connection.rs`. A single-threaded tokio runtime is enough and has the shortest round trip.

mod connection;
mod core;
mod limits;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use self::connection::Connection;
use self::core::Core;
use self::limits::AdmissionGate;
pub use self::limits::raise_file_limit;
use crate::client::Endpoint;
use crate::error::{Error, Result};
use crate::journal::{Journal, JournalEntry, JournalRecord, Past};
use crate::ledger::{self, Ledger, LedgerEntry};
pub use crate::membership::RunOutcome;
use crate::membership::{self, Membership, MembershipConfig, MembershipEvent};
use crate::order;
use crate::protocol::{MemberId, PROTOCOL_VERSION, StartPoint};
use crate::rundir::{self, CoordinatorInfo, RunLock};
use crate::token::Token;

/// Messages that may wait for the core before a connection has to.
const INBOX: usize = 1024;
/// Connections that may wait to be accepted; the kernel may allow fewer (net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Messages that are handled in a row before connections get their turn.
const IN_A_ROW: usize = 256;
/// How long connections may take to end after the run has.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);

/// What a coordinator is told.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The run directory; created if need be.
    pub run_dir: PathBuf,
    /// Interface to listen on.
    pub bind: IpAddr,
    /// Port, 0 for any free one.
    pub port: u16,
    /// Ranks that the run shall have.
    pub world: usize,
    /// Virtual shards of the config, which limit the number of ranks.
    pub virtual_shards: usize,
    /// Epochs to train, for the status.
    pub epochs: u32,
    /// Where training starts: that of the checkpoint on resume.
    pub start: StartPoint,
    /// A trainer that stays silent for longer counts as dead, in milliseconds; at least 100.
    pub heartbeat_lapse_ms: u64,
    /// Whether the remaining ranks can form a generation when one is lost (an MPI world cannot).
    pub elastic: bool,
    /// With fewer ranks than this, an elastic run waits for more.
    pub min_ranks: usize,
    /// A rank whose training thread gets nothing done for this long hangs, in milliseconds...
    pub watchdog_ms: u64,
    /// ...or for this many median steps, whichever is longer.
    pub watchdog_steps: u64,
    /// How long missing ranks are waited for, in milliseconds.
    pub join_ms: u64,
    /// How long the ranks of a coordinator that was killed are waited for, in milliseconds.
    pub rejoin_ms: u64,
    /// How long from now until the run has to have left.
    pub time_left: Option<Duration>,
    /// Looks for the newest complete checkpoint when no member holds a state any more.
    pub find_checkpoint: Option<FindCheckpoint>,
    /// How long a peer may take to show the token, in milliseconds.
    pub handshake_ms: u64,
    /// Frames per second that are read from one peer, after twice as many at once; one that sends more
    /// is slowed. A frame costs as one more for every 4 KiB.
    pub frames_per_s: u32,
    /// An observer or launcher that says nothing for longer is closed, in milliseconds.
    pub idle_ms: u64,
    /// What trains, for the status: model, backend, ...
    pub summary: BTreeMap<String, String>,
}

impl ServerOptions {
    /// An elastic run from its beginning on 127.0.0.1, any free port, with 2 s until a silent trainer
    /// counts as dead and 5 s for the handshake.
    pub fn new(
        run_dir: impl Into<PathBuf>,
        world: usize,
        virtual_shards: usize,
        epochs: u32,
    ) -> Self {
        Self {
            run_dir: run_dir.into(),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            world,
            virtual_shards,
            epochs,
            start: StartPoint::default(),
            heartbeat_lapse_ms: 2_000,
            elastic: true,
            min_ranks: 1,
            watchdog_ms: 30_000,
            watchdog_steps: 10,
            join_ms: 600_000,
            rejoin_ms: 5_000,
            time_left: None,
            find_checkpoint: None,
            handshake_ms: 5_000,
            frames_per_s: 2_000,
            idle_ms: 600_000,
            summary: BTreeMap::new(),
        }
    }

    fn check(&self) -> Result<()> {
        order::rank_shards(0, self.world, self.virtual_shards)?;
        if self.heartbeat_lapse_ms < 100 {
            return Err(Error::Options {
                detail: format!(
                    "heartbeat_lapse_ms is {}, the least is 100",
                    self.heartbeat_lapse_ms
                ),
                help: "2000 suits most machines",
            });
        }
        Ok(())
    }
}

/// See [`ServerOptions::find_checkpoint`]. Called on a thread of its own; says where the checkpoint
/// stands (the beginning, when there is none), or why none can be used.
#[derive(Clone)]
pub struct FindCheckpoint(Arc<Find>);

type Find = dyn Fn() -> std::result::Result<StartPoint, String> + Send + Sync;

impl FindCheckpoint {
    /// Wraps the function that looks for the newest complete checkpoint.
    pub fn new(
        find: impl Fn() -> std::result::Result<StartPoint, String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(find))
    }

    fn call(&self) -> std::result::Result<StartPoint, String> {
        (self.0)()
    }
}

impl std::fmt::Debug for FindCheckpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FindCheckpoint")
    }
}

/// A coordinator that listens, but does not answer yet.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    lock: RunLock,
    listener: TcpListener,
    info: CoordinatorInfo,
    token: Token,
    membership: Membership,
    journal: Journal,
    ledger: Ledger,
}

impl Server {
    /// Opens journal, ledger and socket, and writes token and address file. From here on, trainers
    /// find it; they are answered once [`Server::run`] runs.
    pub fn bind(options: ServerOptions, lock: RunLock) -> Result<Self> {
        options.check()?;
        let run_dir = lock.run_dir().to_path_buf();
        let (mut journal, past) = Journal::open(&run_dir)?;
        let past = Past::of(&past);
        let (ledger, entries) = Ledger::open(&run_dir)?;
        // The ledger names generations as well: should the journal have lost one, it is not reused.
        let last_generation = entries
            .iter()
            .map(|record| match record.entry {
                LedgerEntry::Start { generation, .. } => generation,
                LedgerEntry::Commit(step) => step.generation,
            })
            .fold(past.generation, u64::max);
        let history = ledger::history(entries.iter().map(|record| &record.entry));
        let newest = history.last().map(|step| StartPoint {
            epoch: step.epoch,
            step: step.step,
            cursor: step.cursor_end,
        });
        let token = Token::load_or_create(&run_dir)?;
        let addr = SocketAddr::new(options.bind, options.port);
        let listen_error = |source| Error::Listen {
            addr: addr.to_string(),
            source,
        };
        let listener = TcpListener::bind(addr).map_err(listen_error)?;
        // All trainers of a large run come at once. Those beyond the queue would wait for the kernel's
        // retransmissions, many seconds.
        rustix::net::listen(&listener, BACKLOG).map_err(std::io::Error::from)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let host = crate::host::hostname();
        let incarnation = past.incarnations + 1;
        journal.append(&JournalRecord {
            unix_ms: rundir::unix_ms(),
            entry: JournalEntry::Started {
                incarnation,
                host: host.clone(),
                pid: std::process::id(),
                start: options.start,
            },
        })?;
        let info = CoordinatorInfo {
            // Bound to all interfaces, it is reached by the machine's name.
            addr: match addr.ip().is_unspecified() {
                true => format!("{host}:{}", addr.port()),
                false => addr.to_string(),
            },
            pid: std::process::id(),
            host,
            started_unix_ms: rundir::unix_ms(),
            protocol: PROTOCOL_VERSION,
            directory: rundir::directory_id(&run_dir),
        };
        info.store(&run_dir)?;
        let membership = Membership::new(MembershipConfig {
            world: options.world,
            virtual_shards: options.virtual_shards,
            elastic: options.elastic,
            min_ranks: options.min_ranks,
            epochs: options.epochs,
            heartbeat_lapse_ms: options.heartbeat_lapse_ms,
            watchdog_ms: options.watchdog_ms,
            watchdog_steps: options.watchdog_steps,
            join_ms: options.join_ms,
            rejoin_ms: options.rejoin_ms,
            deadline_ms: options.time_left.map(|left| left.as_millis() as u64),
            start: options.start,
            newest: newest.unwrap_or_default(),
            absent: if options.elastic {
                past.seated
            } else {
                BTreeMap::new()
            },
            last_generation,
            first_member: MemberId((u64::from(incarnation) << 32) + 1),
            summary: options.summary.clone(),
        });
        Ok(Self {
            options,
            lock,
            listener,
            info,
            token,
            membership,
            journal,
            ledger,
        })
    }

    /// Address, process and protocol version, as in `coordinator.json`.
    pub fn info(&self) -> &CoordinatorInfo {
        &self.info
    }

    /// How to connect to it without reading the run directory.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Address {
            addr: self.info.addr.clone(),
            token: self.token.clone(),
        }
    }

    /// Serves until the run is over, or until `shutdown` says why to stop. Writes the last status,
    /// removes the address file and only then gives the run directory back.
    pub async fn run(self, shutdown: impl Future<Output = String>) -> Result<RunOutcome> {
        let Self {
            options,
            lock,
            listener,
            info,
            token,
            membership,
            journal,
            ledger,
        } = self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (sender, mut inbox) = mpsc::channel(INBOX);
        let mut core = Core::new(lock.run_dir(), membership, journal, ledger, sender.clone());
        core.find_checkpoint = options.find_checkpoint.clone();
        core.door = Some((info, token.clone()));
        let mut connections = JoinSet::new();
        let settings = Arc::new(connection::Settings {
            token,
            handshake: Duration::from_millis(options.handshake_ms),
            heartbeat_ms: (options.heartbeat_lapse_ms / 5).clamp(20, 1000) as u32,
            frames_per_s: options.frames_per_s,
            idle: Duration::from_millis(options.idle_ms),
            counters: Arc::clone(&core.counters),
            gate: AdmissionGate::new(membership::room(options.world, options.elastic)),
        });
        let most = settings.gate.limit() + limits::FAREWELLS;
        core.heartbeat_ms = settings.heartbeat_ms;
        let mut tick = tokio::time::interval(Duration::from_millis(
            (options.heartbeat_lapse_ms / 8).clamp(10, 250),
        ));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut stopping = false;
        let mut next_ticket = 0;
        // After an error only: even a sleep that is over gives way to the messages once, every time.
        let mut accept_from: Option<Instant> = None;
        let outcome = loop {
            if let Some(outcome) = core.outcome() {
                break outcome.clone();
            }
            let accept = async {
                if let Some(from) = accept_from {
                    sleep_until(from).await;
                }
                listener.accept().await
            };
            tokio::select! {
                Some(message) = inbox.recv() => {
                    core.handle(message);
                    for _ in 1..IN_A_ROW {
                        match inbox.try_recv() {
                            Ok(message) if core.outcome().is_none() => core.handle(message),
                            _ => break,
                        }
                    }
                }
                accepted = accept => match accepted {
                    Ok(_) if connections.len() >= most => {
                        core.counters.closed();
                    }
                    Ok((stream, peer)) => {
                        accept_from = None;
                        next_ticket += 1;
                        let connection = Connection {
                            ticket: next_ticket,
                            peer,
                            settings: Arc::clone(&settings),
                            core: sender.clone(),
                        };
                        connections.spawn(connection.serve(stream));
                    }
                    // Out of file descriptors, most likely: wait for some to come back.
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        accept_from = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                },
                Some(_) = connections.join_next() => {
                    while connections.try_join_next().is_some() {}
                }
                _ = tick.tick() => core.tick(),
                reason = &mut shutdown, if !stopping => {
                    stopping = true;
                    core.apply(MembershipEvent::Shutdown { reason });
                }
            }
        };
        drop(listener);
        drop(inbox);
        core.close_connections();
        let all_closed = async { while connections.join_next().await.is_some() {} };
        // Dropping the set cuts the connections that still hang.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, all_closed).await;
        core.finish().await;
        if let Err(error) = std::fs::remove_file(lock.run_dir().join(rundir::INFO_FILE)) {
            tracing::warn!("cannot remove {}: {error}", rundir::INFO_FILE);
        }
        drop(lock);
        Ok(outcome)
    }
}

/// Locks the run directory, binds and serves.
pub async fn run(
    options: ServerOptions,
    shutdown: impl Future<Output = String>,
) -> Result<RunOutcome> {
    let lock = RunLock::acquire(&options.run_dir)?;
    Server::bind(options, lock)?.run(shutdown).await
}
