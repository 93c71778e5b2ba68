//! The scheduler against kernels that are known to be faulty, and against one that is not.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

const THREADS: u32 = 64;

fn run_test(name: &str, blocks: u32, seed: u64) -> Result<Vec<u32>, String> {
    // 16-byte aligned.
    let mut out = vec![0u128; (blocks * THREADS) as usize];
    let address = out.as_mut_ptr() as u64;
    let _buffer = Buffer::new(address, (THREADS * 4 - 8) as usize);
    // SAFETY: no test kernel writes more than 4 words per thread.
    unsafe { run(name, [blocks, 1, 1], THREADS, &[address], &[8], seed)? };
    let word = |of: &u128, k: u32| (of >> (32 * k)) as u32;
    Ok(out
        .iter()
        .flat_map(|of| (0..4).map(move |k| word(of, k)))
        .collect())
}

#[test]
fn faults_are_found_and_named() {
    for (name, words) in [
        ("test_leaves_early", ["divergence", "has left"]),
        ("test_other_barrier", ["divergence", "waits at the barrier"]),
        ("test_missing_lane", ["divergence", "waits at the shuffle"]),
        (
            "test_part_of_a_warp",
            ["a shuffle of mask 0xffff", "broken.cpp"],
        ),
        ("test_misaligned", ["beyond a multiple", "broken.cpp"]),
        (
            "test_beyond_the_end",
            ["outside of all buffers", "broken.cpp"],
        ),
        (
            "test_before_the_start",
            ["outside of all buffers", "broken.cpp"],
        ),
    ] {
        for seed in 0..5 {
            let error = run_test(name, 2, seed).unwrap_err();
            assert!(error.starts_with(&format!("{name}, block (")), "{error}");
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        // A failed launch leaves no state behind.
        run_test("test_sound", 2, 1).unwrap();
    }
}

#[test]
fn a_missing_barrier_shows_as_another_result() {
    let results: Vec<_> = (0..5)
        .map(|seed| run_test("test_race", 1, seed).unwrap())
        .collect();
    assert!(results.iter().any(|result| result != &results[0]));
}

#[test]
fn barriers_shuffles_and_poison_are_those_of_a_gpu() {
    for seed in 0..5 {
        let out = run_test("test_sound", 3, seed).unwrap();
        for (k, values) in out.chunks(4).enumerate() {
            let (block, thread) = (k as u32 / THREADS, k as u32 % THREADS);
            let lane = thread % 32;
            let down = if lane + 4 < 32 { thread + 4 } else { thread };
            let want = [u32::MAX, 100 * block + 63 - thread, down, thread - lane + 3];
            assert_eq!(values, want, "thread {thread} of block {block}");
        }
    }
}

#[test]
fn launches_that_cuda_would_not_take_are_refused() {
    let refused = |name: &str, grid, threads, values: &[u64], sizes: &[u8]| {
        // SAFETY: none of them gets as far as the kernel.
        unsafe { run(name, grid, threads, values, sizes, 0) }.unwrap_err()
    };
    assert!(refused("nothing", [1; 3], 32, &[], &[]).contains("no kernel nothing"));
    assert!(refused("test_sound", [1; 3], 32, &[], &[]).contains("0 arguments instead of 1"));
    assert!(refused("test_sound", [1; 3], 32, &[0], &[4]).contains("4 bytes instead of 8"));
    assert!(refused("test_sound", [1; 3], 48, &[0], &[8]).contains("multiple of 32"));
    assert!(refused("test_sound", [0, 1, 1], 32, &[0], &[8]).contains("0 x 1 x 1"));
    assert!(refused("test_sound", [1, 65_536, 1], 32, &[0], &[8]).contains("65536"));
}

/// The library itself, opened by its path, plays the part of a real driver that the process has opened before.
#[test]
fn the_stand_in_does_not_take_the_place_of_a_driver_that_is_open() {
    let path = std::path::Path::new(env!("FOVEA_STANDIN")).join("libcuda.so.1");
    // SAFETY: our own library, whose initialisers touch nothing outside of it.
    let _open = unsafe { libloading::Library::new(path) }.unwrap();
    let error = driver::load().unwrap_err();
    assert!(
        error.contains("this process has opened libcuda.so.1 already\n  help: call"),
        "{error}"
    );
}
