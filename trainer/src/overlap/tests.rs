//! Whole attempts of the hybrid model, as the trainer runs them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::atomic::{AtomicBool, Ordering};

use fovea_run::config::Config;
use fovea_task::{Label, Task};
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::lanes::ThreadLanes;
use crate::objective::{Denominators, unweighted};
use crate::precision::Precision;
use crate::replica::Replica;
use crate::samples::{Pixels, ShardBatch, Views};

/// A virtual shard of one image with `n` of its patches.
fn shard(number: u64, n: usize, side: i64) -> ShardBatch {
    let picture = |count: i64, salt: f64| {
        let len = count * 3 * side * side;
        let phase = Tensor::arange(len, (Kind::Float, Device::Cpu)) * 0.37 + salt;
        phase
            .sin()
            .view([count, side, side, 3])
            .permute([0, 3, 1, 2])
    };
    ShardBatch {
        pixels: Pixels::Views(Views {
            globals: picture(1, number as f64),
            patches: picture(n as i64, number as f64 + 0.5),
        }),
        counts: vec![n],
        labels: vec![
            vec![Label(number % 16)],
            (0..n as u64).map(|i| Label((number + i) % 16)).collect(),
        ],
        columns: Vec::new(),
        image_ids: vec![number],
        patch_ids: (0..n as u64).map(|i| 1000 * number + i).collect(),
    }
}

fn replica(bucket_mb: u32) -> Replica {
    let mut config = Config::preset("hybrid").unwrap();
    config.train.bucket_mb = bucket_mb;
    config.train.trace_steps = 1;
    let (task, lanes) = (Task::lesions(), ThreadLanes::one());
    let objective = unweighted(&config.loss, &task).unwrap();
    Replica::configured(&config, &task, Precision::F32, objective, lanes, None).unwrap()
}

const TOTAL: Denominators = Denominators {
    images: 3,
    patches: 6,
};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Three virtual shards with samples, one without.
fn shards() -> Vec<Option<ShardBatch>> {
    let mut all: Vec<_> = (1..4).map(|i| Some(shard(i, 2, 64))).collect();
    all.insert(1, None);
    all
}

#[test]
fn buckets_change_no_bit_and_cover_everything() {
    let shards = shards();
    let mut sums = Vec::new();
    let mut counts = Vec::new();
    for bucket_mb in [1, 25, 4096] {
        let mut replica = replica(bucket_mb);
        let (mut elements, mut calls) = (0, 0);
        let mut all_reduce = |bucket: &mut [f32]| {
            // As if there were another rank with the same sums.
            bucket.iter_mut().for_each(|x| *x *= 2.0);
            elements += bucket.len();
            calls += 1;
            Ok(())
        };
        let sum = replica
            .attempt(&shards, 0, TOTAL, &mut all_reduce, &mut || ())
            .unwrap()
            .to_host()
            .unwrap();
        assert_eq!(elements, sum.len(), "each element once");
        counts.push(calls);
        sums.push(bits(&sum));
        // Of 4 shards on each of 2 ranks, 3 and 3 have samples: their number stands behind the losses.
        assert_eq!(sum.last(), Some(&6.0));
    }
    assert!(sums[0] == sums[1] && sums[1] == sums[2]);
    assert!(
        counts[0] > counts[1] && counts[1] > counts[2] && counts[2] == 2,
        "{counts:?}"
    );
}

/// The first bucket must leave before the last pass ends; that it could leave is not enough.
#[test]
fn the_first_bucket_leaves_while_backward_goes_on() {
    let mut replica = replica(25);
    let shards = [Some(shard(1, 16, 96))];
    let through = AtomicBool::new(false);
    let mut early = 0;
    // On a busy machine the thread that adds may not get a processor in time; three misses in a row are an error.
    for _ in 0..3 {
        through.store(false, Ordering::Relaxed);
        early = 0;
        let mut all_reduce = |_: &mut [f32]| {
            early += u32::from(!through.load(Ordering::Relaxed));
            Ok(())
        };
        let mut computed = || through.store(true, Ordering::Relaxed);
        let sum = replica.attempt(&shards, 0, TOTAL, &mut all_reduce, &mut computed);
        sum.unwrap();
        if early > 0 {
            break;
        }
    }
    assert!(early > 0, "all buckets left after backward");

    // The trace must show it, too.
    let spans = replica.trace().spans();
    let span = |name: &str| {
        let found = spans.iter().rev().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no {name} in {spans:?}"))
    };
    let (backward, first) = (span("backward"), span("all-reduce bucket 0"));
    assert!(
        first.start_us < backward.start_us + backward.duration_us,
        "{spans:#?}"
    );
    assert_eq!(first.thread, "reduce");
}

#[test]
fn an_attempt_that_is_given_up_leaves_no_trace_in_the_next() {
    let shards = shards();
    let whole = |replica: &mut Replica| {
        let sum = replica.attempt(&shards, 0, TOTAL, &mut |_: &mut [f32]| Ok(()), &mut || ());
        bits(&sum.unwrap().to_host().unwrap())
    };
    let expected = whole(&mut replica(25));
    let mut replica = replica(25);
    let mut calls = 0;
    let mut breaks = |_: &mut [f32]| {
        calls += 1;
        match calls {
            2 => Err(Error::Internal("the other rank is gone".to_owned())),
            _ => Ok(()),
        }
    };
    let error = replica
        .attempt(&shards, 0, TOTAL, &mut breaks, &mut || ())
        .unwrap_err();
    assert!(
        error.to_string().contains("the other rank is gone"),
        "{error}"
    );
    assert_eq!(calls, 2, "nothing is sent after an error");
    assert!(whole(&mut replica) == expected);
}
