//! Confusion counts: kernel against twin.

use fovea_kernels::confusion::{CountLayout, confusion_counts};
use fovea_kernels::cuda::ConfusionCounts;
use fovea_task::{Kind, Label, MAX_CLASSES};
use proptest::prelude::*;

use crate::guarded::{Guarded, assert_bits};
use crate::runner::{Runner, for_all};

#[derive(Clone, Debug)]
struct Case {
    layout: CountLayout,
    logits: Vec<f32>,
    labels: Vec<Label>,
    lowest: f32,
    before: f32,
}

fn cases() -> impl Strategy<Value = Case> {
    let classes = prop_oneof![3 => 1usize..9, 1 => 9..=MAX_CLASSES];
    let rows = prop_oneof![3 => 0usize..40, 1 => 100usize..700];
    (rows, classes, any::<bool>()).prop_flat_map(|(n, classes, one_of)| {
        let logit = prop_oneof![
            8 => (-8i32..8).prop_map(|k| k as f32 / 4.0),
            1 => Just(f32::NAN),
            1 => Just(f32::INFINITY),
        ];
        let label = prop_oneof![
            7 => any::<u64>().prop_map(move |bits| Label(match one_of {
                true => bits % classes as u64,
                false => bits & ((1 << classes) - 1),
            })),
            1 => Just(Label::UNKNOWN),
        ];
        let kind = if one_of { Kind::OneOf } else { Kind::AnyOf };
        (
            prop::collection::vec(logit, n * classes),
            prop::collection::vec(label, n),
            (-4i32..4).prop_map(|k| k as f32 / 4.0),
            prop_oneof![Just(0.0f32), Just(17.0f32)],
        )
            .prop_map(move |(logits, labels, lowest, before)| Case {
                layout: CountLayout { kind, classes },
                logits,
                labels,
                lowest,
                before,
            })
    })
}

pub fn counts_have_the_bits_of_the_twin<R: Runner>(r: &R) {
    for_all(150, &cases(), |case| {
        let mut want = vec![case.before; case.layout.len()];
        let (logits, labels) = (&case.logits, &case.labels);
        confusion_counts(case.layout, logits, labels, case.lowest, &mut want).unwrap();
        let on_device = (
            Guarded::input(r, logits, 1),
            Guarded::input(r, labels, 1),
            Guarded::inout(r, &vec![case.before; want.len()], 3),
        );
        r.run(&ConfusionCounts {
            layout: case.layout,
            logits: on_device.0.address(),
            labels: on_device.1.address(),
            n: labels.len(),
            lowest: case.lowest,
            counts: on_device.2.address(),
        });
        assert_bits("counts", &on_device.2.read(), &want);
    });
}
