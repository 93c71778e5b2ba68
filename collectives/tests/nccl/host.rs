//! Data on the host: the operations that all backends have.

use fovea_collectives::Error;
use proptest::prelude::*;

use super::testing::{bits, exercise, expected_sum, noise, soon};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn every_operation_at_any_world_and_length(
        world in prop::sample::select(vec![1_usize, 2, 3, 5]),
        lazy: bool,
        connect_ms in prop::sample::select(vec![0, 3]),
        lens in prop::collection::vec(0_usize..700, 1..4),
        seed: u32,
    ) {
        let _turn = Turn::take(lazy);
        standin::set(standin::Set::ConnectMs(connect_ms));
        joined(world, |mut nccl| exercise(&mut nccl, seed.into(), &lens));
    }
}

#[test]
fn what_is_longer_than_the_staging_buffers_goes_in_pieces() {
    let _turn = Turn::take(false);
    standin::set(standin::Set::DelayUs(0));
    // 16 MiB of staging in all: at three ranks some 1.4 million floats of each at a time.
    let (world, len) = (3, 3_000_001);
    let expected = bits(&expected_sum(9, world, len));
    joined(world, |mut nccl| {
        let rank = nccl.rank();
        let mut buf = noise(9, rank, len);
        nccl.all_reduce(&mut buf, soon()).unwrap();
        assert!(bits(&buf) == expected, "another sum on rank {rank}");

        let bytes = |rank: usize| vec![rank as u8 + 1; 6_000_000 * rank + 5];
        let all = nccl.all_gather(&bytes(rank), soon()).unwrap();
        assert!(all == (0..world).map(bytes).collect::<Vec<_>>());

        let mut state = vec![rank as u8; 17 << 20];
        nccl.broadcast(&mut state, 2, soon()).unwrap();
        assert!(state.iter().all(|byte| *byte == 2));
    });
}

#[test]
fn a_seat_or_a_root_outside_the_world_is_refused() {
    let _turn = Turn::take(false);
    let id = library().unique_id().unwrap();
    let error = join(id, (2, 2), &AbortHandle::new(), soon())
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::BadSeat {
                rank: 2,
                world: 2,
                ..
            }
        ),
        "{error}"
    );
    joined(2, |mut nccl| {
        let error = nccl.broadcast(&mut [0], 2, soon()).unwrap_err();
        assert!(
            matches!(error, Error::BadRoot { root: 2, world: 2 }),
            "{error}"
        );
        nccl.barrier(soon()).unwrap();
    });
}

#[test]
fn ranks_in_different_operations_find_out() {
    let _turn = Turn::take(false);
    let errors = joined(3, |mut nccl| match nccl.rank() {
        1 => nccl.all_reduce(&mut [1.0; 8], soon()).unwrap_err(),
        _ => nccl.broadcast(&mut [0; 32], 0, soon()).unwrap_err(),
    });
    for (rank, error) in errors.iter().enumerate() {
        let (mine, theirs, other) = match rank {
            1 => (
                "all_reduce of 8 f32",
                "broadcast of 32 bytes from rank 0",
                0,
            ),
            _ => (
                "broadcast of 32 bytes from rank 0",
                "all_reduce of 8 f32",
                1,
            ),
        };
        let told = matches!(error, Error::Mismatch { rank: r, mine: m, other: o, theirs: t }
            if (*r, m.as_str(), *o, t.as_str()) == (rank, mine, other, theirs));
        assert!(told, "{error}");
    }
}

#[test]
fn lengths_that_differ_are_found_out_too() {
    let _turn = Turn::take(true);
    let errors = joined(2, |mut nccl| {
        let mut buf = vec![1.0; 7 + nccl.rank()];
        let first = nccl.all_reduce(&mut buf, soon()).unwrap_err();
        let second = nccl.barrier(soon()).unwrap_err();
        (first.to_string(), second)
    });
    for (first, second) in errors {
        assert!(
            first.contains("all_reduce of 7 f32") && first.contains("all_reduce of 8 f32"),
            "{first}"
        );
        let over = matches!(&second, Error::Aborted { op: "barrier", reason, .. }
            if reason.contains("out of step"));
        assert!(over, "one error ends it: {second}");
    }
}
