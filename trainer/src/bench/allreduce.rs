//! How fast ranks add their buffers: `fovea bench allreduce`.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::collectives::{AbortHandle, Collective, Solo, local, mpi_launch_size};
use crate::error::{Error, Result};

/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(120);
/// Calls before the clock counts.
const WARM_UP: usize = 3;

/// Where the ranks meet.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The same for all ranks of a measurement, and for no other.
    pub meeting: String,
    /// `0..world`.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
}

/// One size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Of the buffer of each rank.
    pub bytes: u64,
    /// Median over the calls, each as long as its slowest rank, in milliseconds.
    pub ms: f64,
    /// Shortest call, in milliseconds.
    pub min_ms: f64,
    /// `bytes / time`, in 10^9 bytes per second.
    pub algbw_gb_s: f64,
    /// What a link between ranks would have to carry, in 10^9 bytes per second; see [`bus_bandwidth`].
    pub busbw_gb_s: f64,
}

/// `algbw * 2 (n - 1) / n`: comparable between numbers of ranks, as each must send and receive that share of its
/// buffer twice at least (nccl-tests, doc/PERFORMANCE.md, "AllReduce").
pub fn bus_bandwidth(algbw: f64, world: usize) -> f64 {
    algbw * 2.0 * (world.saturating_sub(1)) as f64 / world.max(1) as f64
}

/// The number of ranks that an MPI launcher has started, if one did and this program can use it.
pub fn mpi_world() -> Option<usize> {
    mpi_launch_size(|name| std::env::var(name).ok()).filter(|_| cfg!(feature = "mpi"))
}

/// Joins the other ranks: those of the MPI job, else of this machine.
///
/// # Errors
/// When they do not come, or there is no room for shared memory.
pub fn join(seat: &Seat) -> Result<Box<dyn Collective>> {
    let abort = AbortHandle::new();
    #[cfg(feature = "mpi")]
    if mpi_world().is_some() {
        use crate::collectives::mpi::MpiCollective;
        return Ok(Box::new(MpiCollective::init(&abort)?));
    }
    if seat.world == 1 {
        return Ok(Box::new(Solo::new(&abort)));
    }
    let options = local::LocalOptions {
        run_id: seat.meeting.clone(),
        generation: 1,
        rank: seat.rank,
        world: seat.world,
        machines: Vec::new(),
        chunk_f32: local::DEFAULT_CHUNK_F32,
    };
    let joined = local::LocalCollective::join(&options, &abort, Instant::now() + PATIENCE)?;
    Ok(Box::new(joined))
}

/// Sums buffers of each of these sizes (bytes) `repeats` times. All ranks call it, and get the same figures.
///
/// # Errors
/// When a rank is lost, or a sum is wrong.
pub fn measure(
    collective: &mut dyn Collective,
    sizes: &[u64],
    repeats: usize,
) -> Result<Vec<Figure>> {
    sizes
        .iter()
        .map(|bytes| measure_one(collective, *bytes, repeats))
        .collect()
}

fn measure_one(collective: &mut dyn Collective, bytes: u64, repeats: usize) -> Result<Figure> {
    let (rank, world) = (collective.rank(), collective.world());
    let mut buffer = vec![0.0f32; (bytes as usize / size_of::<f32>()).max(1)];
    let mut mine = Vec::with_capacity(repeats);
    for call in 0..WARM_UP + repeats {
        buffer.fill((rank + 1) as f32);
        collective.barrier(Instant::now() + PATIENCE)?;
        let begun = Instant::now();
        collective.all_reduce(&mut buffer, begun + PATIENCE)?;
        let took = begun.elapsed();
        if call >= WARM_UP {
            mine.push(took.as_secs_f64());
        }
        // Small integers: exact in any order.
        let expected = (world * (world + 1) / 2) as f32;
        if let Some(wrong) = buffer.iter().position(|x| *x != expected) {
            return Err(Error::Internal(format!(
                "all-reduce of {bytes} bytes over {world} ranks: element {wrong} is {} and should be {expected}",
                buffer[wrong]
            )));
        }
    }
    let bytes_of =
        |times: &[f64]| -> Vec<u8> { times.iter().flat_map(|t| t.to_le_bytes()).collect() };
    let all = collective.all_gather(&bytes_of(&mine), Instant::now() + PATIENCE)?;
    let mut slowest = vec![0.0f64; repeats];
    for times in &all {
        let (times, _) = times.as_chunks::<8>();
        for (slowest, time) in slowest.iter_mut().zip(times) {
            *slowest = slowest.max(f64::from_le_bytes(*time));
        }
    }
    Ok(figure(bytes, &slowest, world))
}

fn figure(bytes: u64, times: &[f64], world: usize) -> Figure {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    let algbw = bytes as f64 / median / 1e9;
    Figure {
        bytes,
        ms: median * 1e3,
        min_ms: sorted.first().copied().unwrap_or(f64::NAN) * 1e3,
        algbw_gb_s: algbw,
        busbw_gb_s: bus_bandwidth(algbw, world),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_those_of_nccl_tests() {
        // 1 GB in 100 ms over 4 ranks: 10 GB/s, of which each link carries 2 * 3 / 4.
        let figure = figure(1_000_000_000, &[0.3, 0.1, 0.05], 4);
        assert_eq!((figure.ms, figure.min_ms), (100.0, 50.0));
        assert!((figure.algbw_gb_s - 10.0).abs() < 1e-9);
        assert!((figure.busbw_gb_s - 15.0).abs() < 1e-9);
        assert_eq!(bus_bandwidth(10.0, 1), 0.0);
        assert_eq!(bus_bandwidth(10.0, 2), 10.0);
    }

    #[test]
    fn ranks_measure_together() {
        let meeting = format!("bench-{}", std::process::id());
        let run = |rank: usize| {
            let seat = Seat {
                meeting: meeting.clone(),
                rank,
                world: 3,
            };
            let mut ranks = join(&seat).expect("a seat");
            measure(ranks.as_mut(), &[4, 1000, 300_000], 5).expect("figures")
        };
        let figures: Vec<Vec<Figure>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..3).map(|rank| scope.spawn(move || run(rank))).collect();
            let joined = ranks.into_iter().map(|rank| rank.join());
            joined.map(|figures| figures.expect("no panic")).collect()
        });
        assert!(figures[0] == figures[1] && figures[1] == figures[2]);
        let sizes: Vec<u64> = figures[0].iter().map(|f| f.bytes).collect();
        assert_eq!(sizes, [4, 1000, 300_000]);
        assert!(figures[0].iter().all(|f| f.ms > 0.0 && f.min_ms <= f.ms));
    }
}
