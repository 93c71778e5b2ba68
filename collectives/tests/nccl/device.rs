//! Data on the GPU: sums that run alongside the computation.

use fovea_kernels::DType;
use fovea_kernels::cuda::{DeviceBuffer, Event, Stream};
use half::bf16;

use super::testing::soon;
use super::*;

/// Rank `rank`'s element `i` of bucket `bucket`: whole numbers, whose sums no order changes.
fn value(rank: usize, bucket: usize, i: usize) -> f32 {
    ((i * 7 + bucket * 3 + rank * 5) % 23) as f32 - 11.0
}

fn bucket<T: bytemuck::Pod>(
    rank: usize,
    number: usize,
    len: usize,
    of: fn(f32) -> T,
) -> DeviceBuffer {
    let values: Vec<T> = (0..len).map(|i| of(value(rank, number, i))).collect();
    DeviceBuffer::new(&kernels(), &values).unwrap()
}

/// The sums of three buckets of each type at every rank, each started when it is written on the caller's stream.
fn sums(world: usize) {
    let lens = [1, 1000, 4097];
    joined(world, |mut nccl| {
        let (rank, kernels) = (nccl.rank(), kernels());
        let (stream, done) = (
            Stream::new(&kernels).unwrap(),
            Event::new(&kernels).unwrap(),
        );
        for round in 0..3 {
            // What backward computes: copies on the caller's stream, seen only by who waits for that stream.
            let sources: Vec<_> = (0..3)
                .map(|k| bucket(rank, k + round, lens[k], |v| v))
                .collect();
            let targets: Vec<_> = (0..3)
                .map(|k| DeviceBuffer::uninit(&kernels, 4 * lens[k]).unwrap())
                .collect();
            let mut halves: Vec<_> = (0..3)
                .map(|k| bucket(rank, k, lens[k], bf16::from_f32))
                .collect();
            let device = nccl.device().unwrap();
            for k in 0..3 {
                let (to, from) = (targets[k].address(), sources[k].address());
                // SAFETY: the buffers live until the sums have been waited for.
                unsafe {
                    kernels
                        .copy_on_device_async(stream.handle(), to, from, 4 * lens[k])
                        .unwrap();
                    device
                        .all_reduce_start(to, lens[k], DType::F32, stream.handle())
                        .unwrap();
                    device
                        .all_reduce_start(
                            halves[k].address(),
                            lens[k],
                            DType::Bf16,
                            stream.handle(),
                        )
                        .unwrap();
                }
            }
            if round == 1 {
                // The engine's stream gets on before anybody has waited for the caller's: the sums must have.
                nccl.barrier(soon()).unwrap();
            }
            let device = nccl.device().unwrap();
            // SAFETY: our own stream.
            unsafe {
                device.join(stream.handle()).unwrap();
                done.record(stream.handle()).unwrap();
            }
            device.wait(&done, soon()).unwrap();
            for k in 0..3 {
                let mut got = vec![0.0f32; lens[k]];
                targets[k].download(&mut got).unwrap();
                let sum = |number, i| (0..world).map(|r| value(r, number, i)).sum::<f32>();
                let expected: Vec<f32> = (0..lens[k]).map(|i| sum(k + round, i)).collect();
                assert_eq!(got, expected, "rank {rank}, bucket {k}");
                let mut got = vec![bf16::ZERO; lens[k]];
                halves[k].download(&mut got).unwrap();
                let expected: Vec<bf16> = (0..lens[k]).map(|i| bf16::from_f32(sum(k, i))).collect();
                assert_eq!(got, expected, "rank {rank}, bucket {k} in bf16");
            }
            halves.clear();
            // Host operations go between.
            nccl.barrier(soon()).unwrap();
        }
    });
}

#[test]
fn buckets_are_summed_after_what_their_stream_held() {
    for world in [1, 2, 3, 5] {
        for lazy in [false, true] {
            let _turn = Turn::take(lazy);
            standin::set(standin::Set::ConnectMs(2));
            sums(world);
        }
    }
}

#[test]
fn a_bucket_of_nothing_is_no_operation() {
    let _turn = Turn::take(false);
    joined(2, |mut nccl| {
        let stream = Stream::new(&kernels()).unwrap();
        let device = nccl.device().unwrap();
        // SAFETY: no elements, and our own stream.
        unsafe {
            device
                .all_reduce_start(0, 0, DType::F32, stream.handle())
                .unwrap()
        };
        nccl.barrier(soon()).unwrap();
    });
}

/// Starts a sum that does not end, and gives back what a wait for it says.
pub fn wait_for_a_sum(
    nccl: &mut NcclCollective,
    deadline: Instant,
    before: impl FnOnce(),
) -> fovea_collectives::Error {
    let kernels = kernels();
    let buffer = bucket(nccl.rank(), 0, 100, |v| v);
    let (stream, done) = (
        Stream::new(&kernels).unwrap(),
        Event::new(&kernels).unwrap(),
    );
    let device = nccl.device().unwrap();
    // SAFETY: our own stream; the buffer is leaked, as the sum may go on.
    unsafe {
        let started = device.all_reduce_start(buffer.address(), 100, DType::F32, stream.handle());
        std::mem::forget(buffer);
        if let Err(error) = started {
            return error;
        }
        device.join(stream.handle()).unwrap();
        done.record(stream.handle()).unwrap();
    }
    assert!(!done.is_done().unwrap(), "nobody may take the sum for done");
    before();
    device.wait(&done, deadline).unwrap_err()
}
