//! The learning rate and the stopping rule against PyTorch's numbers and their own definition.

use proptest::prelude::*;

use super::super::*;

fn cosine(warmup_steps: u32, min_lr: f32) -> ScheduleConfig {
    ScheduleConfig {
        kind: ScheduleKind::Cosine,
        warmup_steps,
        min_lr,
        ..ScheduleConfig::default()
    }
}

#[track_caller]
fn close(actual: f32, expected: f64) {
    // One rounding to f32: relative 2^-24, and the expected figures have ten digits.
    assert!(
        (f64::from(actual) - expected).abs() <= 1e-7 * expected,
        "{actual} against {expected}"
    );
}

/// torch 2.11: `CosineAnnealingLR(SGD(lr=1e-3), T_max=10, eta_min=1e-5)`, rate before each step.
const TORCH_COSINE: [f64; 11] = [
    1.000000000e-03,
    9.757729756e-04,
    9.054634122e-04,
    7.959536999e-04,
    6.579634122e-04,
    5.050000000e-04,
    3.520365878e-04,
    2.140463001e-04,
    1.045365878e-04,
    3.422702443e-05,
    1.000000000e-05,
];

#[test]
fn cosine_is_pytorchs() {
    let none = PlateauState::default();
    for (step, expected) in TORCH_COSINE.into_iter().enumerate() {
        close(
            learning_rate(&cosine(0, 1e-5), 1e-3, step as u64, 10, &none),
            expected,
        );
        // The same curve after a warm-up of 7 steps.
        close(
            learning_rate(&cosine(7, 1e-5), 1e-3, 7 + step as u64, 17, &none),
            expected,
        );
    }
    assert_eq!(learning_rate(&cosine(0, 1e-5), 1e-3, 999, 10, &none), 1e-5);
}

#[test]
fn warmup_is_linear_and_ends_at_the_base_rate() {
    let none = PlateauState::default();
    // torch 2.11: LinearLR(start_factor=1/4, end_factor=1, total_iters=3).
    for (step, expected) in [0.00025, 0.0005, 0.00075, 0.001, 0.001]
        .into_iter()
        .enumerate()
    {
        let constant = ScheduleConfig {
            warmup_steps: 4,
            ..ScheduleConfig::default()
        };
        close(
            learning_rate(&constant, 1e-3, step as u64, 100, &none),
            expected,
        );
    }
    // A run shorter than its warm-up, and one that ends with it.
    close(learning_rate(&cosine(100, 0.0), 1e-3, 9, 10, &none), 1e-4);
    assert_eq!(learning_rate(&cosine(10, 0.0), 1e-3, 10, 10, &none), 0.0);
    assert_eq!(learning_rate(&cosine(0, 0.0), 1e-3, 0, 0, &none), 0.0);
}

#[test]
fn plateau_is_pytorchs_with_one_more_patience() {
    // torch 2.11: ReduceLROnPlateau(SGD(lr=1e-3), mode="max", factor=0.5, patience=1, threshold=0,
    // threshold_mode="abs", min_lr=2e-4), rate after each value.
    let values = [0.1, 0.2, 0.2, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3];
    let rates = [
        1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 2.5e-4, 2.5e-4, 2e-4, 2e-4, 2e-4, 2e-4,
    ];
    let schedule = ScheduleConfig {
        kind: ScheduleKind::Plateau,
        plateau_factor: 0.5,
        plateau_patience: 2,
        min_lr: 2e-4,
        ..ScheduleConfig::default()
    };
    let mut plateau = PlateauState::default();
    let mut watch = EarlyStopping::new(&EarlyStoppingConfig::default());
    for (value, rate) in values.into_iter().zip(rates) {
        let verdict = watch.observe(value);
        let before = plateau.reductions;
        let reduced = plateau.observe(&schedule, verdict.improved);
        assert_eq!(reduced, plateau.reductions == before + 1);
        close(learning_rate(&schedule, 1e-3, 0, 1, &plateau), rate);
        assert!(!verdict.stop);
    }
    // A state from a file may hold any count: it ends at the floor, at once.
    let endless = PlateauState {
        waited: 0,
        reductions: u32::MAX,
    };
    close(learning_rate(&schedule, 1e-3, 0, 1, &endless), 2e-4);
    let slow = ScheduleConfig {
        plateau_factor: 0.999_999_94,
        min_lr: 0.0,
        ..schedule
    };
    assert!(learning_rate(&slow, 1e-3, 0, 1, &endless) <= 1e-3);
    // Other schedules count nothing.
    assert!(!plateau.clone().observe(&cosine(0, 0.0), false));
}

fn watch(metric: MetricName, patience: u32, min_delta: f32) -> EarlyStopping {
    EarlyStopping::new(&EarlyStoppingConfig {
        metric,
        patience,
        min_delta,
        ..EarlyStoppingConfig::default()
    })
}

#[test]
fn stops_after_patience_evaluations_without_improvement() {
    let mut f1 = watch(MetricName::F1Micro, 2, 0.0);
    let verdicts: Vec<_> = [0.5, 0.6, 0.6, 0.7, 0.1, 0.7].map(|v| f1.observe(v)).into();
    let told: Vec<_> = verdicts.iter().map(|v| (v.improved, v.stop)).collect();
    let (better, worse, stop) = ((true, false), (false, false), (false, true));
    assert_eq!(told, [better, better, worse, better, worse, stop]);
    assert_eq!(
        (f1.best(), f1.best_at(), f1.waited()),
        (Some(0.7), Some(3), 2)
    );
    // The loss improves downwards.
    let mut loss = watch(MetricName::Loss, 1, 0.0);
    assert_eq!(
        loss.observe(0.5),
        StopVerdict {
            improved: true,
            stop: false
        }
    );
    assert_eq!(
        loss.observe(0.4),
        StopVerdict {
            improved: true,
            stop: false
        }
    );
    assert_eq!(
        loss.observe(0.45),
        StopVerdict {
            improved: false,
            stop: true
        }
    );
}

#[test]
fn small_steps_and_undefined_values_are_no_improvement() {
    let mut f1 = watch(MetricName::F1Micro, 0, 0.125);
    assert!(!f1.observe(f64::NAN).improved);
    assert!(!f1.observe(f64::INFINITY).improved);
    assert_eq!(f1.best(), None);
    assert!(f1.observe(0.5).improved);
    assert!(
        !f1.observe(0.625).improved,
        "exactly min_delta is not more than min_delta"
    );
    assert!(f1.observe(0.75).improved);
    assert!(!f1.observe(f64::NAN).improved);
    assert_eq!((f1.best(), f1.best_at()), (Some(0.75), Some(4)));
    // Patience 0 never stops.
    assert!((0..1000).all(|_| !f1.observe(0.0).stop));
}

proptest! {
    #[test]
    fn rates_stay_between_their_ends(
        kind in proptest::sample::select(ScheduleKind::ALL),
        warmup in 0u32..50,
        base in 1e-6f32..1.0,
        floor in 0.0f32..1.0,
        total in 0u64..200,
        reductions in 0u32..20,
    ) {
        let schedule = ScheduleConfig {
            kind, warmup_steps: warmup, min_lr: base * floor, ..ScheduleConfig::default()
        };
        let plateau = PlateauState { waited: 0, reductions };
        let rates: Vec<f32> =
            (0..total + 5).map(|step| learning_rate(&schedule, base, step, total, &plateau)).collect();
        for (step, rate) in rates.iter().enumerate() {
            prop_assert!(rate.is_finite() && *rate <= base);
            if step < warmup as usize {
                prop_assert!(*rate > 0.0);
            } else {
                prop_assert!(*rate >= schedule.min_lr);
            }
        }
        let (rising, falling) = rates.split_at((warmup as usize).min(rates.len()));
        prop_assert!(rising.is_sorted());
        prop_assert!(falling.is_sorted_by(|a, b| a >= b));
    }

    /// A run that is stopped after any evaluation and goes on from the stored state sees the same.
    #[test]
    fn resuming_changes_nothing(
        metric in proptest::sample::select(MetricName::ALL),
        values in proptest::collection::vec(prop_oneof![0.0f64..1.0, Just(f64::NAN)], 1..30),
        cut in 0usize..30,
        patience in 0u32..5,
    ) {
        let schedule = ScheduleConfig {
            kind: ScheduleKind::Plateau, plateau_patience: 2, ..ScheduleConfig::default()
        };
        let run = |cut: Option<usize>| {
            let mut state = (watch(metric, patience, 0.01), PlateauState::default());
            let mut told = Vec::new();
            for (index, value) in values.iter().enumerate() {
                if cut == Some(index) {
                    let stored = serde_json::to_string(&state).unwrap();
                    state = serde_json::from_str(&stored).unwrap();
                }
                let verdict = state.0.observe(*value);
                told.push((verdict, state.1.observe(&schedule, verdict.improved)));
            }
            (told, state)
        };
        prop_assert_eq!(run(Some(cut)), run(None));
    }
}
