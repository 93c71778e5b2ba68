//! Every loss of the list: kernel against twin.

use std::sync::Arc;

use fovea_kernels::loss::{LOSSES, Loss, LossAt, LossEntry, LossSettings};
use fovea_task::{Kind, Label, MAX_CLASSES};
use proptest::prelude::*;

use crate::guarded::{Guarded, assert_bits};
use crate::runner::{Runner, for_all};

/// Tolerance of a term, relative to it: f32 against the twin's f64. A dense scan gives at most 9e-7, and the weights
/// and the scale are rounded, too.
const RELATIVE: f64 = 2e-6;
/// Tolerance of a term below a thousandth of the class weight, relative to that weight: there a large gamma magnifies
/// the rounding of the logarithm.
const ABSOLUTE: f64 = 1e-8;

#[derive(Clone, Debug)]
struct Case {
    entry: &'static LossEntry,
    logits: Vec<f32>,
    labels: Vec<Label>,
    params: LossSettings,
    scale: f32,
    shift: (usize, usize),
}

impl Case {
    fn loss(&self) -> Arc<dyn Loss> {
        (self.entry.build)(&self.params).unwrap()
    }

    /// The loss and dlogits of the twin.
    fn twin(&self) -> (f64, Vec<f32>) {
        let mut dlogits = vec![0.0; self.logits.len()];
        let Self {
            logits,
            labels,
            scale,
            ..
        } = self;
        let loss = self.loss().host(logits, labels, *scale, &mut dlogits);
        (loss.unwrap(), dlogits)
    }
}

/// A label that a target of the loss's kind with this many classes allows.
fn label(entry: &LossEntry, classes: usize, bits: u64) -> Label {
    Label(match entry.kind {
        Kind::AnyOf => bits & ((1 << classes) - 1),
        Kind::OneOf => bits % classes as u64,
    })
}

fn cases(rows: impl Strategy<Value = usize> + 'static) -> impl Strategy<Value = Case> {
    let gamma = prop_oneof![Just(2.0f32), Just(0.0), Just(1.0), 0.0f32..5.0];
    let weight = || prop_oneof![3 => 0.1f32..4.0, 1 => Just(0.0f32)];
    let classes = prop_oneof![3 => 1usize..9, 1 => 9..=MAX_CLASSES];
    let entry = prop::sample::select(LOSSES);
    (rows, classes, entry).prop_flat_map(move |(n, classes, entry)| {
        let logit = prop_oneof![4 => -6.0f32..6.0, 1 => -120.0f32..120.0, 1 => Just(0.0f32)];
        let label = prop_oneof![
            7 => any::<u64>().prop_map(move |bits| label(entry, classes, bits)),
            1 => Just(Label::UNKNOWN),
        ];
        (
            prop::collection::vec(logit, n * classes),
            prop::collection::vec(label, n),
            settings(gamma.clone(), weight, classes),
            prop_oneof![Just(1.0f32), 1e-4f32..10.0],
            (0usize..4, 0usize..4),
        )
            .prop_map(move |(logits, labels, params, scale, shift)| Case {
                entry,
                logits,
                labels,
                params,
                scale,
                shift,
            })
    })
}

fn settings<W: Strategy<Value = f32>>(
    gamma: impl Strategy<Value = f32>,
    weight: impl Fn() -> W,
    classes: usize,
) -> impl Strategy<Value = LossSettings> {
    let weights = || prop::collection::vec(weight(), classes);
    (
        (gamma, weights(), weight(), weight(), weights()),
        prop_oneof![Just(0.0f32), 0.0f32..0.9],
        prop_oneof![Just(0.9999f32), 0.0f32..0.999],
        prop::collection::vec(0u64..30_000, classes),
    )
        .prop_map(|(weights, label_smoothing, beta, positives)| {
            let (gamma, alpha, positive_weight, negative_weight, pos_weight) = weights;
            LossSettings {
                gamma,
                alpha,
                positive_weight,
                negative_weight,
                pos_weight,
                label_smoothing,
                beta,
                positives,
            }
        })
}

/// The largest weight that the case's loss gives a term of class `class`, for tolerances relative to it.
fn heaviest(case: &Case, class: usize) -> f64 {
    let p = &case.params;
    let sign = match case.entry.name {
        "focal" => p.positive_weight.max(p.negative_weight),
        "bce" => p.pos_weight[class].max(1.0),
        // These weights have mean 1, so none is above the number of classes.
        "class_balanced" => return p.alpha.len() as f64,
        _ => 1.0,
    };
    f64::from(p.alpha[class]) * f64::from(sign)
}

fn run<R: Runner>(r: &R, case: &Case) -> (f64, Vec<f32>) {
    let n = case.labels.len();
    let twin = case.loss();
    let logits = Guarded::input(r, &case.logits, case.shift.0);
    let labels = Guarded::input(r, &case.labels, case.shift.1);
    let record = Guarded::input(r, twin.record(), 0);
    let scale = Guarded::input(r, &[case.scale], 0);
    let dlogits = Guarded::output(r, n * twin.classes(), case.shift.0);
    let loss = Guarded::<R, f64>::output(r, 1, 0);
    let scratch = Guarded::<R, u8>::output(r, twin.scratch_bytes(n), 0);
    let op = twin.op(LossAt {
        logits: logits.address(),
        labels: labels.address(),
        n,
        record: record.address(),
        scale: scale.address(),
        dlogits: dlogits.address(),
        loss: loss.address(),
        scratch: scratch.address(),
    });
    r.run(&*op);
    (loss.read()[0], dlogits.read())
}

fn compare<R: Runner>(r: &R, case: &Case) {
    let (loss, dlogits) = run(r, case);
    let (want_loss, want) = case.twin();
    let classes = case.params.alpha.len();
    let weight = |k: usize| heaviest(case, k % classes);
    let slack: f64 = (0..want.len()).map(|k| ABSOLUTE * weight(k)).sum();
    let error = (loss - want_loss).abs();
    assert!(
        error <= RELATIVE * want_loss + slack,
        "loss {loss} instead of {want_loss}"
    );
    for (k, (&got, &want)) in dlogits.iter().zip(&want).enumerate() {
        let error = (f64::from(got) - f64::from(want)).abs();
        let slack = ABSOLUTE * weight(k) * f64::from(case.scale);
        assert!(
            error <= RELATIVE * f64::from(want.abs()) + slack,
            "dlogits[{k}]: {got} instead of {want} at logit {}",
            case.logits[k]
        );
    }
}

pub fn losses_and_gradients_are_those_of_the_twin<R: Runner>(r: &R) {
    let rows = prop_oneof![3 => 0usize..40, 1 => 100usize..700];
    for_all(150, &cases(rows), |case| compare(r, &case));
}

/// Several loads per thread.
pub fn large_batches<R: Runner>(r: &R) {
    let classes = 4;
    let n = (1 << 18) + 19;
    let word = |k: u32| fovea_kernels::philox::philox4x32([k, 0, 0, 0], [5, 6]);
    for &entry in LOSSES {
        let case = Case {
            entry,
            logits: (0..(n * classes) as u32)
                .map(|k| (word(k)[0] as f32 / u32::MAX as f32 - 0.6) * 9.0)
                .collect(),
            labels: (0..n as u32)
                .map(|k| label(entry, classes, word(k)[1].into()))
                .collect(),
            params: LossSettings {
                gamma: 2.0,
                alpha: vec![0.5, 1.0, 0.75, 2.0],
                positive_weight: 3.0,
                negative_weight: 0.8,
                pos_weight: vec![3.0, 0.5, 1.0, 7.0],
                label_smoothing: 0.1,
                beta: 0.9999,
                positives: vec![700, 12, 9000, 0],
            },
            scale: 0.01,
            shift: (0, 0),
        };
        compare(r, &case);
    }
}

/// Single terms without a sum, so the last term of each series shows.
pub fn single_terms_are_accurate<R: Runner>(r: &R) {
    let n = 3001;
    let settings = [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)];
    // A softmax over a single class has a loss of 0, so only sigmoids are tested.
    for &entry in LOSSES.iter().filter(|entry| entry.kind == Kind::AnyOf) {
        for (gamma, label) in settings {
            let case = Case {
                entry,
                logits: (0..n).map(|k| (k as f32 - 1500.0) / 250.0).collect(),
                labels: vec![Label(label); n],
                params: LossSettings {
                    gamma,
                    ..LossSettings::plain(1)
                },
                scale: 1.0,
                shift: (0, 0),
            };
            let (loss, dlogits) = run(r, &case);
            let (want_loss, want) = case.twin();
            assert!((loss / want_loss - 1.0).abs() < 2e-7, "{loss} {want_loss}");
            for (k, (&got, &want)) in dlogits.iter().zip(&want).enumerate() {
                let error = (f64::from(got) / f64::from(want) - 1.0).abs();
                // A dense scan gives at most 4.7e-7, for small terms 9e-7.
                let limit = if want.abs() > 1e-3 { 6e-7 } else { 1.2e-6 };
                assert!(
                    error < limit,
                    "gamma {gamma}, logit {}: {error:e}",
                    case.logits[k]
                );
            }
        }
    }
}

pub fn nan_and_infinity_come_through<R: Runner>(r: &R) {
    let gammas = [0.0, 2.0, 1.5].into_iter();
    // A softmax carries one logit into the gradients of its whole row.
    let sigmoids = || LOSSES.iter().filter(|entry| entry.kind == Kind::AnyOf);
    for (gamma, &entry) in gammas.flat_map(|gamma| sigmoids().map(move |entry| (gamma, entry))) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = Case {
                entry,
                logits: vec![0.5; 30],
                labels: vec![Label(0); 10],
                params: LossSettings {
                    gamma,
                    ..LossSettings::plain(3)
                },
                scale: 1.0,
                shift: (0, 0),
            };
            case.logits[17] = bad;
            let (loss, dlogits) = run(r, &case);
            let (want_loss, want) = case.twin();
            let kind = |x: f64| (x.is_nan(), x.is_finite());
            assert_eq!(
                kind(loss),
                kind(want_loss),
                "loss, gamma {gamma}, logit {bad}"
            );
            let (got, want) = (f64::from(dlogits[17]), f64::from(want[17]));
            assert_eq!(kind(got), kind(want), "dlogit, gamma {gamma}, logit {bad}");
            assert!((0..30).all(|k| k == 17 || dlogits[k].is_finite()));
        }
    }
}

/// Their logits may even be NaN: a factor of 0 would let those through.
pub fn unlabelled_rows_count_for_nothing<R: Runner>(r: &R) {
    let classes = 7;
    let labelled = |row: usize| row % 3 == 1;
    for &entry in LOSSES {
        let mut case = Case {
            entry,
            logits: (0..300 * classes)
                .map(|k| (k % 83) as f32 / 9.0 - 4.0)
                .collect(),
            labels: (0..300).map(|row| label(entry, classes, row)).collect(),
            params: LossSettings {
                gamma: 2.0,
                alpha: vec![0.5; classes],
                negative_weight: 0.5,
                label_smoothing: 0.1,
                ..LossSettings::plain(classes)
            },
            scale: 0.1,
            shift: (0, 0),
        };
        for row in (0..300).filter(|&row| !labelled(row)) {
            case.labels[row] = Label::UNKNOWN;
            case.logits[row * classes..][..classes].fill(f32::NAN);
        }
        compare(r, &case);
        let (_, dlogits) = run(r, &case);
        for (row, dlogits) in dlogits.chunks(classes).enumerate() {
            let zero = dlogits.iter().all(|d| d.to_bits() == 0);
            assert_eq!(zero, !labelled(row), "row {row}: {dlogits:?}");
        }
    }
}

/// A softmax carries one logit into its whole row, and no further.
pub fn nan_and_infinity_stay_in_the_row_of_a_softmax<R: Runner>(r: &R) {
    for &entry in LOSSES.iter().filter(|entry| entry.kind == Kind::OneOf) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (at, smoothing) in [(15, 0.0), (16, 0.0), (17, 0.1)] {
                let mut case = Case {
                    entry,
                    logits: vec![0.5; 30],
                    labels: vec![Label(1); 10],
                    params: LossSettings {
                        label_smoothing: smoothing,
                        ..LossSettings::plain(3)
                    },
                    scale: 1.0,
                    shift: (0, 0),
                };
                case.logits[at] = bad;
                let (loss, dlogits) = run(r, &case);
                let (want_loss, want) = case.twin();
                let kind = |x: f64| (x.is_nan(), x.is_finite());
                assert_eq!(kind(loss), kind(want_loss), "loss, logit {bad}");
                for (k, (&got, &want)) in dlogits.iter().zip(&want).enumerate() {
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(
                        same,
                        "dlogits[{k}]: {got} instead of {want}, logit {bad} at {at}"
                    );
                    assert!(got.is_finite() || (15..18).contains(&k));
                }
            }
        }
    }
}

/// Cross-entropy is computed in f64 on the device too: its gradients have the twin's bits.
pub fn a_softmax_has_the_bits_of_the_twin<R: Runner>(r: &R) {
    let rows = prop_oneof![3 => 0usize..40, 1 => 200usize..700];
    for_all(60, &cases(rows), |case| {
        if case.entry.kind == Kind::OneOf {
            let (loss, dlogits) = run(r, &case);
            let (want_loss, want) = case.twin();
            assert_bits("dlogits", &dlogits, &want);
            assert!((loss - want_loss).abs() <= 1e-12 * want_loss.abs() + 1e-12);
        }
    });
}

pub fn bits_are_the_same_in_every_run<R: Runner>(r: &R) {
    for_all(10, &cases(300usize..1500), |case| {
        let (loss, dlogits) = run(r, &case);
        for _ in 0..3 {
            let (again, gradients) = run(r, &case);
            assert_bits("loss", &[again], &[loss]);
            assert_bits("dlogits", &gradients, &dlogits);
        }
    });
}
