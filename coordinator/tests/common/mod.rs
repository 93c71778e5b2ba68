//! A live coordinator and trainers on 127.0.0.1, for the integration tests.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fovea_coordinator::client::{Client, Decision, Endpoint};
use fovea_coordinator::codec;
use fovea_coordinator::protocol::{
    Assignment, Next, Ready, Reply, Request, Role, Terms, TrainerEvent, TrainerInfo, Vote,
};
use fovea_coordinator::rundir::RunLock;
use fovea_coordinator::server::{RunOutcome, Server, ServerOptions};
use fovea_coordinator::token::Token;

/// Samples in an epoch of these tests.
pub const TOTAL: u64 = 100;

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub fn ready() -> Ready {
    Ready {
        terms: Terms {
            samples_per_epoch: TOTAL,
            fingerprint: "same".to_owned(),
            elastic: true,
        },
        have: None,
        gave_up: None,
    }
}

/// A coordinator on a thread of its own.
pub struct Coordinator {
    pub endpoint: Endpoint,
    pub addr: String,
    pub token: Token,
    stop: tokio::sync::oneshot::Sender<String>,
    outcome: mpsc::Receiver<fovea_coordinator::Result<RunOutcome>>,
    thread: JoinHandle<()>,
}

impl Coordinator {
    pub fn start(options: ServerOptions) -> Self {
        let lock = RunLock::acquire(&options.run_dir).unwrap();
        let server = Server::bind(options, lock).unwrap();
        let endpoint = server.endpoint();
        let Endpoint::Address { addr, token } = endpoint.clone() else {
            panic!("a server's endpoint is an address");
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<String>();
        let (sender, outcome) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let shutdown = async {
                match stopped.await {
                    Ok(reason) => reason,
                    Err(_) => std::future::pending().await,
                }
            };
            sender.send(runtime.block_on(server.run(shutdown))).unwrap();
        });
        Self {
            endpoint,
            addr,
            token,
            stop,
            outcome,
            thread,
        }
    }

    pub fn stop(self, reason: &str) -> RunOutcome {
        self.stop.send(reason.to_owned()).unwrap();
        let outcome = self.outcome.recv_timeout(Duration::from_secs(20));
        self.thread.join().unwrap();
        outcome.unwrap().unwrap()
    }

    pub fn outcome(self) -> RunOutcome {
        let outcome = self.outcome.recv_timeout(Duration::from_secs(20));
        let outcome = outcome.expect("the run ends").unwrap();
        self.thread.join().unwrap();
        outcome
    }

    /// A raw connection, the challenge read.
    pub fn dial(&self) -> (TcpStream, [u8; 32]) {
        let mut stream = TcpStream::connect(&self.addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        match read(&mut stream) {
            Some(Reply::Challenge { nonce }) => (stream, nonce),
            other => panic!("{other:?}"),
        }
    }

    /// A raw connection with the handshake done; what came in answer.
    pub fn dial_as(&self, role: Role) -> (TcpStream, Reply) {
        let (mut stream, nonce) = self.dial();
        let proof = *self.token.proof(&nonce, &role_bytes(&role)).as_bytes();
        codec::write_frame(&mut stream, &Request::Hello { proof, role }).unwrap();
        let reply = read(&mut stream).unwrap();
        (stream, reply)
    }
}

/// The role as it is encoded in a Hello: behind length, version, variant and proof.
pub fn role_bytes(role: &Role) -> Vec<u8> {
    let hello = Request::Hello {
        proof: [0; 32],
        role: role.clone(),
    };
    codec::encode(&hello)
        .unwrap()
        .split_off(codec::HEADER + 1 + 32)
}

/// The next reply; `None` when the coordinator closed.
pub fn read(stream: &mut TcpStream) -> Option<Reply> {
    let body = codec::read_body(stream, codec::MAX_FRAME).unwrap()?;
    Some(codec::decode_reply(&body).unwrap())
}

/// The reason of the `Drop` that has to come next, after which the connection is closed.
pub fn dropped(stream: &mut TcpStream) -> String {
    let Some(Reply::Drop { reason }) = read(stream) else {
        panic!("no drop");
    };
    assert_eq!(read(stream), None);
    reason
}

pub fn trainer(pid: u32) -> TrainerInfo {
    TrainerInfo {
        member: None,
        host: "testhost".to_owned(),
        machine: "testhost/1".to_owned(),
        pid,
        preferred_rank: Some(pid),
    }
}

/// A trainer that has its seat.
pub struct Trainer {
    pub client: Client,
    pub seat: Assignment,
    pub cursor: u64,
    pub epoch: u32,
    pub step: u64,
}

impl Trainer {
    pub fn join(endpoint: &Endpoint, pid: u32) -> Self {
        let mut client = Client::connect(endpoint, trainer(pid), soon()).unwrap();
        let seat = client.ready(&ready(), soon()).unwrap();
        let start = seat.start;
        Self {
            client,
            seat,
            cursor: start.cursor,
            epoch: start.epoch,
            step: start.step,
        }
    }

    /// This rank's vote for a batch of ten samples.
    pub fn next_vote(&self) -> Vote {
        let (epoch, from) = match self.cursor {
            TOTAL => (self.epoch + 1, 0),
            cursor => (self.epoch, cursor),
        };
        let cursor_after = (from + 10).min(TOTAL);
        let mine = fovea_coordinator::order::virtual_shard(
            (cursor_after - from) as usize,
            self.seat.rank,
            self.seat.world,
        );
        Vote {
            generation: self.seat.generation,
            epoch,
            step: self.step + 1,
            cursor_after,
            loss: 0.5,
            finite: true,
            samples: mine.len() as u64,
            step_ms: 1.0,
        }
    }

    pub fn step(&mut self) -> Decision {
        let vote = self.next_vote();
        let decision = self.client.vote(&vote, soon()).unwrap();
        if let Decision::Commit { step, .. } = decision {
            assert_eq!(step, vote.step);
            self.step = step;
            self.epoch = vote.epoch;
            self.cursor = vote.cursor_after;
        }
        decision
    }

    pub fn finish(self) {
        let event = TrainerEvent::Finished {
            step: self.step,
            weights_blake3: Some("w".to_owned()),
        };
        self.client.event(event).unwrap();
    }

    /// Steps until the last one is announced, leaves there, and says which it was.
    pub fn until_drained(mut self) -> u64 {
        loop {
            match self.step() {
                Decision::Commit {
                    next: Next::Step, ..
                } => {}
                Decision::Commit { step, next } => {
                    assert_eq!(next, Next::Leave);
                    self.client.event(TrainerEvent::Left { step }).unwrap();
                    return step;
                }
                Decision::Abort(abort) => panic!("{}", abort.reason),
            }
        }
    }
}

/// All ranks of a run, each on its thread.
pub fn on_ranks<T: Send + 'static>(
    endpoint: &Endpoint,
    world: u32,
    body: impl Fn(Trainer) -> T + Send + Clone + 'static,
) -> Vec<JoinHandle<T>> {
    (0..world)
        .map(|pid| {
            let (endpoint, body) = (endpoint.clone(), body.clone());
            std::thread::spawn(move || body(Trainer::join(&endpoint, pid)))
        })
        .collect()
}

/// A run that ends when it loses a rank; see `elastic.rs` for the others.
pub fn options(dir: &Path, world: usize) -> ServerOptions {
    ServerOptions {
        elastic: false,
        ..ServerOptions::new(dir.join("run"), world, 4, 2)
    }
}
