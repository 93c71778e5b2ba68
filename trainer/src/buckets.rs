//! The choice of the gradients that travel together, and when: backward computes those of the last layers first, and
//! they travel to the other ranks while it computes the layers before.
//!
//! This module is pure. Buckets leave in one order, the same on every rank, each as soon as it and all before it are
//! complete.

use std::ops::Range;

use crate::params::FlatLayout;

/// Consecutive elements of the flat buffer that are reduced in one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its elements in the flat buffer, gaps between parameters included.
    pub range: Range<usize>,
    /// Its parameters, as indices of [`crate::models::ParamId`].
    pub params: Vec<usize>,
}

/// A partition of the flat buffer, in the order in which the parts leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    buckets: Vec<Bucket>,
    /// Bucket of each parameter, indexed by [`crate::models::ParamId`].
    bucket_of: Vec<usize>,
}

impl Buckets {
    /// Cuts a buffer of `len` elements: convolution weights from the last layer to the first, in buckets of at least
    /// `bytes`; then one last bucket with all that is small or known only at the end of a pass: normalisation and
    /// linear layers, batch statistics, losses. Parameters that do not move (`moves`) are in no bucket, and their
    /// elements travel only where they lie between others.
    pub fn new(
        layout: &FlatLayout,
        len: usize,
        bytes: usize,
        moves: impl Fn(usize) -> bool,
    ) -> Self {
        let least = (bytes / size_of::<f32>()).max(1);
        let start_of = |param: usize| layout.ranges[param].start;
        let moving = || (0..layout.ranges.len()).filter(|param| moves(*param));
        let mut convolutions: Vec<usize> = moving()
            .filter(|param| start_of(*param) < layout.working_len)
            .collect();
        convolutions.sort_by_key(|param| std::cmp::Reverse(start_of(*param)));
        let last = convolutions.last().copied();
        let mut buckets = Vec::new();
        let mut params = Vec::new();
        for param in convolutions {
            params.push(param);
            let start = start_of(param);
            let end = layout.padded_end(&layout.ranges[params[0]]);
            if end - start >= least || Some(param) == last {
                buckets.push(Bucket {
                    range: start..end,
                    params: std::mem::take(&mut params),
                });
            }
        }
        let small: Vec<usize> = moving()
            .filter(|param| start_of(*param) >= layout.working_len)
            .collect();
        // Without small parameters, the statistics begin it; they lie behind all parameters.
        let start = small.iter().map(|param| start_of(*param)).min();
        buckets.push(Bucket {
            range: start.unwrap_or(layout.len)..len,
            params: small,
        });
        let mut bucket_of = vec![0; layout.ranges.len()];
        for (number, bucket) in buckets.iter().enumerate() {
            for param in &bucket.params {
                bucket_of[*param] = number;
            }
        }
        Self { buckets, bucket_of }
    }

    /// The buckets, in the order in which they leave.
    pub fn all(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The contributions that `shards` virtual shards, computed at the same time, must still hand in.
    pub fn await_from(&self, shards: usize) -> Awaited<'_> {
        let mut missing: Vec<usize> = self
            .buckets
            .iter()
            .map(|bucket| bucket.params.len() * shards)
            .collect();
        // Statistics and losses count as one more contribution of each shard to the last bucket.
        if let Some(last) = missing.last_mut() {
            *last += shards;
        }
        Awaited {
            buckets: self,
            missing,
            next: 0,
        }
    }
}

/// The progress of several passes that run at the same time.
#[derive(Clone, Debug)]
pub struct Awaited<'a> {
    buckets: &'a Buckets,
    /// For each bucket, the number of gradients still to come.
    missing: Vec<usize>,
    /// The next bucket that leaves.
    next: usize,
}

impl Awaited<'_> {
    /// Counts a gradient of this parameter.
    pub fn gradient(&mut self, param: usize) {
        self.came(self.buckets.bucket_of[param]);
    }

    /// Counts the end of a pass, which brings its statistics and losses.
    pub fn end_of_pass(&mut self) {
        self.came(self.missing.len() - 1);
    }

    fn came(&mut self, bucket: usize) {
        self.missing[bucket] = self.missing[bucket].saturating_sub(1);
    }

    /// Returns the next bucket if it can leave now, each one once.
    pub fn take_ready(&mut self) -> Option<usize> {
        let ready = *self.missing.get(self.next)? == 0;
        ready.then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Whether all buckets have left.
    pub fn is_through(&self) -> bool {
        self.next == self.missing.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;
    use proptest::prelude::*;

    fn layout() -> FlatLayout {
        FlatLayout::new(&models::hybrid_for_lesions().1.params)
    }

    proptest! {
        #[test]
        fn buckets_are_a_partition_from_the_back(bytes in 0usize..200_000_000) {
            let layout = layout();
            let len = layout.len + 1000;
            let buckets = Buckets::new(&layout, len, bytes, |_| true);
            let all = buckets.all();
            let (last, convolutions) = all.split_last().expect("at least one");
            prop_assert_eq!(&last.range, &(layout.working_len..len));
            let mut end = layout.working_len;
            for bucket in convolutions {
                prop_assert_eq!(bucket.range.end, end);
                end = bucket.range.start;
                prop_assert!(4 * bucket.range.len() >= bytes || end == 0);
            }
            prop_assert_eq!(end, 0);
            let mut params: Vec<usize> = all.iter().flat_map(|bucket| bucket.params.clone()).collect();
            params.sort_unstable();
            prop_assert_eq!(params, (0..layout.ranges.len()).collect::<Vec<_>>());
            for bucket in all {
                for param in &bucket.params {
                    let range = &layout.ranges[*param];
                    prop_assert!(bucket.range.start <= range.start && range.end <= bucket.range.end);
                }
            }
        }

        /// Every moving parameter is in one bucket, no frozen one is, and buckets do not overlap.
        #[test]
        fn frozen_parameters_are_in_no_bucket(bytes in 0usize..50_000_000, moving in prop::collection::vec(any::<bool>(), 200)) {
            let layout = layout();
            let len = layout.len + 1000;
            let moves = |param: usize| moving[param % moving.len()];
            let buckets = Buckets::new(&layout, len, bytes, moves);
            let mut params: Vec<usize> = buckets.all().iter().flat_map(|bucket| bucket.params.clone()).collect();
            params.sort_unstable();
            prop_assert_eq!(params, (0..layout.ranges.len()).filter(|param| moves(*param)).collect::<Vec<_>>());
            let (last, convolutions) = buckets.all().split_last().expect("at least one");
            prop_assert!(last.range.start <= layout.len && last.range.end == len);
            for pair in convolutions.windows(2) {
                prop_assert!(pair[1].range.end <= pair[0].range.start);
            }
            for bucket in buckets.all() {
                for param in &bucket.params {
                    let range = &layout.ranges[*param];
                    prop_assert!(bucket.range.start <= range.start && range.end <= bucket.range.end);
                }
            }
        }

        /// In whatever order gradients come, buckets leave in order, each when all of its gradients are there.
        #[test]
        fn buckets_leave_in_order_and_complete(
            shards in 0usize..4,
            bytes in 1_000_000usize..30_000_000,
            turns in prop::collection::vec(any::<prop::sample::Index>(), 600),
        ) {
            let layout = layout();
            let buckets = Buckets::new(&layout, layout.len, bytes, |_| true);
            let mut awaited = buckets.await_from(shards);
            let mut to_come: Vec<Option<usize>> = (0..shards)
                .flat_map(|_| (0..layout.ranges.len()).map(Some).chain([None]))
                .collect();
            let mut came = vec![0; buckets.all().len()];
            let mut left = Vec::new();
            let mut turns = turns.iter();
            loop {
                while let Some(bucket) = awaited.take_ready() {
                    left.push(bucket);
                    let here = &buckets.all()[bucket];
                    let is_last = bucket + 1 == buckets.all().len();
                    prop_assert_eq!(came[bucket], shards * (here.params.len() + usize::from(is_last)));
                }
                if to_come.is_empty() {
                    break;
                }
                let turn = turns.next().map_or(0, |turn| turn.index(to_come.len()));
                match to_come.swap_remove(turn) {
                    Some(param) => {
                        awaited.gradient(param);
                        came[buckets.bucket_of[param]] += 1;
                    }
                    None => {
                        awaited.end_of_pass();
                        *came.last_mut().expect("a bucket") += 1;
                    }
                }
            }
            prop_assert!(awaited.is_through());
            prop_assert_eq!(left, (0..buckets.all().len()).collect::<Vec<_>>());
        }
    }
}
