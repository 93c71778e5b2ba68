//! The speed at which ranks sum their buffers: `fovea bench allreduce`.

use std::sync::Arc;
use std::time::Instant;

use fovea_collectives::Collective;
use fovea_kernels::DType;
use fovea_kernels::cuda::{DeviceBuffer, Event, Kernels, Stream};
use fovea_trainer::{Error, Result};
use serde::Serialize;

use super::seat::{PATIENCE, slowest};

/// Calls before the measured ones.
const WARM_UP: usize = 3;

/// The measurement of one buffer size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Bytes of each rank's buffer.
    pub bytes: u64,
    /// Median over the calls, each as long as its slowest rank, in milliseconds.
    pub ms: f64,
    /// Shortest call, in milliseconds.
    pub min_ms: f64,
    /// Algorithm bandwidth: `bytes / time`, in 10^9 bytes per second.
    pub algbw_gb_s: f64,
    /// Bus bandwidth: what a link between ranks would have to carry, in 10^9 bytes per second; see [`bus_bandwidth`].
    pub busbw_gb_s: f64,
}

/// `algbw * 2 (n - 1) / n`, which is comparable between world sizes: a rank must send and receive at least twice that
/// share of its buffer (nccl-tests, doc/PERFORMANCE.md, "AllReduce").
pub fn bus_bandwidth(algbw: f64, world: usize) -> f64 {
    algbw * 2.0 * (world.saturating_sub(1)) as f64 / world.max(1) as f64
}

/// Sums buffers of each of these sizes (bytes) `repeats` times. All ranks call it, and get the same figures.
///
/// # Errors
/// A rank is lost, or a sum is wrong.
pub fn measure(
    collective: &mut dyn Collective,
    sizes: &[u64],
    repeats: usize,
) -> Result<Vec<Figure>> {
    let mut sum = |collective: &mut dyn Collective, buffer: &mut [f32]| {
        let begun = Instant::now();
        collective.all_reduce(buffer, begun + PATIENCE)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let mut one = |bytes: &u64| measure_one(collective, *bytes, repeats, &mut sum);
    sizes.iter().map(&mut one).collect()
}

/// [`measure`] with buffers in GPU memory, whose sums stay there. The GPU measures the times, from the buffer's last
/// write to its sum.
///
/// # Errors
/// As [`measure`]; the backend sums only in host memory.
pub fn measure_on_gpus(
    collective: &mut dyn Collective,
    kernels: &Arc<Kernels>,
    sizes: &[u64],
    repeats: usize,
) -> Result<Vec<Figure>> {
    let stream = Stream::new(kernels)?;
    let mut sum = |collective: &mut dyn Collective, buffer: &mut [f32]| {
        sum_on_gpu(collective, kernels, &stream, buffer)
    };
    let mut one = |bytes: &u64| measure_one(collective, *bytes, repeats, &mut sum);
    sizes.iter().map(&mut one).collect()
}

/// Uploads, sums and downloads the buffer; returns the seconds of the sum.
fn sum_on_gpu(
    collective: &mut dyn Collective,
    kernels: &Arc<Kernels>,
    stream: &Stream,
    buffer: &mut [f32],
) -> Result<f64> {
    let name = collective.name();
    let device = collective.device().ok_or_else(|| Error::Usage {
        what: format!("backend {name} does not sum in GPU memory"),
        help: "measure it without a GPU, or use --backend nccl".to_owned(),
    })?;
    let values = DeviceBuffer::new(kernels, buffer)?;
    let (begun, done) = (Event::timed(kernels)?, Event::timed(kernels)?);
    // SAFETY: the stream is ours, and the memory has this length and stays until the sum has been waited for; after an
    // error the process ends.
    let summed = unsafe {
        begun.record(stream.handle())?;
        device
            .all_reduce_start(values.address(), buffer.len(), DType::F32, stream.handle())
            .and_then(|()| device.join(stream.handle()))
            .and_then(|()| Ok(done.record(stream.handle())?))
            .and_then(|()| device.wait(&done, Instant::now() + PATIENCE))
    };
    if let Err(error) = summed {
        // Another rank may still write to it.
        std::mem::forget(values);
        return Err(error.into());
    }
    values.download(buffer)?;
    Ok(f64::from(done.ms_since(&begun)?) / 1e3)
}

/// Sums a buffer over all ranks and returns the seconds that it took.
type Sum<'a> = dyn FnMut(&mut dyn Collective, &mut [f32]) -> Result<f64> + 'a;

fn measure_one(
    collective: &mut dyn Collective,
    bytes: u64,
    repeats: usize,
    sum: &mut Sum<'_>,
) -> Result<Figure> {
    let (rank, world) = (collective.rank(), collective.world());
    let mut buffer = vec![0.0f32; (bytes as usize / size_of::<f32>()).max(1)];
    let mut mine = Vec::with_capacity(repeats);
    for call in 0..WARM_UP + repeats {
        buffer.fill((rank + 1) as f32);
        collective.barrier(Instant::now() + PATIENCE)?;
        let took = sum(collective, &mut buffer)?;
        if call >= WARM_UP {
            mine.push(took);
        }
        // Small integers sum exactly in any order.
        let expected = (world * (world + 1) / 2) as f32;
        if let Some(wrong) = buffer.iter().position(|x| *x != expected) {
            return Err(Error::Internal(format!(
                "all-reduce of {bytes} bytes over {world} ranks: element {wrong} is {} and should be {expected}",
                buffer[wrong]
            )));
        }
    }
    let slowest = slowest(collective, &mine)?;
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
            let seat = super::super::seat::MeetingSeat {
                meeting: meeting.clone(),
                rank,
                world: 3,
            };
            let mut ranks = super::super::seat::join(&seat).expect("a seat");
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
