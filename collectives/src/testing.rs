//! What the tests of all backends share.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::Command;
use std::time::{Duration, Instant};

use super::{Collective, tree_sum};

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Floats of many magnitudes, so that another order of addition gives other bits.
pub(super) fn noise(seed: u64, rank: usize, len: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&rank.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    let float = |b: &[u8]| {
        let bits = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        // Exponents 107 to 146: magnitudes from about 1e-6 to 1e6.
        f32::from_bits(bits & 0x807F_FFFF | (107 + (bits >> 23) % 40) << 23)
    };
    bytes.chunks_exact(4).map(float).collect()
}

pub(super) fn expected_sum(seed: u64, world: usize, len: usize) -> Vec<f32> {
    let mut parts: Vec<_> = (0..world).map(|rank| noise(seed, rank, len)).collect();
    let mut views: Vec<&mut [f32]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    tree_sum(&mut views);
    parts.swap_remove(0)
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What every world must be able to do, several times over and in any mixture.
pub(super) fn exercise(collective: &mut dyn Collective, seed: u64, lens: &[usize]) {
    let (rank, world) = (collective.rank(), collective.world());
    for (i, len) in lens.iter().enumerate() {
        let seed = seed + i as u64;
        let mut buf = noise(seed, rank, *len);
        collective.all_reduce(&mut buf, soon()).unwrap();
        assert_eq!(bits(&buf), bits(&expected_sum(seed, world, *len)));

        let message = |rank: usize| -> Vec<u8> {
            let len = (len * (rank + 1) * 5) % 2000;
            (0..len).map(|i| (i * 31 + rank) as u8).collect()
        };
        let all = collective.all_gather(&message(rank), soon()).unwrap();
        assert_eq!(all, (0..world).map(message).collect::<Vec<_>>());

        let root = i % world;
        let truth: Vec<u8> = (0..*len * 3 + 1).map(|i| (i * 7 + root) as u8).collect();
        let mut buf = if rank == root {
            truth.clone()
        } else {
            vec![0; truth.len()]
        };
        collective.broadcast(&mut buf, root, soon()).unwrap();
        assert_eq!(buf, truth);
        collective.barrier(soon()).unwrap();
    }
}

/// The command that runs one ignored test of this test binary as a process of its own. A caller must
/// see the child's work in something else than its exit code: a filter that matches nothing passes.
pub(crate) fn child_command(module: &str, name: &str) -> Command {
    let path = module.split_once("::").unwrap().1;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("{path}::{name}"));
    command
}
