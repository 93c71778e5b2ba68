//! Round trip of a vote: N trainers on this machine vote as fast as they can.
//!
//! `cargo run --release -p fovea-coordinator --example vote_latency [RANKS] [STEPS]`

use std::time::{Duration, Instant};

use fovea_coordinator::client::{Client, Decision, Endpoint};
use fovea_coordinator::protocol::{Ready, Terms, TrainerEvent, TrainerInfo, Vote};
use fovea_coordinator::rundir::RunLock;
use fovea_coordinator::server::{Server, ServerOptions};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let world: usize = args.next().map_or(Ok(4), |text| text.parse())?;
    let steps: u64 = args.next().map_or(Ok(20_000), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let options = ServerOptions {
        // The limit is for peers that are not in lockstep.
        frames_per_s: u32::MAX,
        ..ServerOptions::new(dir.path().join("run"), world, world, 1)
    };
    let lock = RunLock::acquire(&options.run_dir)?;
    let server = Server::bind(options, lock)?;
    let endpoint = server.endpoint();
    let coordinator = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime
            .block_on(server.run(std::future::pending()))
            .map_err(Failure::from)
    });
    let ranks: Vec<_> = (0..world)
        .map(|_| {
            let endpoint = endpoint.clone();
            std::thread::spawn(move || rank(&endpoint, steps))
        })
        .collect();
    let mut times = Vec::new();
    for rank in ranks {
        times.extend(rank.join().map_err(|_| "a rank panicked")??);
    }
    let outcome = coordinator
        .join()
        .map_err(|_| "the coordinator panicked")??;
    times.sort_unstable();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e6;
    println!(
        "{world} ranks, {steps} steps, {outcome:?}: vote round trip p10 {:.0} us, p50 {:.0} us, p90 {:.0} us, p99 {:.0} us, max {:.0} us",
        at(0.1),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    Ok(())
}

/// Votes `steps` times and returns how long each took.
fn rank(endpoint: &Endpoint, steps: u64) -> Result<Vec<Duration>, Failure> {
    let patience = Duration::from_secs(30);
    let info = TrainerInfo::this_process(None);
    let mut client = Client::connect(endpoint, info, Instant::now() + patience)?;
    let ready = Ready {
        terms: Terms {
            samples_per_epoch: u64::MAX,
            fingerprint: String::new(),
            elastic: true,
        },
        have: None,
        gave_up: None,
    };
    let seat = client.ready(&ready, Instant::now() + patience)?;
    let mut times = Vec::with_capacity(steps as usize);
    for step in 1..=steps {
        let vote = Vote {
            generation: seat.generation,
            epoch: 0,
            step,
            cursor_after: step * seat.world as u64,
            loss: 1.0,
            finite: true,
            samples: 1,
            step_ms: 1.0,
        };
        let begun = Instant::now();
        match client.vote(&vote, begun + patience)? {
            Decision::Commit { .. } => times.push(begun.elapsed()),
            Decision::Abort(abort) => return Err(abort.reason.into()),
        }
    }
    client.event(TrainerEvent::Finished {
        step: steps,
        weights_blake3: None,
    })?;
    Ok(times)
}
